"""Products of one token with rows of weights, all of them or those that a list names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from tda.kernels.triton.functions import activate
from tda.kernels.triton.tuning import Config, choose
from tda.view import Linear

# Rows by columns of a block. The first is what the interpreter runs: small, so that tests meet many blocks.
CANDIDATES = (
    Config(16, 32),
    *(Config(rows, columns, warps, 3) for rows in (4, 8, 16) for columns in (256, 512) for warps in (4, 8)),
)


@dataclass(frozen=True, eq=False)
class Lists:
    """Neurons kept by each batch row: ascending indices, int32 [B, F], of which ``counts``, int32 [B], are valid."""

    index: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, rows: int, F: int, device: torch.device) -> "Lists":
        """Lists that name no neuron."""
        with torch.inference_mode(False):
            index = torch.zeros(rows, F, dtype=torch.int32, device=device)
            return cls(index, torch.zeros(rows, dtype=torch.int32, device=device))

    def half(self) -> "Lists":
        """Every second neuron of each row: what kernels are tuned on, whatever a prompt keeps."""
        F = self.index.shape[1]
        index = (torch.arange(F, dtype=torch.int32, device=self.index.device) * 2 % max(F, 1)).expand_as(self.index)
        return Lists(index.contiguous(), torch.full_like(self.counts, F // 2))


class Rule(NamedTuple):
    """What a threshold method keeps: abs(value)·weight ≥ cut; ``kept``, uint8 [N, F], is filled."""

    kept: Tensor
    cut: float
    weights: Tensor | None


@triton.jit
def _rows(
    x, w1, b1, w2, b2, out, index, counts, kept, weights, cut, N, K, EACH,
    x_row, w1_row, w1_column, w2_row, w2_column,
    ACT: tl.constexpr, SECOND: tl.constexpr, TIMES: tl.constexpr, LISTED: tl.constexpr, RULE: tl.constexpr,
    BIAS1: tl.constexpr, BIAS2: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[t, j] = act(w1_j·x_t + b1_j) [· (w2_j·x_t + b2_j)] [· out[t, j]], for all j or the listed ones."""
    token = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    end = N
    if LISTED:
        end = tl.load(counts + token // EACH)
    if tl.program_id(0) * ROWS >= end:  # the grid has room for all rows; the list may be shorter
        return
    inside = place < end
    j = place.to(tl.int64)
    if LISTED:
        j = tl.load(index + (token // EACH) * N + place, mask=inside, other=0).to(tl.int64)
    first = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    second = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, K, COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        within = inside[:, None] & (k < K)[None, :]
        part = tl.load(x + token * x_row + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        loaded = tl.load(w1 + j[:, None] * w1_row + k[None, :] * w1_column, mask=within, other=0.0)
        first += part * loaded.to(tl.float32)
        if SECOND:
            loaded = tl.load(w2 + j[:, None] * w2_row + k[None, :] * w2_column, mask=within, other=0.0)
            second += part * loaded.to(tl.float32)
    value = tl.sum(first, axis=1)
    if BIAS1:
        value += tl.load(b1 + j, mask=inside, other=0.0).to(tl.float32)
    value = activate(value, ACT)
    if SECOND:
        factor = tl.sum(second, axis=1)
        if BIAS2:
            factor += tl.load(b2 + j, mask=inside, other=0.0).to(tl.float32)
        value *= factor
    if TIMES:
        value *= tl.load(out + token * N + j, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * N + j, value.to(out.dtype.element_ty), mask=inside)
    if RULE:
        importance = tl.abs(value)
        if WEIGHTED:
            importance *= tl.load(weights + j, mask=inside, other=0.0)
        tl.store(kept + token * N + j, tl.where(importance < cut, 0, 1).to(tl.uint8), mask=inside)


def rows(
    x: Tensor,
    first: Linear,
    out: Tensor,
    *,
    act: str = "identity",
    second: Linear | None = None,
    lists: Lists | None = None,
    rule: Rule | None = None,
    times: bool = False,
) -> None:
    """Fill ``out[t, j] = act(first(x_t)_j)``, times ``second(x_t)_j`` where there is one.

    Parameters
    ----------
    x : Tensor
        Tokens [N, D].
    out : Tensor
        Contiguous [N, F]; what no list names is left as it was.
    act : str
        Name of the activation.
    lists : Lists, optional
        Rows of the weights to read, for each batch row; its tokens lie one after the other in x.
    rule : Rule, optional
        Judge each value that was computed.
    times : bool
        Multiply by what `out` held.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    N, K = first.weight.shape
    other = first if second is None else second

    def launch(config: Config, out: Tensor, lists: Lists | None) -> None:
        _rows[(triton.cdiv(N, config.rows), len(x))](
            x, first.weight, first.bias, other.weight, other.bias, out,
            None if lists is None else lists.index, None if lists is None else lists.counts,
            None if rule is None else rule.kept, None if rule is None else rule.weights,
            0.0 if rule is None else rule.cut,
            N, K, 1 if lists is None else len(x) // len(lists.counts),
            x.stride(0), *first.weight.stride(), *other.weight.stride(),
            ACT=act, SECOND=second is not None, TIMES=times, LISTED=lists is not None, RULE=rule is not None,
            BIAS1=first.bias is not None, BIAS2=other.bias is not None,
            WEIGHTED=rule is not None and rule.weights is not None,
            ROWS=config.rows, COLUMNS=config.columns, **config.options,
        )  # fmt: skip

    def trial(config: Config) -> None:
        launch(config, torch.empty_like(out), None if lists is None else lists.half())

    key = ("rows", len(x), N, K, x.dtype, second is not None, lists is not None)
    launch(choose(key, CANDIDATES, trial), out, lists)


def own_forward(linear: nn.Linear, dense: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Forward of a linear with the matrix-vector kernel for a single token; more tokens take the dense one.

    Over several tokens a product reads its weights once for all of them, and torch's is as fast as can be.
    """
    own = Linear(linear)

    def forward(x: Tensor) -> Tensor:
        if x.numel() != x.shape[-1]:
            return dense(x)
        y = torch.empty(*x.shape[:-1], linear.out_features, dtype=x.dtype, device=x.device)
        rows(x.reshape(1, -1), own, y.view(1, -1))
        return y

    return forward
