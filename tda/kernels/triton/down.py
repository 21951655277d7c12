"""The down projection over listed neurons, from a layout with a row for each neuron."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tda.kernels.triton.launch import Form, Kernel, Tile
from tda.kernels.triton.rows import Lists
from tda.kernels.triton.tuning import chosen
from tda.spans import cost, counted
from tda.view import Linear


def _down(
    z, w, parts, bias, y, index, counts, F: tl.int32, D: tl.int32, EACH: tl.int32, biased: tl.int32,
    w_row: tl.int64, w_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """y[t] = Σ z[t, j]·w[j] + bias over row t's list, or its parts[t, s] over every SPLITS-th block from s."""
    token, split = tl.program_id(2).to(tl.int64), tl.program_id(1)
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(counts + token // EACH)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(split * ROWS, end, SPLITS * ROWS):
        place = start + tl.arange(0, ROWS)
        inside = place < end
        j = tl.load(index + (token // EACH) * F + place, mask=inside, other=0).to(tl.int64)
        factor = tl.load(z + token * F + j, mask=inside, other=0.0)
        within = inside[:, None] & (d < D)[None, :]
        loaded = tl.load(w + j[:, None] * w_row + d[None, :] * w_column, mask=within, other=0.0)
        total += factor[:, None] * loaded.to(tl.float32)
    value = tl.sum(total, axis=0)
    if SPLITS == 1:
        value += tl.load(bias + d, mask=(d < D) & (biased != 0), other=0.0).to(tl.float32)
        tl.store(y + token * D + d, value.to(y.dtype.element_ty), mask=d < D)
    else:
        tl.store(parts + (token * SPLITS + split) * D + d, value, mask=d < D)


def _finish(
    parts, bias, y, D: tl.int32, biased: tl.int32, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr
):
    """y[t] = Σ_s parts[t, s] + bias, always in one order: atomic additions would not repeat bit for bit."""
    token = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    s = tl.arange(0, SPLITS)
    loaded = tl.load(parts + (token * SPLITS + s)[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
    value = tl.sum(loaded, axis=0) + tl.load(bias + d, mask=(d < D) & (biased != 0), other=0.0).to(tl.float32)
    tl.store(y + token * D + d, value.to(y.dtype.element_ty), mask=d < D)


SIZES = ("ROWS", "COLUMNS", "SPLITS")
WHOLE = (Tile(256, 32, 8, 3), Tile(128, 32, 8, 3), Tile(128, 64, 8, 3))
SPLIT = (
    Tile(32, 64, 4, 2, 8),  # of these, with 16 splits, the best on an H100
    Tile(32, 64, 4, 2, 16),
    Tile(32, 64, 4, 2, 4),
    Tile(16, 128, 4, 3, 16),
    Tile(32, 128, 8, 3, 8),
    Tile(32, 256, 8, 3, 16),
)
FINISH = tuple(Tile(1, 256, splits=splits) for splits in sorted({block.splits for block in SPLIT}))
DOWN = Kernel(
    _down,
    {
        "z": "float32", "w": "weights", "parts": "float32", "bias": "weights", "y": "out", "index": "int32",
        "counts": "int32", "F": "number", "D": "sixteen", "EACH": "number", "biased": "number",
        "w_row": "sixteen", "w_column": "one",
    },
    {"split": Form({}, ("bias", "y"), False, SPLIT), "whole": Form({}, ("parts",), False, WHOLE)},
    Tile(16, 32),
    sizes=SIZES,
)  # fmt: skip
_FINISHED = Kernel(
    _finish,
    {"parts": "float32", "bias": "weights", "y": "out", "D": "sixteen", "biased": "number"},
    {"sum": Form({}, (), False, FINISH)},
    Tile(1, 64),
    sizes=SIZES,
)


def down(z: Tensor, linear: Linear, lists: Lists, y: Tensor, *, block: Tile | None = None) -> None:
    """Fill y [N, D] with the down projection of z [N, F] over each row's listed neurons.

    Parameters
    ----------
    z : Tensor
        float32, contiguous; read at listed neurons only.
    linear : Linear
        Fastest where its weight [D, F] is stored transposed (`lay_rows`).
    lists : Lists
        For each batch row; its tokens lie one after the other in z.
    y : Tensor
        Contiguous, of the type of the weights.
    block : Tile, optional
        One of `SPLIT` or `WHOLE`; else the one that was measured to be best, or the default.
    """
    N, F = z.shape
    D = linear.out_features
    weight = linear.weight.t()  # [F, D]
    block = block or chosen(DOWN, "split", weight.dtype, (F, D))
    form = "split" if block.splits > 1 else "whole"
    parts = torch.empty(N, block.splits, D, dtype=torch.float32, device=z.device)
    given = {
        "z": z, "w": weight, "bias": weight if linear.bias is None else linear.bias, "y": y, "index": lists.index,
        "counts": lists.counts, "F": F, "D": D, "EACH": N // len(lists.counts), "biased": int(linear.bias is not None),
        "w_row": weight.stride(0), "w_column": weight.stride(1),
        "parts": parts,
    }  # fmt: skip
    entry = DOWN.entry(form, weight.dtype, given, block)
    DOWN.launch(entry, (triton.cdiv(D, entry.block.columns), entry.block.splits, N), given)
    if counted():
        read = lists.total(N)
        written = parts.nbytes if form == "split" else y.nbytes
        cost(DOWN.name, read * (D * weight.element_size() + z.element_size()) + written, 2 * read * D)
    if form == "split":
        last = _FINISHED.entry("sum", weight.dtype, given, Tile(1, 256, splits=entry.block.splits))
        _FINISHED.launch(last, (triton.cdiv(D, last.block.columns), N), given)
        if counted():
            cost(_FINISHED.name, parts.nbytes + y.nbytes, 0)
