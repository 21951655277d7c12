"""Bytes and FLOPs of every operator of a request, counted in a pass of their own, since counting slows a run down."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tda.kernels.native.ops import COSTS
from tda.profiler.parts import PARTS, SEPARATOR
from tda.spans import PHASES

LOOKUPS = ("embedding", "index_select", "index", "gather", "embedding_bag", "_embedding_bag", "take")
"""Operators that read of their first input only what they look up."""
PLACED = ("index_copy_", "index_put_")
"""Operators that put their last input somewhere into the first, and touch nothing else of it: a static cache does."""
OVERWRITES = ("copy_", "fill_", "zero_")
"""Operators that write their first input and do not read it."""


def attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Of both products of attention over all pairs of tokens, masked or not: [B, heads, T, size] each."""
    B, heads, T, size = query.shape  # several of its heads may share one of keys and values
    return 2 * B * heads * T * key.shape[2] * (size + value.shape[3])


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # torch 2.11 refuses shared heads in its own formula, and has none for the CPU's operator.
    torch.ops.aten._scaled_dot_product_flash_attention: attention_flops,
    torch.ops.aten._scaled_dot_product_efficient_attention: attention_flops,
    torch.ops.aten._scaled_dot_product_cudnn_attention: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
}
"""FLOPs of a call that was made, by operator, from its arguments."""


@dataclass(frozen=True)
class Spot:
    """What operators are counted by: a phase, a part of the model, and the operator's name."""

    phase: str
    part: str
    op: str


@dataclass
class Count:
    """Totals over a pass.

    Attributes
    ----------
    calls : int
        How often the operator ran.
    bytes : int
        Read and written, each tensor once a call.
    flops : int or None
        Of matrix products and attention; None for operators without a formula.
    """

    calls: int = 0
    bytes: int = 0
    flops: int | None = None


class Counter(TorchDispatchMode):
    """Counts operators as the dispatcher sees them, and kernels as they tell; `spans` must record ranges meanwhile.

    Attributes
    ----------
    counts : dict
        Totals by spot.
    drivers : dict
        How often each driver range was opened, by phase.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[Spot, Count] = defaultdict(Count)
        self.drivers: dict[str, int] = defaultdict(int)
        self._open: list[tuple[str, str]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Recorder of `tda.spans`."""
        word = name.partition(SEPARATOR)[0]
        phase, part = self._open[-1] if self._open else ("", "")
        if not self._open and word in PHASES:
            self.drivers[word] += 1
            phase = part = word
        elif word in PHASES:
            phase, part = (phase if phase == "decode" else word), word
        elif word in PARTS:
            part = word
        self._open.append((phase, part))
        try:
            yield
        finally:
            self._open.pop()

    def cost(self, kernel: str, nbytes: int, flops: int) -> None:
        """Listener of `tda.spans`: a kernel that is no operator is its own."""
        if self._open:
            count = self.counts[Spot(*self._open[-1], kernel)]
            count.calls, count.bytes = count.calls + 1, count.bytes + nbytes
            if flops:
                count.flops = (count.flops or 0) + flops

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._open:
            name = f"{func.namespace}::{func._schema.name.partition('::')[2]}"
            count = self.counts[Spot(*self._open[-1], name)]
            count.calls += 1
            told = COSTS.get(func)
            if told is not None:
                cost = told(*args, **(kwargs or {}))
                count.bytes, count.flops = count.bytes + cost.bytes, (count.flops or 0) + cost.flops
                return output
            count.bytes += moved_bytes(func, (args, kwargs), output)
            formula = FORMULAS.get(func.overloadpacket)
            if formula is not None:
                count.flops = (count.flops or 0) + int(formula(*args, **(kwargs or {}), out_val=output))
        return output


def moved_bytes(func: Any, inputs: Any, output: Any) -> int:
    """Bytes that an operator reads and writes: each of its tensors once, views nothing."""
    read = _tensors(inputs)
    written = _tensors(output)
    storages = {tensor.untyped_storage().data_ptr() for tensor in read}
    fresh = [tensor for tensor in written if tensor.untyped_storage().data_ptr() not in storages]
    in_place = func._schema.is_mutable
    if written and not fresh and not in_place:
        return 0
    results = written if in_place else fresh
    name = func._schema.name.partition("::")[2]
    if name in (*LOOKUPS, *PLACED, *OVERWRITES):
        read = read[1:]
    if name in LOOKUPS:
        return 2 * sum(map(_bytes, results)) + sum(map(_bytes, read))
    if name in PLACED:
        return sum(map(_bytes, read)) + _bytes(read[-1])
    return sum(map(_bytes, read)) + sum(map(_bytes, results))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.device.type != "meta"]


def _bytes(tensor: Tensor) -> int:
    """Bytes behind a tensor: an expanded one has no more than its storage."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes()) if tensor.layout == torch.strided else tensor.nbytes
