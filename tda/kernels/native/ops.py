"""Operators of torch over the C kernels: what a compiler or a profiler sees of them. Eager calls go direct."""

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.library import Library, register_fake

from tda.spans import profiled

STAGE = "tda::decode_stage"
"""Operator that runs a part of a step, as profiles name it."""
_LIBRARY = Library("tda", "FRAGMENT")
_LIBRARY.define("decode_stage(Tensor(a!) scratch, int step, int first, int last) -> ()")
_LIBRARY.define("ffn(Tensor x, int executor) -> Tensor")
_LIBRARY.define("linear(Tensor x, int linear, int features) -> Tensor")
_OBJECTS: WeakValueDictionary[int, Any] = WeakValueDictionary()


class Cost(NamedTuple):
    """What a call moves and computes."""

    bytes: int
    flops: int


def register(of: Any) -> int:
    """Number by which an operator finds a step, an executor or a linear, for as long as that lives."""
    _OBJECTS[id(of)] = of
    return id(of)


def needs_operators() -> bool:
    """Whether a compiler or a profiler looks on, so that calls must be operators."""
    return torch.compiler.is_compiling() or profiled()


def _decode_stage(scratch: Tensor, step: int, first: int, last: int) -> None:
    _OBJECTS[step].run_stages(first, last)


def _ffn(x: Tensor, executor: int) -> Tensor:
    output: Tensor = _OBJECTS[executor].compute(x)
    return output


def _linear(x: Tensor, linear: int, features: int) -> Tensor:
    output: Tensor = _OBJECTS[linear].compute(x)
    return output


_LIBRARY.impl("decode_stage", _decode_stage, "CPU")
_LIBRARY.impl("ffn", _ffn, "CPU")
_LIBRARY.impl("linear", _linear, "CPU")
register_fake("tda::decode_stage", lambda scratch, step, first, last: None)
register_fake("tda::ffn", lambda x, executor: torch.empty_like(x))
register_fake("tda::linear", lambda x, linear, features: x.new_empty(*x.shape[:-1], features))

COSTS: dict[Any, Callable[..., Cost]] = {
    torch.ops.tda.decode_stage.default: lambda scratch, step, first, last: _OBJECTS[step].cost(first, last),
    torch.ops.tda.ffn.default: lambda x, executor: _OBJECTS[executor].cost(x),
    torch.ops.tda.linear.default: lambda x, linear, features: _OBJECTS[linear].cost(),
}
"""Cost of a call that was made, from its arguments: no formula over shapes knows how many neurons were read."""
