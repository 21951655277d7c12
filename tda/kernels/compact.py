"""Compact execution: the kept neurons' weights are gathered once per prompt, then decode is dense over them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tda.kernels.hugepages import empty_on_huge_pages
from tda.kernels.weights import AS_BUILT, Weights
from tda.spans import span
from tda.view import FFN

Gather = Callable[[FFN, Tensor, Tensor, Tensor], None]
"""Copies the weights of an FFN's neurons, by index int64 [K]: rows of gate and up into [P, K, D], columns of down into
[D, K]. P is 2 with a gate, else 1."""


@torch.no_grad()
def gather(ffn: FFN, index: Tensor, rows: Tensor, columns: Tensor) -> None:
    """`Gather` by torch."""
    for linear, copy in zip(ffn.inputs, rows, strict=True):
        torch.index_select(linear.weight.detach(), 0, index, out=copy)
    torch.gather(_bits(ffn.down.weight.detach()), 1, index.expand(ffn.D, -1), out=_bits(columns))


class CompactFFN:
    """One layer's FFN over gathered weights, in the layout of the model's own linears.

    Rows of gate and up are copied whole, one below the other, so that one product serves both. The down projection is
    read row by row too, each row's kept entries copied into a [D, K] matrix: dearer per prompt than copying rows of a
    transposed twin, but no twin is kept, and on CPU each decode step is faster over [D, K] than over [K, D]. Buffers
    are kept between prompts and grow when a prompt keeps more than any before.

    Parameters
    ----------
    ffn : FFN
        The layer's FFN; its weights are not touched.
    gather : callable
        What copies.
    weights : Weights
        Where the weights are that it copies.

    Attributes
    ----------
    rows, columns : Tensor
        Gate and up, one below the other, and down: [R, P·K, D] and [R, D, K]; R is 1 if batch rows are alike, else B.
    bias, scale : Tensor or None
        Of gate and up: [R, 1, P·K].
    """

    def __init__(self, ffn: FFN, gather: Gather = gather, weights: Weights = AS_BUILT) -> None:
        self.ffn = ffn
        self.rows = self.columns = torch.empty(0)
        self.bias: Tensor | None = None
        self.scale: Tensor | None = None
        self._gather = gather
        self._weights = weights
        self._buffers: dict[str, Tensor] = {}
        self._valid: Tensor | None = None  # [R, 1, K] where rows keep unequal counts

    @torch.no_grad()
    def load(self, kept: Tensor) -> None:
        """Gather the weights of the kept neurons.

        Parameters
        ----------
        kept : Tensor
            bool [B, F]; rows that are all alike share one copy.
        """
        if len(kept) > 1 and bool((kept == kept[:1]).all()):
            kept = kept[:1]
        index = self._index(kept)
        R, K = index.shape
        D = self.ffn.D
        stored = [self._weights.of(linear) for linear in self.ffn.inputs]
        rows = self._buffer("rows", (R, len(stored), K, D), stored[-1].values)
        self.columns = self._buffer("columns", (R, D, K), stored[-1].values)
        for each, copies, columns in zip(index, rows, self.columns, strict=True):
            self._gather(self.ffn, each, copies, columns)
        self.rows = rows.view(R, -1, D)
        self.bias = _picked([one.bias for one in stored], index)
        self.scale = _picked([one.scale for one in stored], index)

    def _index(self, kept: Tensor) -> Tensor:
        """Indices of the kept neurons, short rows padded with neuron 0: int64 [R, K]."""
        counts = kept.sum(1)
        place = torch.arange(int(counts.max()), device=kept.device)
        valid = place < counts.unsqueeze(1)
        self._valid = None if bool(valid.all()) else valid.unsqueeze(1)
        index = torch.zeros(valid.shape, dtype=torch.int64, device=kept.device)
        index[valid] = kept.nonzero()[:, 1]
        return index

    def _buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Reused memory of a shape, grown where needed."""
        size = torch.Size(shape).numel()
        held = self._buffers.get(name)
        if held is None or len(held) < size:
            with torch.inference_mode(False):
                held = self._buffers[name] = empty_on_huge_pages((size,), like.dtype, like.device)
        return held[:size].view(shape)

    def __call__(self, x: Tensor) -> Tensor:
        """FFN output over the loaded neurons: [..., D] -> [..., D]."""
        R, _, K = self.columns.shape
        rows = x if R == 1 else x.reshape(R, -1, x.shape[-1])  # [B, T, D]
        with span("gate_up" if self.ffn.gate is not None else "up"):
            h = _linear(rows, self.rows, self.bias)  # [..., P·K]
        z = self.ffn.act(h[..., :K])
        if self.ffn.gate is not None:
            z = z * h[..., K:]
        if self._valid is not None:
            z = z.masked_fill(~self._valid, 0)
        with span("down"):
            return _linear(z, self.columns, self.ffn.down.bias).view_as(x)


def _picked(vectors: Sequence[Tensor | None], index: Tensor) -> Tensor | None:
    """What some neurons have of vectors [F], one beside the other: [R, 1, P·K]; None where there are none."""
    found = [vector.detach()[index] for vector in vectors if vector is not None]
    return torch.cat(found, 1).unsqueeze(1) if found else None


def _bits(weights: Tensor) -> Tensor:
    """Two-byte floats as integers: torch gathers those more than twice as fast."""
    return weights.view(torch.int16) if weights.element_size() == 2 else weights


def _linear(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Linear with weights [R, N, M]: over all of x where R is 1, else row by row of x [R, T, M]."""
    if len(weights) == 1:
        return functional.linear(x, weights[0], None if bias is None else bias.view(-1))
    product = torch.bmm(x, weights.transpose(1, 2))
    return product if bias is None else product + bias
