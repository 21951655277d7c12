"""Let a model compute with rounded weights, and put its own back."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tda.as_built import is_linear, linear_problem, path_of
from tda.contracts import Rounded, WeightMethod
from tda.engine.overrides import Overrides
from tda.kernels.native import describe
from tda.kernels.native import library as c
from tda.kernels.pages import fresh
from tda.view import Linear

ROWS = 64
"""Rows of weights that are rounded together."""


class RoundedLinears:
    """The linears of a model, whose weights are what a method's rounding makes of them until the overrides are undone.

    Parameters
    ----------
    model : nn.Module
        Its linears compute with the rounded weights, in their own type; a tied embedding keeps its table.
    method : WeightMethod
        How weights are rounded.
    overrides : Overrides
        What puts the weights back.
    hold : bool
        Whether the weights are kept in few bits too, for the kernels.
    """

    def __init__(self, model: nn.Module, method: WeightMethod, overrides: Overrides, *, hold: bool) -> None:
        self._held: dict[int, tuple[Rounded, Tensor | None]] = {}
        overrides.later(self._held.clear)  # the kernels read them until then
        for module in model.modules():
            if not (isinstance(module, nn.Linear) or is_linear(module)):
                continue
            reason = linear_problem(module) or ("has a forward of its own" if "forward" in vars(module) else None)
            if reason is not None:
                raise ValueError(f"method {method.name!r} cannot round {path_of(model, module)}: it {reason}")
            linear, held = Linear(module), module._parameters["weight"]
            rounded, dense = _rounded(linear.weight.detach(), method)
            if hold:
                bias = None if linear.bias is None else linear.bias.detach().float()
                self._held[id(module)] = (rounded, bias)
            stored = dense.t() if linear.transposed else dense
            module._parameters["weight"] = nn.Parameter(stored, requires_grad=False)
            overrides.later(_restoring(module, held))

    def matrix(self, linear: Linear | None) -> c.Matrix:
        """Description of a linear's weights in few bits; None is none."""
        if linear is None:
            return c.Matrix()
        describe.check_linear(linear)
        rounded, bias = self._held[id(linear.module)]
        rows = slice(None) if linear.rows is None else linear.rows
        return c.Matrix.of(rounded.values[rows], None if bias is None else bias[rows], rounded.scale[rows])


def _rounded(weight: Tensor, method: WeightMethod) -> tuple[Rounded, Tensor]:
    """Weights [N, K] rounded, and what they then stand for; some rows at a time, which stay in the caches."""
    values = fresh(weight.shape, torch.int8, weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    dense = fresh(weight.shape, weight.dtype, weight.device)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        part = method.round(weight[rows])
        values[rows], scale[rows], dense[rows] = part.values, part.scale, part.dense(weight.dtype)
    return Rounded(values, scale), dense


def _restoring(module: nn.Module, weight: Tensor | None) -> Callable[[], None]:
    def restore() -> None:
        module._parameters["weight"] = weight  # type: ignore[assignment]  # it is the parameter that was there

    return restore
