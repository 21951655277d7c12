"""What a backend prepares to run an attached method's decode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from tda.contracts import PromptExecutor
from tda.kernels import BackendInfo
from tda.kernels.compact import CompactFFN
from tda.kernels.native.statistic import add_squares
from tda.names import Ran
from tda.selection import Selection
from tda.view import FFN, SquaresSum


class DecodeStep(Protocol):
    """Runs a whole decode step, a token of each row, in one call."""

    def problem(
        self, cache: Any, rows: int, position: Tensor | None = None, mask: Tensor | None = None, tokens: int = 0
    ) -> str | None:
        """Why a step cannot run; None if it can.

        Parameters
        ----------
        cache : object
            The key-value cache.
        rows : int
            Batch rows.
        position, mask : Tensor or None
            As the model's forward was given them.
        tokens : int
            How many the mask must tell of at least.
        """

    def __call__(
        self, token: Tensor, position: Tensor, cache: Any, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [B, 1, V] after one more token, and what a per-token method kept: uint8 [L, B, F]."""


@dataclass
class Decoding:
    """What runs the decode of one attachment.

    Attributes
    ----------
    ffns : list of FFN
        The model's feed-forward networks.
    execution : {"compact", "indexed", "dense", "masked"}
        What decode runs as where it can be fast; "masked" where no fast path was asked for or exists.
    backend : BackendInfo
        Kernels that run it.
    executors : sequence of Executor
        One per layer; empty where the model's own code computes the FFN.
    step : DecodeStep or None
        What runs a whole decode step; None where layers are run one by one.
    loaded : callable
        Lets the step know what the executors have loaded.
    sweep : callable
        Kernel that sums a prompt's squares where it can.
    swept : callable
        Ends, after a forward, what `sweep` has left waiting.
    gathering : callable
        Makes an executor over gathered weights, where `executors` are none.
    warm : bool
        Whether it has served a request.
    """

    ffns: list[FFN]
    execution: Ran
    backend: BackendInfo
    executors: Sequence[Any] = ()
    step: DecodeStep | None = None
    loaded: Callable[[], None] = lambda: None
    sweep: SquaresSum = add_squares
    swept: Callable[[], None] = lambda: None
    gathering: Callable[[FFN], PromptExecutor] = CompactFFN
    warm: bool = False

    @cached_property
    def gathered(self) -> Sequence[Any]:
        """Executors over gathered weights, made when they are first needed: they pay where rows share a set."""
        return self.executors if self.execution == "compact" else [self.gathering(ffn) for ffn in self.ffns]

    def layers(self, execution: Ran | None) -> Sequence[Any]:
        """The executors of an execution, one per layer; empty where the model's own code runs."""
        if execution == self.execution:
            return self.executors
        return self.gathered if execution == "compact" else ()

    def load(self, execution: Ran, selection: Selection) -> None:
        """Let the executors of an execution take a prompt's sets."""
        for executor, kept in zip(self.layers(execution), selection, strict=True):
            executor.load(kept)
        if execution == self.execution:
            self.loaded()
