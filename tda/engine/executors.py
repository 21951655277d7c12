"""What runs an attached method's decode here: kernels in C on a CPU, in Triton on CUDA, else torch operators."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tda.as_built import addition, is_linear, modules_of
from tda.contracts import (
    Executor,
    Method,
    Observer,
    PromptExecutor,
    PromptMethod,
    ThresholdMethod,
    TokenMethod,
    WeightMethod,
)
from tda.engine.graph import GraphStep
from tda.engine.overrides import Overrides
from tda.engine.rotary import is_dynamic
from tda.engine.rounding import RoundedLinears
from tda.engine.selfcheck import ADDED, check_step, structure
from tda.families import family_of
from tda.kernels import native, triton
from tda.kernels.compact import CompactFFN
from tda.kernels.indexed import IndexedFFN
from tda.kernels.native import describe
from tda.kernels.native.describe import UndescribedError
from tda.kernels.native.ffn import GatheredFFN, ListedFFN, NativeFFN, ThresholdFFN
from tda.kernels.native.layout import lay_rows
from tda.kernels.native.linear import NativeLinear
from tda.kernels.native.statistic import add_squares as native_sweep
from tda.kernels.native.step import Step
from tda.kernels.pages import give_back
from tda.names import Execution, Ran
from tda.prompt_statistics import Sweep
from tda.view import FFN, Linear

SHORT = 4096
"""Bytes of a neuron's weights below which "auto" copies what a prompt keeps.

At every jump over neurons a processor has fetched about 1 KiB in vain, which it expected to be read next: much of a
short neuron, little of a long one.
"""


@dataclass
class Executors:
    """The fast paths of one attachment.

    Attributes
    ----------
    ffns : list of FFN
        The model's feed-forward networks.
    execution : {"compact", "indexed", "dense", "masked"}
        What decode runs as where it can be fast; "masked" where no fast path was asked for or exists.
    backend : str
        Kernels that run it: "c", "triton" or "torch", and for "torch" why not ours.
    layers : list of Executor
        One per layer; empty where the model's own code computes the FFN.
    step : Step or None
        What runs a whole decode step of one row; None where layers are run one by one.
    kept : Tensor or None
        Neurons that a whole step of a per-token method kept: uint8 [L, F].
    graph : GraphStep or None
        What runs a decode step on CUDA, of several rows too.
    sweep : callable
        Kernel that sums a prompt's squares where it can.
    gathering : callable
        Makes an executor over gathered weights, where `layers` are none.
    """

    ffns: list[FFN]
    execution: Ran
    backend: str
    layers: Sequence[Executor] = ()
    step: Step | None = None
    kept: Tensor | None = None
    graph: GraphStep | None = None
    sweep: Sweep = native_sweep
    gathering: Callable[[FFN], PromptExecutor] = CompactFFN

    @cached_property
    def gathered(self) -> Sequence[Executor]:
        """Executors over gathered weights, made when they are first needed: they pay where rows share a set."""
        return self.layers if self.execution == "compact" else [self.gathering(ffn) for ffn in self.ffns]

    def running(self, execution: Ran | None) -> Sequence[Executor]:
        """The executors of an execution, one per layer; empty where the model's own code runs."""
        if execution == self.execution:
            return self.layers
        return self.gathered if execution == "compact" else ()

    def load(self, execution: Ran, kept: Sequence[Tensor]) -> None:
        """Let the executors of an execution take a prompt's sets: bool [B, F] per layer."""
        for executor, layer in zip(self.running(execution), kept, strict=True):
            assert isinstance(executor, PromptExecutor)
            executor.load(layer)
        if self.step is not None and execution == self.execution:
            self.step.load([executor.description for executor in self.layers if isinstance(executor, NativeFFN)])


