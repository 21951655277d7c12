"""What a prompt leaves behind of a place's activations."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

SquaresSum = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], bool]
"""Kernel that adds to sums [B, F] the squares of a [B, T, F] where mask [B, T], times weights [F], relative or not.

It says whether it could."""


class Statistic(Protocol):
    """A sum over a prompt's tokens, kept per row and neuron."""

    sweep: SquaresSum
    """Kernel that adds squares where it can."""

    @property
    def tokens(self) -> Tensor:
        """Prompt tokens that counted, per row: int64 [B]."""

    def add(self, a: Tensor, mask: Tensor) -> None:
        """Add activations a [B, T, F] of the tokens where mask [B, T] is true."""

    def value(self) -> Tensor:
        """The statistic of the tokens so far: float32 [B, F]."""

    def take(self, rows: Tensor) -> None:
        """Let row i be what row rows[i] was: int64 [B]. Rows move where a cache's do."""
