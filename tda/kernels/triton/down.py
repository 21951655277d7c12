"""The down projection over listed neurons, from a layout with a row for each neuron."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tda.kernels.triton import interpreted
from tda.kernels.triton.rows import Lists
from tda.kernels.triton.tuning import Config, choose
from tda.view import Linear

SPLITS = 2 if interpreted() else 16
"""Programs that share the neurons of a block of columns, since columns alone are too few for a large GPU."""
# Neurons by columns of a block; the first for the interpreter.
CANDIDATES = (
    Config(16, 32),
    *(Config(rows, columns, warps, 3) for rows in (16, 32) for columns in (64, 128, 256) for warps in (4, 8)),
)
FINISH = 256


@triton.jit
def _down(
    z, w, parts, index, counts, F, D, EACH, w_row, w_column,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """parts[t, s] = Σ z[t, j]·w[j] over the blocks s, s + SPLITS, … of row t's list: equal shares of any count."""
    token, split = tl.program_id(2).to(tl.int64), tl.program_id(1)
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(counts + token // EACH)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(split * ROWS, end, SPLITS * ROWS):
        place = start + tl.arange(0, ROWS)
        inside = place < end
        j = tl.load(index + (token // EACH) * F + place, mask=inside, other=0).to(tl.int64)
        factor = tl.load(z + token * F + j, mask=inside, other=0.0).to(tl.float32)
        within = inside[:, None] & (d < D)[None, :]
        loaded = tl.load(w + j[:, None] * w_row + d[None, :] * w_column, mask=within, other=0.0)
        total += factor[:, None] * loaded.to(tl.float32)
    tl.store(parts + (token * SPLITS + split) * D + d, tl.sum(total, axis=0), mask=d < D)


@triton.jit
def _finish(parts, bias, y, D, BIAS: tl.constexpr, SPLITS: tl.constexpr, COLUMNS: tl.constexpr):
    """y[t] = Σ_s parts[t, s] + bias, always in one order: atomic additions would not repeat bit for bit."""
    token = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    s = tl.arange(0, SPLITS)
    loaded = tl.load(parts + (token * SPLITS + s)[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
    value = tl.sum(loaded, axis=0)
    if BIAS:
        value += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y + token * D + d, value.to(y.dtype.element_ty), mask=d < D)


def down(z: Tensor, linear: Linear, lists: Lists, y: Tensor) -> None:
    """Fill y [N, D] with the down projection of z [N, F] over each row's listed neurons.

    Parameters
    ----------
    z : Tensor
        Contiguous; read at listed neurons only.
    linear : Linear
        Fastest where its weight [D, F] is stored transposed (`lay_rows`).
    lists : Lists
        For each batch row; its tokens lie one after the other in z.
    y : Tensor
        Contiguous.
    """
    N, F = z.shape
    D = linear.out_features
    weight = linear.weight.t()  # [F, D]
    parts = torch.empty(N, SPLITS, D, dtype=torch.float32, device=z.device)

    def launch(config: Config, lists: Lists) -> None:
        _down[(triton.cdiv(D, config.columns), SPLITS, N)](
            z, weight, parts, lists.index, lists.counts, F, D, N // len(lists.counts), *weight.stride(),
            SPLITS=SPLITS, ROWS=config.rows, COLUMNS=config.columns, **config.options,
        )  # fmt: skip

    config = choose(("down", N, F, D, weight.dtype), CANDIDATES, lambda config: launch(config, lists.half()))
    launch(config, lists)
    _finish[(triton.cdiv(D, FINISH), N)](
        parts, linear.bias, y, D, BIAS=linear.bias is not None, SPLITS=SPLITS, COLUMNS=FINISH
    )
