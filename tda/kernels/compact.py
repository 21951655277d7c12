"""Compact execution: the kept neurons' weights are gathered once per prompt, then decode is dense over them."""

import torch
from torch import Tensor
from torch.nn import functional

from tda.contracts import FFN


class CompactFFN:
    """One layer's FFN over gathered weights.

    The down projection is kept transposed as well, so that all three gathers copy whole rows; the buffers are
    kept between prompts and grow when a prompt keeps more than any before.

    Parameters
    ----------
    ffn : FFN
        The layer's FFN; its weights are not touched.
    """

    def __init__(self, ffn: FFN) -> None:
        self.ffn = ffn
        self.kept: Tensor | None = None
        with torch.inference_mode(False), torch.no_grad():
            self._down_rows = ffn.down.weight.detach().t().contiguous()  # [F, D]
        self._buffers: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}  # [K, D], or [B, K, D] where rows differ
        self._biases: dict[str, Tensor] = {}  # [K], or [B, 1, K]
        self._valid: Tensor | None = None  # [B, 1, K] where rows keep unequal counts

    @torch.no_grad()
    def load(self, kept: Tensor) -> None:
        """Gather the weights of the kept neurons.

        Parameters
        ----------
        kept : Tensor
            bool [B, F]; rows that are all equal share one copy.
        """
        if len(kept) > 1 and bool((kept == kept[:1]).all()):
            index, shape = kept[0].nonzero().squeeze(1), None
        elif len(kept) == 1:
            index, shape = kept[0].nonzero().squeeze(1), None
        else:
            index, shape = self._padded(kept)
        rows = {"up": self.ffn.up.weight, "down": self._down_rows}
        biases = {"up": self.ffn.up.bias}
        if self.ffn.gate is not None:
            rows["gate"], biases["gate"] = self.ffn.gate.weight, self.ffn.gate.bias
        if shape is None:
            self._valid = None
        for name, weight in rows.items():
            gathered = torch.index_select(weight.detach(), 0, index, out=self._buffer(name, weight, len(index)))
            self._weights[name] = gathered if shape is None else gathered.view(*shape, -1)
        for name, bias in biases.items():
            if bias is not None:
                gathered = bias.detach()[index]
                self._biases[name] = gathered if shape is None else gathered.view(shape[0], 1, shape[1])
        self.kept = kept

    def _padded(self, kept: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Row-wise indices, short rows padded with neuron 0: [B·K], and (B, K)."""
        counts = kept.sum(1)
        K = int(counts.max())
        place = torch.arange(K, device=kept.device).expand(len(kept), K)
        valid = place < counts.unsqueeze(1)
        index = torch.zeros(len(kept), K, dtype=torch.int64, device=kept.device)
        index[valid] = kept.nonzero()[:, 1]
        self._valid = None if bool(valid.all()) else valid.unsqueeze(1)
        return index.view(-1), (len(kept), K)

    def _buffer(self, name: str, weight: Tensor, rows: int) -> Tensor:
        held = self._buffers.get(name)
        if held is None or len(held) < rows:
            with torch.inference_mode(False):
                held = self._buffers[name] = torch.empty(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
        return held[:rows]

    def __call__(self, x: Tensor) -> Tensor:
        """FFN output over the loaded neurons: [..., D] -> [..., D]."""
        if self._weights["up"].dim() == 3:
            return self._per_row(x)
        z = self.ffn.act(self._linear(x, "up" if self.ffn.gate is None else "gate"))
        if self.ffn.gate is not None:
            z = z * self._linear(x, "up")
        return functional.linear(z, self._weights["down"].t(), self.ffn.down.bias)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[name], self._biases.get(name))

    def _per_row(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(self._weights["up"]), -1, x.shape[-1])  # [B, T, D]
        z = self.ffn.act(self._row_linear(rows, "up" if self.ffn.gate is None else "gate"))
        if self.ffn.gate is not None:
            z = z * self._row_linear(rows, "up")
        if self._valid is not None:
            z = z.masked_fill(~self._valid, 0)
        y = torch.bmm(z, self._weights["down"])
        return (y if self.ffn.down.bias is None else y + self.ffn.down.bias).view_as(x)

    def _row_linear(self, rows: Tensor, name: str) -> Tensor:
        product = torch.bmm(rows, self._weights[name].transpose(1, 2))
        bias = self._biases.get(name)
        return product if bias is None else product + bias