def executors(
    model: nn.Module,
    ffns: list[FFN],
    method: Method,
    asked: Execution,
    observe: Observer,
    overrides: Overrides,
) -> Executors:
    """Choose and prepare what runs decode; `overrides` undoes what that changes in the model.

    Raises
    ------
    ValueError
        If execution "indexed" is asked for a method that chooses per prompt, and the kernels cannot run here.
    """
    if isinstance(method, WeightMethod):
        return _rounded(model, ffns, method, asked, overrides)
    if asked == "masked" or not method.fast:
        return Executors(ffns, "masked", "torch")
    if ffns[0].experts is not None and isinstance(method, PromptMethod | TokenMethod):
        if asked != "auto":
            raise ValueError(f"execution {asked!r} does not know mixtures of experts yet; use 'masked'")
        return Executors(ffns, "masked", "torch (mixtures of experts run masked)")
    added = next((found for ffn in ffns if (found := _addition(ffn)) is not None), None)
    if added is not None and isinstance(method, PromptMethod | TokenMethod):
        if asked != "auto":
            raise ValueError(f"execution {asked!r} would leave out what was added to the model: {added}; use 'masked'")
        return Executors(ffns, "masked", f"torch ({added})")
    if not isinstance(method, PromptMethod | TokenMethod):
        if getattr(method, "dense_kernel", "torch") == "torch":
            return Executors(ffns, "dense", "torch")
        return _dense_on_cuda(model, ffns, overrides) if _on_cuda(ffns) else _dense(model, ffns, overrides)
    if asked == "compact" and _on_cuda(ffns):
        return _compact(ffns, "torch")
    reason = kernel_problem(ffns)
    if reason is None and not isinstance(method, PromptMethod | ThresholdMethod):
        reason = f"the kernels do not know the rule of {method.name!r}"
    if reason is None:
        _in_rows([linear for ffn in ffns for linear in ffn.inputs], overrides)
        if asked == "compact" or (asked == "auto" and isinstance(method, PromptMethod) and prefers_copies(ffns)):
            prepared = _gathered(model, ffns)
        else:
            for ffn in ffns:
                overrides.later(lay_rows(ffn.down, *_beside(ffn, method)))
            give_back()
            prepare = _triton if _on_cuda(ffns) else _native
            prepared = prepare(model, ffns, method, observe)
        _own_linears(model, ffns, overrides)  # last: a step is checked against what the model itself computes
        return prepared
    if isinstance(method, TokenMethod):
        looked_up = [IndexedFFN(ffn, method, observe) for ffn in ffns]
        return Executors(ffns, "indexed", f"torch ({reason})", looked_up)
    if asked == "indexed":
        raise ValueError(f"execution 'indexed' of {method.name!r} needs kernels of our own: {reason}; use 'compact'")
    return _compact(ffns, f"torch ({reason})")


def kernel_problem(ffns: Sequence[FFN]) -> str | None:
    """Why our kernels cannot run a model's feed-forward networks where they lie; None if they can."""
    return triton.problem(ffns) if _on_cuda(ffns) else native.problem(ffns)


def own_kernels(model: nn.Module, ffns: list[FFN]) -> str:
    """Name of our kernels where they can run a model's networks, and why they do not run its whole step in one call."""
    if _on_cuda(ffns):
        return _named_on_cuda(_graph_problem(model))
    return _named(_step(model, ffns, [describe.feed_forward(ffn) for ffn in ffns])[1])


def prefers_copies(ffns: Sequence[FFN]) -> bool:
    """Whether reading neurons where they lie would mean jumping over short ones on a CPU."""
    ffn = ffns[0]
    return not _on_cuda(ffns) and (len(ffn.inputs) + 1) * ffn.D * ffn.up.weight.element_size() < SHORT


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


def _beside(ffn: FFN, method: Method) -> list[Linear]:
    """Projections of which a decode step reads the rows that it reads of the down projection, and no others."""
    if _on_cuda([ffn]):
        return []
    if isinstance(method, PromptMethod):
        return [linear for linear in ffn.inputs if linear.is_module]
    gate_decides = isinstance(method, ThresholdMethod) and method.activation == "gate" and ffn.gate is not None
    return [ffn.up] if gate_decides and ffn.up.is_module else []


def _in_rows(linears: Iterable[Linear], overrides: Overrides) -> None:
    """Let weights that are stored transposed lie in rows, as the kernels read them."""
    for linear in linears:
        if linear.transposed and linear.weight.stride(1) != 1:
            overrides.later(lay_rows(None, linear))


def _gathered(model: nn.Module, ffns: list[FFN]) -> Executors:
    """Executors on a CPU over copies of what is kept; the model's weights stay as they lie."""
    layers = [GatheredFFN(ffn) for ffn in ffns]
    step, reason = _step(model, ffns, [layer.description for layer in layers])
    return Executors(ffns, "compact", _named(reason), layers, step)


def _compact(ffns: list[FFN], backend: str) -> Executors:
    return Executors(ffns, "compact", backend, [CompactFFN(ffn) for ffn in ffns])


def _on_cuda(ffns: Sequence[FFN]) -> bool:
    return ffns[0].up.weight.is_cuda


def _dense(model: nn.Module, ffns: list[FFN], overrides: Overrides) -> Executors:
    reason = native.problem(ffns)
    if reason is not None:
        return Executors(ffns, "dense", f"torch ({reason})")
    _in_rows([linear for ffn in ffns for linear in ffn.inputs], overrides)
    step, reason = _step(model, ffns, [describe.feed_forward(ffn) for ffn in ffns])
    if not _own_linears(model, [], overrides) and step is None:
        return Executors(ffns, "dense", f"torch ({reason})")
    return Executors(ffns, "dense", _named(reason), step=step)


def _rounded(
    model: nn.Module, ffns: list[FFN], method: WeightMethod, asked: Execution, overrides: Overrides
) -> Executors:
    reason = "" if asked == "masked" else native.problem(ffns)
    linears = RoundedLinears(model, method, overrides, hold=reason is None)
    if reason is not None:
        if asked == "indexed":
            raise ValueError(f"execution 'indexed' of {method.name!r} needs kernels of our own: {reason}; use 'masked'")
        return Executors(ffns, "masked", f"torch ({reason})" if reason else "torch")
    descriptions = [describe.feed_forward(ffn, linears.matrix) for ffn in ffns]
    step, reason = _step(model, ffns, descriptions, linears.matrix)
    _own_linears(model, [], overrides, linears.matrix)
    return Executors(ffns, "dense", _named(reason), step=step)


