"""Random neurons: the control that any selection must beat."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tda.contracts import Prompt, PromptMethod
from tda.methods import METHODS
from tda.view import FFN, Statistic


@METHODS.register("random")
@dataclass(frozen=True, kw_only=True)
class Random(PromptMethod):
    """Keep a random set per prompt and layer.

    The set depends on the seed, the layer and the row's own tokens: the same prompt gets the same set alone or in
    any batch, and documents get different ones, so that no lucky set stands for all.

    Attributes
    ----------
    sparsity : float
        Fraction of neurons left out.
    seed : int
        Seed of the sets.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.seed) is not int:
            raise ValueError(f"seed must be a whole number; got {self.seed!r}")

    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """Uniform random scores: [B, F]."""
        return torch.stack([self._row(ffn, prompt.key(row)) for row in range(prompt.rows)]).to(prompt.tokens.device)

    def _row(self, ffn: FFN, key: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}/{ffn.index}/{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(ffn.F, generator=generator)
