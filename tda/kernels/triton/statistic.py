"""Sums of squares over a prompt, straight from z: no float copy of [T, F] is made, and layers share a launch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tda.kernels.triton.launch import ArgumentKind, Form, Kernel, Tile
from tda.spans import cost, counted, span

SMALLEST: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).tiny)
"""A sum of squares below this counts as zero: its inverse may be infinite."""


def _factors(
    a, table, mask, factors, F: tl.int32, T: tl.int32, weighted: tl.int32,
    a_batch: tl.int64, a_token: tl.int64, a_neuron, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """factors[l, b, t] = 1/Σ_j (a_tj·w_j)²; 0 for a token that is masked or all zero, nan where it is not finite."""
    token, row, layer = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    own = tl.multiple_of(tl.load(table + 3 * layer).to(a.dtype), ALIGN)
    weights = tl.load(table + 3 * layer + 1).to(factors.dtype)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for start in range(0, F, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        value = tl.load(own + row * a_batch + token * a_token + j * a_neuron, mask=j < F, other=0.0).to(tl.float32)
        value *= tl.load(weights + j, mask=(j < F) & (weighted != 0), other=1.0)
        total += value * value
    norm = tl.sum(total, axis=0)
    left_out = (tl.load(mask + row * T + token) == 0) | (norm < SMALLEST)
    inverse = tl.where(norm < float("inf"), 1.0 / tl.where(norm < SMALLEST, 1.0, norm), float("nan"))
    place = (layer.to(tl.int64) * tl.num_programs(1) + row) * T + token
    tl.store(factors + place, tl.where(left_out, 0.0, inverse))


def _squares(
    a, table, factors, F: tl.int32, T: tl.int32, weighted: tl.int32, f_layer: tl.int64,
    a_batch: tl.int64, a_token: tl.int64, a_neuron, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """sums[l, b, j] += Σ_t (a_tj·w_j)²·factors[l, b, t]."""
    row, layer = tl.program_id(1).to(tl.int64), tl.program_id(2)
    own = tl.multiple_of(tl.load(table + 3 * layer).to(a.dtype), ALIGN)
    weights = tl.load(table + 3 * layer + 1).to(factors.dtype)
    sums = tl.load(table + 3 * layer + 2).to(factors.dtype)
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    weight = tl.load(weights + j, mask=(j < F) & (weighted != 0), other=1.0)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, T, ROWS):
        t = start + tl.arange(0, ROWS)
        factor = tl.load(factors + layer * f_layer + row * T + t, mask=t < T, other=0.0)
        # A masked token is not even read: what is not finite there must not count as 0·∞.
        within = (factor != 0)[:, None] & (j < F)[None, :]
        place = row * a_batch + t.to(tl.int64)[:, None] * a_token + j[None, :] * a_neuron
        value = tl.load(own + place, mask=within, other=0.0).to(tl.float32) * weight[None, :]
        total += value * value * factor[:, None]
    so_far = tl.load(sums + row * F + j, mask=j < F, other=0.0)
    tl.store(sums + row * F + j, so_far + tl.sum(total, axis=0), mask=j < F)


ACTIVATIONS: dict[str, ArgumentKind] = {"a_batch": "sixteen", "a_token": "sixteen", "a_neuron": "one"}
NORMS, SUMS = Tile(1, 1024), Tile(32, 64)
FACTORS = Kernel(
    _factors,
    {
        "a": "weights", "table": "int64", "mask": "uint8", "factors": "float32", "F": "sixteen", "T": "number",
        "weighted": "number", **ACTIVATIONS,
    },
    {"norms": Form({"ALIGN": 16}, (), True, (NORMS,))},
    Tile(1, 16),
)  # fmt: skip
SQUARES = Kernel(
    _squares,
    {
        "a": "weights", "table": "int64", "factors": "float32", "F": "sixteen", "T": "number", "weighted": "number",
        "f_layer": "number", **ACTIVATIONS,
    },
    {"sums": Form({"ALIGN": 16}, (), True, (SUMS,))},
    Tile(4, 16),
)  # fmt: skip
MOST_BYTES = 1 << 28
"""Activations that wait for a launch at most: those of half the layers of an 8B model with a prompt of 512 tokens."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    """What one layer adds; it shares a launch with others that are `alike`."""

    sums: Tensor
    a: Tensor
    mask: Tensor
    weights: Tensor | None
    relative: bool
    version: int
    alike: tuple[object, ...]


class SquaresKernel:
    """Adds the squares of a prompt's activations; layers wait for each other, since launches cost more than kernels.

    Called as `tda.view.SquaresSum` says: sums [B, F], a [B, T, F], mask [B, T], weights [F] or None, relative. It
    holds the activations, `MOST_BYTES` of them at most, until `finish`.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []

    def __call__(self, sums: Tensor, a: Tensor, mask: Tensor, weights: Tensor | None, relative: bool) -> bool:
        """Add to sums, at the latest in `finish`; it can."""
        alike = (a.shape, a.stride(), a.dtype, a.device, id(mask), weights is None, relative)
        if self._waiting and alike != self._waiting[0].alike:
            self._add()
        self._waiting.append(_Waiting(sums, a, mask, weights, relative, _version(a), alike))
        if len(self._waiting) * a.nbytes >= MOST_BYTES:
            self._add()
        return True

    def __deepcopy__(self, memo: dict[int, object]) -> "SquaresKernel":
        """A copied request's statistics are added to by the same kernels; nothing waits between forwards."""
        return self

    def finish(self) -> None:
        """Add what waits, in a range of its own."""
        if self._waiting:
            with span("statistic"):
                self._add()

    def _add(self) -> None:
        waiting, self._waiting = self._waiting, []
        if any(_version(one.a) != one.version for one in waiting):
            raise ValueError("activations were changed in place after the method had seen them, in the same forward")
        _launch(waiting)


