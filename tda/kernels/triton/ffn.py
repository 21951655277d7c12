"""Indexed execution by the Triton kernels: lists, counts and kept sets stay on the device, at addresses that last.

So a step captured once into a CUDA graph serves every prompt and sparsity of the same number of rows.
"""

import torch
from torch import Tensor

from tda.contracts import Observer, ThresholdMethod
from tda.kernels.activations import activation_name
from tda.kernels.triton.choice import fill
from tda.kernels.triton.down import down
from tda.kernels.triton.rows import Lists, Rule, rows
from tda.spans import span
from tda.view import FFN


def _activations(ffn: FFN, act: str, x: Tensor, lists: Lists | None = None, rule: Rule | None = None) -> Tensor:
    """z of tokens x [N, D]: float32 [N, F], of listed neurons only where there are lists."""
    z = torch.empty(len(x), ffn.F, dtype=torch.float32, device=x.device)
    if ffn.gate is None:
        rows(x, ffn.up, z, act=act, lists=lists, rule=rule)
    else:
        rows(x, ffn.gate, z, act=act, second=ffn.up, lists=lists, rule=rule)
    return z


class TritonListedFFN:
    """An FFN over the neurons that each batch row keeps.

    Parameters
    ----------
    ffn : FFN
        The layer's FFN, best with its down projection in rows (`lay_rows`).
    """

    def __init__(self, ffn: FFN) -> None:
        self.ffn = ffn
        self._act = activation_name(ffn.act)
        self._lists: dict[int, Lists] = {}
        self._rows = 0

    @torch.no_grad()
    def load(self, kept: Tensor) -> None:
        """List the kept neurons: bool [B, F]. Each B has lists of its own, whose addresses never change."""
        self._rows = len(kept)
        if self._rows not in self._lists:
            self._lists[self._rows] = Lists.empty(self._rows, self.ffn.F, kept.device)
        fill(self._lists[self._rows], kept)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """FFN output over the kept neurons: [..., D] -> [..., D]; x holds each batch row's tokens in turn."""
        x = x.to(self.ffn.up.weight.dtype)  # autocast may give another type
        tokens, lists = x.reshape(-1, x.shape[-1]), self._lists[self._rows]
        y = torch.empty(tokens.shape, dtype=x.dtype, device=x.device)
        with span("gate_up" if self.ffn.gate is not None else "up"):
            z = _activations(self.ffn, self._act, tokens, lists)
        with span("down"):
            down(z, self.ffn.down, lists, y)
        return y.view_as(x)


class TritonThresholdFFN:
    """An FFN whose neurons are kept token by token, where they reach the layer's cut.

    A method that looks at the gate has up and down read for kept neurons only; one that looks at z, down only.

    Parameters
    ----------
    ffn : FFN
        The layer's FFN.
    method : ThresholdMethod
        Says weights and cut.
    observe : callable
        Told the layer's number and the kept sets [N, F] of each call.

    Attributes
    ----------
    kept : Tensor
        Sets of the last call: uint8 [N, F].
    """

    def __init__(self, ffn: FFN, method: ThresholdMethod, observe: Observer) -> None:
        self.ffn = ffn
        self.kept = torch.empty(0, ffn.F, dtype=torch.uint8)
        self._observe = observe
        self._act = activation_name(ffn.act)
        self._gate_first = method.activation == "gate"
        self._weights = method.factors(ffn)
        self._cut = method.cut(ffn)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """FFN output with each token's own set: [..., D] -> [..., D]."""
        ffn, x = self.ffn, x.to(self.ffn.up.weight.dtype)
        tokens = x.reshape(-1, x.shape[-1])
        kept = torch.empty(len(tokens), ffn.F, dtype=torch.uint8, device=x.device)
        lists = Lists.empty(len(tokens), ffn.F, x.device)
        rule = Rule(kept, self._cut, self._weights)
        if self._gate_first:
            assert ffn.gate is not None
            z = torch.empty(kept.shape, dtype=torch.float32, device=x.device)
            with span("gate"):
                rows(tokens, ffn.gate, z, act=self._act, rule=rule)
        else:
            with span("gate_up" if ffn.gate is not None else "up"):
                z = _activations(ffn, self._act, tokens, rule=rule)
        with span("selection"):
            fill(lists, kept)
        if self._gate_first:
            with span("up"):
                rows(tokens, ffn.up, z, lists=lists, times=True)
        y = torch.empty(tokens.shape, dtype=x.dtype, device=x.device)
        with span("down"):
            down(z, ffn.down, lists, y)
        self.kept = kept
        self._observe(ffn.index, kept.bool())
        return y.view_as(x)
