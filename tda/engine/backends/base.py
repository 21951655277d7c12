"""The interface of a backend: kernels of one kind of device, and what they make of a model and a method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from tda.as_built import addition, is_linear
from tda.contracts import Method, Observer
from tda.engine.backends import plain
from tda.engine.backends.decoding import Decoding
from tda.engine.overrides import Overrides
from tda.engine.quantize import QuantizedWeights
from tda.interrupts import held_back
from tda.kernels import BackendInfo
from tda.kernels.activations import UndescribedError
from tda.kernels.hugepages import trim_malloc
from tda.kernels.weights import AS_BUILT, Weights, lay_rows
from tda.names import Execution
from tda.view import FFN, Linear


# long: the interface of backends, each part of it explained
class Backend(ABC):
    """Kernels of one kind of device, for one model.

    Attributes
    ----------
    name : str
        As `BackendInfo` has it.
    gathers : bool
        Whether the kernels run copies of what a prompt keeps; where not, torch does.
    """

    name: ClassVar[str]
    gathers: ClassVar[bool]

    def __init__(self, model: nn.Module, ffns: list[FFN]) -> None:
        self.model = model
        self.ffns = ffns

    # What can be said of it before anything is attached.

    @property
    @abstractmethod
    def missing(self) -> str | None:
        """Why the kernels cannot run the model's feed-forward networks where they lie; None if they can."""

    @property
    @abstractmethod
    def piecewise(self) -> str | None:
        """Why the kernels, where they run, do not run the model's whole step in one call; None if they do."""

    def prefers_copies(self, method: Method) -> bool:
        """Whether copies of what a prompt keeps are read faster than what it keeps where it lies."""
        return False

    def problem(self, method: Method) -> str | None:
        """Why the kernels cannot run the model as a method wants it; None if they can."""
        if self.missing is None and method.kind == "token":
            return f"the kernels do not know the rule of {method.name!r}"
        return self.missing

    def info(self, reason: str | None) -> BackendInfo:
        """The kernels at work, and why not on a whole step in one call; None if on that."""
        return BackendInfo(self.name, reason or "", "step" if reason is None else "layer")

    @cached_property
    def best(self) -> BackendInfo:
        """What runs the model's decode here: these kernels, or torch."""
        return BackendInfo("torch", self.missing) if self.missing is not None else self.info(self.piecewise)

    def auto(self, method: Method) -> Execution:
        """The execution that "auto" takes for a method that is not dense."""
        if self._masked(method, "auto") is not None:
            return "masked"
        copies = method.kind == "prompt" and (self.problem(method) is not None or self.prefers_copies(method))
        return "compact" if copies else "indexed"

    def runs(self, method: Method, execution: Execution) -> str:
        """What runs an execution of a method, or why it is refused."""
        if execution == "masked" or (execution == "compact" and not self.gathers and method.quantization is None):
            return "torch"
        reason = self._masked(method, execution)
        if reason is not None:
            return f"refused: {reason}"
        reason = self.problem(method)
        if reason is None:
            return str(self.best)
        refused = execution == "indexed" and method.kind == "prompt"
        return f"refused: {reason}" if refused else str(BackendInfo("torch", reason))

    def _masked(self, method: Method, asked: Execution) -> str | None:
        """Why a method can run "masked" only, "" where it or its user chose that; None where it can run otherwise."""
        if asked == "masked" or not method.fast:
            return ""
        if method.selects and self.ffns[0].experts is not None:
            return "only masked execution knows mixtures of experts yet"
        added = (found for ffn in self.ffns if (found := _addition(ffn)) is not None)
        if method.selects and (first := next(added, None)) is not None:
            return f"it would leave out what was added to the model: {first}"
        return None if method.quantization is None else self.problem(method)

    # What attaching does.

    def prepare(self, method: Method, asked: Execution, observe: Observer, overrides: Overrides) -> Decoding:
        """Prepare what runs decode; `overrides` undoes what that changes in the model.

        Raises
        ------
        ValueError
            If an execution is asked for that cannot run here.
        """
        reason = self._masked(method, asked)
        if reason and asked != "auto":
            raise ValueError(f"execution {asked!r} of {method.name!r} cannot run here: {reason}; use 'masked'")
        weights = AS_BUILT
        if method.quantizer is not None:
            weights = QuantizedWeights(self.model, self.ffns, method.quantizer, overrides, hold=reason is None)
        if reason is not None:
            return plain.whole(self.ffns, "masked", reason)
        if method.kind == "dense":
            own = method.quantization is not None or getattr(method, "dense_kernel", "torch") != "torch"
            return self._dense(weights, overrides) if own else plain.whole(self.ffns, "dense")
        if asked == "compact" and not self.gathers:
            return plain.compact(self.ffns)
        reason = self.problem(method)
        if reason is not None:
            return plain.skipping(self.ffns, method, asked, observe, reason)
        execution = self.auto(method) if asked == "auto" else asked
        in_rows((linear for ffn in self.ffns for linear in ffn.inputs), overrides)
        if execution == "compact":
            prepared = self._gathered(weights)
        else:
            prepared = self._indexed(method, weights, observe, overrides)
        self._own_linears(self.ffns, weights, overrides)  # last: a step is checked against what the model computes
        return prepared

    @abstractmethod
    def _dense(self, weights: Weights, overrides: Overrides) -> Decoding:
        """Prepare a decode that leaves nothing out."""

    @abstractmethod
    def _indexed(self, method: Any, weights: Weights, observe: Observer, overrides: Overrides) -> Decoding:
        """Prepare a `PromptMethod` or `ThresholdMethod` on weights that lie in rows, read where they lie."""

    def _lay(self, method: Method, weights: Weights, overrides: Overrides) -> None:
        """Let the weights that a step picks neurons of lie in rows, in place."""
        for ffn in self.ffns:
            with held_back():
                overrides.later(lay_rows(ffn.down, *self._beside(ffn, method), weights=weights))
        trim_malloc()

    def _gathered(self, weights: Weights) -> Decoding:
        """Prepare copies of what a prompt keeps; the weights stay as they lie."""
        return plain.compact(self.ffns)

    def _beside(self, ffn: FFN, method: Method) -> list[Linear]:
        """Projections of which a step reads the rows that it reads of the down projection, and no others."""
        return []

    @abstractmethod
    def _own_forward(self, linear: Any, weights: Weights) -> Callable[[Tensor], Tensor]:
        """Forward of a linear by the matrix-vector kernel; UndescribedError where that does not take its weights."""

    def _own_linears(self, ffns: list[FFN], weights: Weights, overrides: Overrides) -> int:
        """Let kernels run single tokens of every plain linear outside networks with executors.

        Returns how many linears they are.
        """
        count = 0
        for linear in linears_beside(self.model, ffns):
            module = linear.module
            if "forward" not in vars(module):
                in_rows([linear], overrides)
                with suppress(UndescribedError):
                    overrides.set(module, "forward", self._own_forward(module, weights))
                    count += 1
        return count


def linears_beside(model: nn.Module, ffns: Iterable[FFN]) -> list[Linear]:
    """The plain linears of a model that belong to none of these networks."""
    served = {id(linear.module) for ffn in ffns for linear in ffn.linears}
    return [Linear(module) for module in model.modules() if is_linear(module) and id(module) not in served]


def in_rows(linears: Iterable[Linear], overrides: Overrides) -> None:
    """Let weights that are stored transposed lie in rows, as the kernels read them."""
    for linear in linears:
        if linear.transposed and linear.weight.stride(1) != 1:
            with held_back():
                overrides.later(lay_rows(None, linear))


def _addition(ffn: FFN) -> str | None:
    """What was added to a feed-forward network that a fast path in its place would leave out; None if nothing was."""
    named = ((name, linear.module) for name, linear in ffn.named_linears())
    for name, module in (*named, ("the activation", ffn.act)):
        found = addition(module)
        if found is not None:
            return f"layer {ffn.index}: {name} has {found}"
    if ffn.block is not None and "forward" in vars(ffn.block):
        return f"layer {ffn.index}: the feed-forward network has a forward of its own"
    return None