def _version(a: Tensor) -> int:
    """How often a tensor was changed; nobody counts that of one that was made in inference mode."""
    return 0 if a.is_inference() else a._version


def _launch(waiting: Sequence[_Waiting]) -> None:
    first, count = waiting[0], len(waiting)
    a, mask, relative = first.a, first.mask, first.relative
    B, T, F = a.shape
    addresses = [
        [one.a.data_ptr(), (one.sums if one.weights is None else one.weights).data_ptr(), one.sums.data_ptr()]
        for one in waiting
    ]
    given: dict[str, Any] = {
        "a": max((one.a for one in waiting), key=lambda one: one.data_ptr() % 16),  # aligned if all are
        "table": torch.tensor(addresses, dtype=torch.int64, device=a.device), "F": F, "T": T,
        "weighted": int(first.weights is not None),
        "a_batch": a.stride(0), "a_token": a.stride(1), "a_neuron": a.stride(2),
    }  # fmt: skip
    if relative:
        mask = (
            mask
            if mask.is_contiguous() and mask.data_ptr() % 16 == 0
            else mask.clone(memory_format=torch.contiguous_format)
        )
        given["mask"] = mask.view(torch.uint8)
        given["factors"] = torch.empty(count, B, T, dtype=torch.float32, device=a.device)
        FACTORS.launch(FACTORS.entry("norms", a.dtype, given, NORMS), (T, B, count), given)
    else:
        given["factors"] = mask.to(torch.float32).contiguous()
    given["f_layer"] = B * T if relative else 0
    entry = SQUARES.entry("sums", a.dtype, given, SUMS)
    SQUARES.launch(entry, (triton.cdiv(F, entry.block.columns), B, count), given)
    if counted():
        read, factors = sum(one.a.nbytes for one in waiting), given["factors"].nbytes
        if relative:
            cost(FACTORS.name, read + factors, 0)
        cost(SQUARES.name, read + factors + 2 * sum(one.sums.nbytes for one in waiting), 0)