def _native(
    model: nn.Module,
    ffns: list[FFN],
    method: PromptMethod | TokenMethod,
    observe: Observer,
) -> Executors:
    """Executors on a CPU; what the method leaves out lies in rows."""
    if isinstance(method, PromptMethod):
        listed = [ListedFFN(ffn) for ffn in ffns]
        step, reason = _step(model, ffns, [layer.description for layer in listed])
        return Executors(ffns, "indexed", _named(reason), listed, step, gathering=GatheredFFN)
    assert isinstance(method, ThresholdMethod)
    with torch.inference_mode(False):
        kept = torch.zeros(len(ffns), max(ffn.F for ffn in ffns), dtype=torch.uint8)
    layers = [ThresholdFFN(ffn, method, observe, kept[ffn.index]) for ffn in ffns]
    step, reason = _step(model, ffns, [layer.description for layer in layers])
    return Executors(ffns, "indexed", _named(reason), layers, step, kept)


def _dense_on_cuda(model: nn.Module, ffns: list[FFN], overrides: Overrides) -> Executors:
    reason = triton.problem(ffns) or _graph_problem(model)
    if reason is not None:
        return Executors(ffns, "dense", f"torch ({reason})")
    _own_linears(model, [], overrides)
    return Executors(ffns, "dense", "triton", graph=GraphStep(model))


def _graph_problem(model: nn.Module) -> str | None:
    """Why a model's step cannot be captured; None if it can."""
    if structure(model) is None:
        return ADDED
    if any(map(is_dynamic, modules_of(model))):
        return "its rotary positions change with the length of the sequence"
    return GraphStep.model_problem(model)


def _triton(
    model: nn.Module,
    ffns: list[FFN],
    method: PromptMethod | TokenMethod,
    observe: Observer,
) -> Executors:
    """Executors on CUDA; the down projections lie in rows."""
    from tda.kernels.triton import ffn as kernels
    from tda.kernels.triton.statistic import add_squares

    reason = _graph_problem(model)
    backend = _named_on_cuda(reason)
    if isinstance(method, PromptMethod):
        listed = [kernels.ListedFFN(ffn) for ffn in ffns]
        graph = GraphStep(model) if reason is None else None
        return Executors(ffns, "indexed", backend, listed, graph=graph, sweep=add_squares)
    assert isinstance(method, ThresholdMethod)
    layers = [kernels.ThresholdFFN(ffn, method, observe) for ffn in ffns]
    graph = GraphStep(model, lambda: [layer.kept for layer in layers]) if reason is None else None
    return Executors(ffns, "indexed", backend, layers, graph=graph)


def _own_linears(
    model: nn.Module, ffns: list[FFN], overrides: Overrides, matrices: describe.Matrices = describe.matrix
) -> int:
    """Let the matrix-vector kernels run single tokens of every plain linear outside the networks with executors.

    Returns how many linears they are.
    """
    count = 0
    served = {id(linear.module) for ffn in ffns for linear in ffn.linears}
    for module in model.modules():
        if is_linear(module) and id(module) not in served and "forward" not in vars(module):
            _in_rows([Linear(module)], overrides)
            with suppress(UndescribedError):
                overrides.set(module, "forward", _own_forward(module, matrices))
                count += 1
    return count


def _own_forward(linear: Any, matrices: describe.Matrices) -> Callable[[Tensor], Tensor]:
    if not linear.weight.is_cuda:
        return NativeLinear(linear, linear.forward, matrices)
    if linear.weight.dtype not in triton.DTYPES:
        raise UndescribedError(f"the kernels in Triton do not take {linear.weight.dtype}")
    from tda.kernels.triton.rows import own_forward

    return own_forward(linear, linear.forward)


def _named(reason: str | None) -> str:
    return "c" if reason is None else f"c, layer by layer ({reason})"


def _named_on_cuda(reason: str | None) -> str:
    return "triton" if reason is None else f"triton, without a graph ({reason})"


def _step(
    model: nn.Module, ffns: list[FFN], descriptions: Sequence[Any], matrices: describe.Matrices = describe.matrix
) -> tuple[Step | None, str | None]:
    """The whole step of a model, or why there is none."""
    family = family_of(model)
    if family.decoder is None:
        return None, f"family {family.name!r} does not describe its decoder"
    if len({ffn.F for ffn in ffns}) > 1:
        return None, "its layers differ in size"
    try:
        decoder = family.decoder(model)
        reason = check_step(model, decoder, ffns)
        return (None, reason) if reason is not None else (Step(decoder, descriptions, matrices), None)
    except UndescribedError as error:
        return None, str(error)
