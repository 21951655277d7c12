"""The phase of every forward of an attached model: as the caller tells it, as `generate` runs, else by the cache."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tda.engine.request import Call, Phase, Request


class PhaseTracker:
    """Knows the phase and the padding of the forward in progress.

    Attributes
    ----------
    explicit : {"prefill", "decode"} or None
        The phase that the caller tells.
    call : Call or None
        The forward in progress.
    """

    def __init__(self) -> None:
        self.explicit: Phase | None = None
        self.call: Call | None = None
        self._busy = threading.Lock()
        self._new_tokens: int | None = None
        self._thread: int | None = None  # that generates
        self._known_mask: Tensor | None = None
        self._ended: Tensor | None = None  # bool [B]
        self._generated: Request | None = None  # of the generate in progress

    @property
    def generating(self) -> bool:
        """Whether `generate` is in progress."""
        return self._thread is not None

    def enter(self) -> None:
        """A forward begins.

        Raises
        ------
        ValueError
            If another thread's is in progress: a phase and a selection are those of one forward at a time.
        """
        if not self._busy.acquire(blocking=False):
            raise ValueError(
                "another forward of this model is in progress, in another thread: while a method is attached, forwards "
                "come one after the other"
            )

    def leave(self) -> None:
        """A forward has ended, also with an exception: a prompt that did not pass whole has no selection."""
        call, self.call = self.call, None
        if call is not None and call.phase == "prefill" and not call.passed:
            call.request.owner = None
        self._busy.release()

    @contextmanager
    def set_phase(self, phase: Phase) -> Iterator[None]:
        """Tell the phase of the forwards inside."""
        before, self.explicit = self.explicit, phase
        try:
            yield
        finally:
            self.explicit = before

    @contextmanager
    def generate(self, new_tokens: int) -> Iterator[None]:
        """Within `generate`: the first `new_tokens` tokens that are fed are prompt."""
        if self.explicit is not None:
            raise ValueError("`generate` tells prompt from decode itself: call it outside of `run.prefill()`")
        thread = threading.get_ident()
        if self._thread not in (None, thread):
            raise ValueError("`generate` runs in another thread: while a method is attached, one runs at a time")
        outer = self._thread, self._new_tokens, self._known_mask, self._ended
        self._thread, self._new_tokens, self._ended = thread, new_tokens, None
        self._generated = None
        try:
            yield
        finally:
            self._thread, self._new_tokens, self._known_mask, self._ended = outer

    def note_mask(self, mask: Any) -> None:
        """Within `generate`: the tokens of the forward to come, and those before, that are no padding: [B, T]."""
        self._known_mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def note_ended(self, ended: Tensor) -> None:
        """Within `generate`: rows that have ended, bool [B]; what they go on with is padding."""
        self._ended = ended if self._ended is None else self._ended | ended

    def note_generated(self, sequences: Tensor) -> None:
        """After `generate`: remember the last generated tokens, which no forward has seen yet."""
        request, self._generated = self._generated, None
        if request is not None and len(sequences) == request.rows:
            request.unfed = sequences[:, -1]

    def phase(self, request: Request) -> Phase:
        """Phase of a forward of a request that begins."""
        if self._new_tokens is not None and self.explicit is None:
            request.prompt_end, self._new_tokens = request.fed + self._new_tokens, None
            self._generated = request
        if self.explicit is not None:
            return self.explicit
        if request.prompt_end is not None and self.generating:
            return "prefill" if request.fed < request.prompt_end else "decode"
        return "prefill" if request.fed == 0 else "decode"

    def mask(self, given: Any, request: Request, count: int, device: torch.device) -> Tensor:
        """Which of a forward's tokens are no padding, as the mask that it was given says: bool [B, T]."""
        rows, fed = request.rows, request.fed
        if given is not None and (not isinstance(given, Tensor) or given.dim() != 2):
            if not self.generating:
                raise ValueError("attention_mask must have shape [batch, tokens] while a method is attached")
            given = self._known_mask
        if given is None:
            return torch.ones(rows, count, dtype=torch.bool, device=device)
        start = fed if given.shape[1] >= fed + count else given.shape[1] - count
        inside: Tensor = given[:, start : start + count].bool()
        return inside

    def read(self, request: Request, tokens: Tensor, mask: Tensor) -> Tensor:
        """Let a request take note of prompt tokens; return which of those in mask [B, T] count.

        Raises
        ------
        ValueError
            If a prompt that is generated from is padded on the right.
        """
        if request.unfed is not None and tokens.dim() == 2:
            # A generated token is no prompt, though a second turn is the first to feed it.
            mask = mask.clone()
            mask[:, 0] &= tokens[:, 0] != request.unfed
            request.unfed = None
        end = request.fed + tokens.shape[1]
        if self.generating and end == request.prompt_end and not bool(mask[:, -1].all()):
            raise ValueError(
                "generation needs left padding, got a prompt that is padded on the right; "
                "set tokenizer.padding_side = 'left'"
            )
        request.read(tokens, mask)
        return mask

    def unended(self, mask: Tensor) -> Tensor:
        """The mask of a decode step without rows that have ended: bool [B, T]."""
        if self._ended is None or len(self._ended) != len(mask):
            return mask
        return mask & ~self._ended.unsqueeze(1)
