"""Indexed execution of per-token methods in plain torch: kept rows are looked up and summed for each token."""

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from tda.contracts import Observer, TokenMethod
from tda.spans import span
from tda.view import FFN


class IndexedFFN:
    """One layer's FFN that reads only the rows a token keeps, as far as the method allows.

    Parameters
    ----------
    ffn : FFN
        The layer's FFN; its weights are not touched.
    method : TokenMethod
        Chooses from z (then only the down projection is skipped) or from the gate (up and down are).
    observe : callable
        Told the layer's number and the kept sets [N, F] of each call.
    """

    def __init__(self, ffn: FFN, method: TokenMethod, observe: Observer) -> None:
        self.ffn = ffn
        self.method = method
        self.observe = observe
        with torch.inference_mode(False), torch.no_grad():
            self._down_rows = ffn.down.weight.detach().t().contiguous()  # [F, D]
            self._up_rows = torch.empty_like(ffn.up.weight) if method.activation == "gate" else None

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """FFN output with each token's own set: [..., D] -> [..., D]."""
        tokens = x.reshape(-1, x.shape[-1])  # [N, D]
        if self.method.activation == "gate":
            assert self.ffn.gate is not None
            with span("gate"):
                a = self.ffn.act(functional.linear(tokens, self.ffn.gate.weight, self.ffn.gate.bias))
        else:
            with span("gate_up" if self.ffn.gate is not None else "up"):
                a = self.ffn.activation(tokens)
        with span("selection"):
            kept = self.method.select(self.ffn, a)
            self.observe(self.ffn.index, kept)
            row, index = kept.nonzero(as_tuple=True)
            z = a[row, index]
            starts = torch.searchsorted(row, torch.arange(len(tokens) + 1, device=row.device))  # [N + 1]
        if self.method.activation == "gate":
            with span("up"):
                z = z * self._up(tokens, index, starts.tolist())
        with span("down"):
            y = functional.embedding_bag(index, self._down_rows, starts[:-1], mode="sum", per_sample_weights=z)
        if self.ffn.down.bias is not None:
            y = y + self.ffn.down.bias
        return y.view_as(x)

    def _up(self, tokens: Tensor, index: Tensor, starts: list[int]) -> Tensor:
        """Up projection of the kept neurons only: [sum of kept]."""
        assert self._up_rows is not None
        bias = self.ffn.up.bias
        parts = []
        for number, (start, end) in enumerate(itertools.pairwise(starts)):
            chosen = index[start:end]
            rows = torch.index_select(self.ffn.up.weight.detach(), 0, chosen, out=self._up_rows[: end - start])
            parts.append(functional.linear(tokens[number], rows, None if bias is None else bias[chosen]))
        return torch.cat(parts)
