"""One request, served step by step: whoever times, counts, profiles or scores it watches the same loop."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tda.engine.phases import decode, prefill
from tda.engine.run import Run
from tda.spans import Recorder


def unwatched(phase: str) -> AbstractContextManager[None]:
    """Nobody watches."""
    return nullcontext()


@dataclass
class Session:
    """A request on an attached model, its continuation given, so that every method does equal work.

    Attributes
    ----------
    run : Run
        What `tda.attach` yielded.
    prompts, continuations : Tensor
        int64 [B, P] and [B, G].
    watch : callable
        Opens a range around each phase.
    cache : object
        Of the prompt that was served last.
    """

    run: Run
    prompts: Tensor
    continuations: Tensor
    watch: Recorder = unwatched
    cache: Any = None

    @property
    def model(self) -> nn.Module:
        """The model that serves it."""
        return self.run.attachment.model

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.prompts.device

    @torch.no_grad()
    def prefill(self) -> Tensor:
        """Serve the prompt anew: logits of its last token [B, 1, V]."""
        self.cache = None  # a cache at a time
        with self.watch("prefill"):
            logits, self.cache = prefill(self.model, self.prompts)
        return logits

    @torch.no_grad()
    def select(self) -> None:
        """Choose, and make ready for decode."""
        with self.watch("selection"):
            self.run.select()

    @torch.no_grad()
    def steps(self, first: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Feed tokens of the continuation, one a step: logits [B, 1, V] of each.

        As in any generation the last token is fed to no step; `first` and `stop` count tokens from 0.
        """
        tokens = self.continuations[:, :-1].split(1, dim=1)[first:stop]
        for token in tokens:
            with self.watch("decode"):
                logits = decode(self.model, token, self.cache)
            yield logits

    def serve(self, tokens: int) -> None:
        """Serve the prompt and so many steps, and read nothing of them."""
        self.prefill()
        self.select()
        for _ in self.steps(stop=tokens):
            pass
