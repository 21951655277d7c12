"""Products of one token with rows of weights, all of them or those that a list names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from tda.kernels.activations import ACTIVATIONS
from tda.kernels.triton.functions import activate
from tda.kernels.triton.launch import Form, Kernel, Tile
from tda.kernels.triton.tuning import chosen
from tda.spans import cost, counted
from tda.view import Linear

ACTS = {name: number for number, name in enumerate(ACTIVATIONS)}


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

    def total(self, tokens: int) -> int:
        """Neurons that so many tokens keep together; the host waits for the device."""
        return int(self.counts.sum()) * tokens // len(self.counts)


class Rule(NamedTuple):
    """What a threshold method keeps: abs(value)·weight ≥ cut; ``kept``, uint8 [N, F], is filled."""

    kept: Tensor
    cut: float
    weights: Tensor | None


def _rows(
    x, w1, b1, w2, b2, out, index, counts, kept, weights,
    cut, N: tl.int32, K: tl.int32, EACH: tl.int32, act: tl.int32, bias1: tl.int32, bias2: tl.int32, weighted: tl.int32,
    x_row: tl.int64, w1_row: tl.int64, w1_column, w2_row: tl.int64, w2_column,
    SECOND: tl.constexpr, TIMES: tl.constexpr, LISTED: tl.constexpr, ACTS: tl.constexpr, RULE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
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
    # Without a bias nothing is read: the pointer is then another one of the same type.
    value = tl.sum(first, axis=1) + tl.load(b1 + j, mask=inside & (bias1 != 0), other=0.0).to(tl.float32)
    if ACTS:
        value = activate(value, act)
    if SECOND:
        value *= tl.sum(second, axis=1) + tl.load(b2 + j, mask=inside & (bias2 != 0), other=0.0).to(tl.float32)
    if TIMES:
        value *= tl.load(out + token * N + j, mask=inside, other=0.0)
    tl.store(out + token * N + j, value.to(out.dtype.element_ty), mask=inside)
    if RULE:
        importance = tl.abs(value) * tl.load(weights + j, mask=inside & (weighted != 0), other=1.0)
        tl.store(kept + token * N + j, tl.where(importance < cut, 0, 1).to(tl.uint8), mask=inside)


BLOCKS = (
    Tile(1, 2048, 8, 3),  # the best on an H100 for most shapes
    Tile(1, 1024, 4, 3),
    Tile(1, 512, 8, 3),
    Tile(2, 1024, 8, 3),
    Tile(4, 512, 4, 3),
    Tile(8, 256, 8, 3),
)
LISTS, RULES = ("index", "counts"), ("kept", "weights")


def _form(absent: tuple[str, ...], *told: str, wide: bool = True) -> Form:
    return Form({name: name in told for name in ("SECOND", "TIMES", "LISTED", "ACTS", "RULE")}, absent, wide, BLOCKS)


FORMS = {
    "linear": _form(("w2", "b2", *LISTS, *RULES), wide=False),
    "listed_up": _form(("w2", "b2", *RULES), "ACTS", "LISTED"),
    "listed_gate_up": _form(RULES, "ACTS", "SECOND", "LISTED"),
    "listed_times": _form(("w2", "b2", *RULES), "TIMES", "LISTED"),
    "rule_up": _form(("w2", "b2", *LISTS), "ACTS", "RULE"),
    "rule_gate_up": _form(LISTS, "ACTS", "SECOND", "RULE"),
}
"""A linear; up, or gate times up, of listed neurons, or of all that a rule judges; what was there times up."""
ROWS = Kernel(
    _rows,
    {
        **dict.fromkeys(("x", "w1", "b1", "w2", "b2"), "weights"),
        "out": "out",
        **dict.fromkeys(("index", "counts"), "int32"),
        "kept": "uint8",
        "weights": "float32",
        "cut": "float",
        "N": "number",
        "K": "sixteen",
        **dict.fromkeys(("EACH", "act", "bias1", "bias2", "weighted"), "number"),
        "x_row": "sixteen",
        "w1_row": "sixteen",
        "w1_column": "one",
        "w2_row": "sixteen",
        "w2_column": "one",
    },
    FORMS,
    Tile(16, 32),
)


# long: its parameters are explained
def rows(
    x: Tensor,
    first: Linear,
    out: Tensor,
    *,
    act: str | None = None,
    second: Linear | None = None,
    lists: Lists | None = None,
    rule: Rule | None = None,
    times: bool = False,
    block: Tile | None = None,
) -> None:
    """Fill ``out[t, j] = act(first(x_t)_j)``, times ``second(x_t)_j`` where there is one.

    Parameters
    ----------
    x : Tensor
        Tokens [N, D].
    out : Tensor
        Contiguous [N, F]: float32, of a linear alone the type of its weights. What no list names is left as it was.
    act : str, optional
        Name of the activation; None is a linear alone.
    lists : Lists, optional
        Rows of the weights to read, for each batch row; its tokens lie one after the other in x.
    rule : Rule, optional
        Judge each value that was computed.
    times : bool
        Multiply by what `out` held.
    block : Tile, optional
        One of `BLOCKS`; else the one that was measured to be best, or the default.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    weight = first.weight
    other = first if second is None else second
    N, K = weight.shape
    given = {
        "x": x, "w1": weight, "b1": weight if first.bias is None else first.bias,
        "w2": other.weight, "b2": other.weight if other.bias is None else other.bias, "out": out,
        "index": lists and lists.index, "counts": lists and lists.counts,
        "kept": rule and rule.kept, "weights": out if rule is None or rule.weights is None else rule.weights,
        "cut": 0.0 if rule is None else rule.cut, "N": N, "K": K,
        "EACH": 1 if lists is None else len(x) // len(lists.counts), "act": ACTS["identity" if act is None else act],
        "bias1": int(first.bias is not None), "bias2": int(other.bias is not None),
        "weighted": int(rule is not None and rule.weights is not None), "x_row": x.stride(0),
        "w1_row": weight.stride(0), "w1_column": weight.stride(1),
        "w2_row": other.weight.stride(0), "w2_column": other.weight.stride(1),
    }  # fmt: skip
    words = "times" if times else "gate_up" if second is not None else "up"
    form = "linear" if act is None and not times else f"{'listed' if rule is None else 'rule'}_{words}"
    entry = ROWS.entry(form, weight.dtype, given, block or chosen(ROWS, form, weight.dtype, (N, K)))
    ROWS.launch(entry, (triton.cdiv(N, entry.block.rows), len(x)), given)
    if counted():
        read = N if lists is None else lists.total(len(x))
        flops = 2 * K * (1 + (second is not None)) * (read if lists is not None else N * len(x))
        judged = 0 if rule is None else rule.kept.nbytes
        weights = read * K * weight.element_size() * (1 + (second is not None))
        cost(ROWS.name, weights + x.nbytes + judged + (out.nbytes if lists is None else read * 4), flops)


def own_forward(linear: nn.Linear, dense: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Forward of a linear with the matrix-vector kernel for a single token; more tokens take the dense one.

    Over several tokens a product reads its weights once for all of them, and torch's is as fast as can be.
    """
    own = Linear(linear)

    def forward(x: Tensor) -> Tensor:
        if x.numel() != x.shape[-1] or x.dtype != own.weight.dtype:  # autocast gives another type
            return dense(x)
        y = torch.empty(*x.shape[:-1], own.out_features, dtype=x.dtype, device=x.device)
        rows(x.reshape(1, -1), own, y.view(1, -1))
        return y

    return forward
