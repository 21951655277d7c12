"""What runs a layer's feed-forward network in decode."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

Observer = Callable[[int, Tensor], None]
"""Told a layer's number and the sets, bool [N, F], that a per-token method kept of N tokens."""


class Executor(Protocol):
    """A fast path of one layer's FFN in decode."""

    def __call__(self, x: Tensor) -> Tensor:
        """FFN output for inputs x: [..., D] -> [..., D]."""


@runtime_checkable
class PromptExecutor(Executor, Protocol):
    """A fast path that takes a prompt's sets before it runs."""

    def load(self, kept: Tensor) -> None:
        """Take the kept neurons: bool [B, F]."""
