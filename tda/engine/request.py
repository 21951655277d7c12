"""The state of one request: its prompt's statistic, and the neurons that it keeps."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tda.contracts import FFN, Prompt, PromptMethod, Statistic
from tda.names import Ran
from tda.thresholds import Thresholds


@dataclass
class Request:
    """What belongs to one key-value cache.

    Attributes
    ----------
    statistics : list
        One per layer; None where the method needs none.
    kept : list of Tensor or None
        The selection, bool [B, F] per layer; None until it is made, and again when the prompt goes on.
    left_out : Tensor or None
        Share left out by that selection: float64 [L, B].
    execution : str or None
        Execution chosen for this selection.
    unfed : Tensor or None
        The last generated token of each row, which no forward has seen yet: int64 [B].
    """

    statistics: list[Statistic | None]
    rows: int
    device: torch.device
    kept: list[Tensor] | None = None
    left_out: Tensor | None = None
    execution: Ran | None = None
    unfed: Tensor | None = None
    _prompt: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def read(self, tokens: Tensor, mask: Tensor) -> None:
        """Take note of prompt tokens [B, T] (or embeddings [B, T, D]) where mask [B, T] is true."""
        self._prompt.append((tokens, mask))
        self.kept = None

    def prompt(self) -> Prompt:
        """What a method may know of the prompt so far."""
        tokens = torch.zeros(self.rows, dtype=torch.int64, device=self.device)
        for _, mask in self._prompt:
            tokens += mask.sum(1)
        return Prompt(tokens=tokens, key=self._key)

    def _key(self, row: int) -> int:
        digest = hashlib.blake2b(digest_size=8)
        for tokens, mask in self._prompt:
            digest.update(tokens[row][mask[row]].double().cpu().numpy().tobytes())
        return int.from_bytes(digest.digest(), "little")

    def choose(self, method: PromptMethod, ffns: list[FFN], thresholds: Thresholds | None) -> list[Tensor]:
        """Kept neurons of every layer, from the prompt so far: bool [B, F] each."""
        prompt = self.prompt()
        return [
            method.select(ffn, statistic, prompt, thresholds)
            for ffn, statistic in zip(ffns, self.statistics, strict=True)
        ]

    def keep(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """Hold a selection."""
        self.kept = list(kept)
        self.left_out = torch.stack([1 - layer.double().mean(1) for layer in self.kept])
        return self.kept
