"""Compact execution: the kept neurons' weights are gathered once per prompt, then decode is dense over them."""

import torch
from torch import Tensor
from torch.nn import functional

from tda.contracts import FFN


class CompactFFN:
    """One layer's FFN over gathered weights, in the layout of the model's own linears.

    Rows of gate and up are copied whole. The down projection is read row by row too, each row's kept entries copied
    into a [D, K] matrix: dearer per prompt than copying rows of a transposed twin, but no twin is kept, and on CPU each
    decode step is faster in that projection than over [K, D]. Buffers are kept between prompts and grow when a prompt
    keeps more than any before.

    Parameters
    ----------
    ffn : FFN
        The layer's FFN; its weights are not touched.
    """

    def __init__(self, ffn: FFN) -> None:
        self.ffn = ffn
        self._inputs = {"up": ffn.up} if ffn.gate is None else {"gate": ffn.gate, "up": ffn.up}
        self._buffers: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}  # gate, up: [R, K, D]; down: [R, D, K]; R = B, or 1 if rows are alike
        self._biases: dict[str, Tensor] = {}  # [R, 1, K]
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
        for name, linear in self._inputs.items():
            out = self._buffer(name, (R * K, D), linear.weight)
            self._weights[name] = torch.index_select(linear.weight.detach(), 0, index.view(-1), out=out).view(R, K, D)
            if linear.bias is not None:
                self._biases[name] = linear.bias.detach()[index].unsqueeze(1)
        down = self.ffn.down.weight.detach()
        columns = index.unsqueeze(1).expand(R, D, K)
        out = self._buffer("down", (R, D, K), down)
        torch.gather(_bits(down).expand(R, -1, -1), 2, columns, out=_bits(out))
        self._weights["down"] = out

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
                held = self._buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return held[:size].view(shape)

    def __call__(self, x: Tensor) -> Tensor:
        """FFN output over the loaded neurons: [..., D] -> [..., D]."""
        R = len(self._weights["down"])
        rows = x if R == 1 else x.reshape(R, -1, x.shape[-1])  # [B, T, D]
        z = self.ffn.act(self._input(rows, next(iter(self._inputs))))
        if self.ffn.gate is not None:
            z = z * self._input(rows, "up")
        if self._valid is not None:
            z = z.masked_fill(~self._valid, 0)
        return _linear(z, self._weights["down"], self.ffn.down.bias).view_as(x)

    def _input(self, rows: Tensor, name: str) -> Tensor:
        bias = self._biases.get(name)
        return _linear(rows, self._weights[name], bias)


def _bits(weights: Tensor) -> Tensor:
    """Two-byte floats as integers: torch gathers those more than twice as fast."""
    return weights.view(torch.int16) if weights.element_size() == 2 else weights


def _linear(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Linear with weights [R, N, M]: over all of x where R is 1, else row by row of x [R, T, M]."""
    if len(weights) == 1:
        return functional.linear(x, weights[0], None if bias is None else bias.view(-1))
    product = torch.bmm(x, weights.transpose(1, 2))
    return product if bias is None else product + bias
