"""Let a model compute with quantized weights, and put its own back."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tda.as_built import is_linear, linear_problem, path_of
from tda.engine.overrides import Overrides
from tda.kernels.hugepages import empty_on_huge_pages
from tda.kernels.weights import Stored, Weights
from tda.quantizers import Quantized, Quantizer
from tda.view import FFN, Linear

ROWS = 64
"""Rows of weights that are quantized together."""


class QuantizedWeights(Weights):
    """The weights of a model's linears, which are what a quantizer makes of them until the overrides are undone.

    Parameters
    ----------
    model : nn.Module
        Its linears compute with the quantized weights, in their own type; a tied embedding keeps its table.
    ffns : list of FFN
        Its feed-forward networks.
    quantizer : Quantizer
        How weights are quantized.
    overrides : Overrides
        What puts the weights back.
    hold : bool
        Whether the weights are kept quantized too, for the kernels.

    Raises
    ------
    ValueError
        If a linear does not just multiply by a weight.
    """

    def __init__(
        self, model: nn.Module, ffns: list[FFN], quantizer: Quantizer, overrides: Overrides, *, hold: bool
    ) -> None:
        self._held: dict[int, Stored] = {}
        overrides.later(self._held.clear)  # the kernels read them until then
        for module in model.modules():
            if not (isinstance(module, nn.Linear) or is_linear(module)):
                continue
            reason = linear_problem(module) or ("has a forward of its own" if "forward" in vars(module) else None)
            if reason is not None:
                place = path_of(model, module)
                raise ValueError(f"weights of {place} cannot be quantized to {quantizer.name}: it {reason}")
            linear = Linear(module)
            quantized = _quantize([linear], quantizer, overrides)
            if hold:
                bias = None if linear.bias is None else linear.bias.detach().float()
                self._held[id(module)] = Stored(quantized.values, bias, quantized.scale)
        for parts in _of_experts(ffns):
            _quantize(parts, quantizer, overrides)

    def of(self, linear: Linear) -> Stored:
        """A linear's quantized weights."""
        values, bias, scale = self._held[id(linear.module)]
        rows = slice(None) if linear.rows is None else linear.rows
        assert scale is not None
        return Stored(values[rows], None if bias is None else bias[rows], scale[rows])

    def lay(self, linear: Linear, values: Tensor) -> None:
        """Let a linear's weights lie where equal ones do: [N, K]."""
        self._held[id(linear.module)] = self._held[id(linear.module)]._replace(values=values)

    def keep(self, linear: Linear) -> Callable[[], None]:
        """Nothing needs its layout back."""
        return lambda: None


def _of_experts(ffns: list[FFN]) -> Iterator[list[Linear]]:
    """The linears of experts, those together whose weights lie in one tensor."""
    together: dict[tuple[int, str], list[Linear]] = {}
    for ffn in ffns:
        for linear in ffn.linears if ffn.experts is not None else ():
            together.setdefault((id(linear.module), linear.name), []).append(linear)
    yield from together.values()


def _quantize(linears: list[Linear], quantizer: Quantizer, overrides: Overrides) -> Quantized:
    """Let linears whose weights are all of one parameter compute with quantized ones; the last ones quantized."""
    module, name = linears[0].module, linears[0].name
    held = module._parameters[name]
    assert held is not None
    overrides.later(_restoring(module, name, held))  # before anything is changed
    transposed = linears[0].transposed  # then rows lie as kernels read them, whatever the module's own do
    with torch.inference_mode(False), torch.no_grad():
        dense = empty_on_huge_pages(held.t().shape if transposed else held.shape, held.dtype, held.device)
        dense = dense.t() if transposed else dense
        for linear in linears:
            quantized = _quantized(linear.weight.detach(), quantizer, linear.within(dense))
        module._parameters[name] = nn.Parameter(dense, requires_grad=False)
    return quantized


def _quantized(weight: Tensor, quantizer: Quantizer, dense: Tensor) -> Quantized:
    """Weights [N, K] quantized, and into `dense` what they stand for; some rows at a time, which stay in caches."""
    values = empty_on_huge_pages(weight.shape, torch.int8, weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        part = quantizer.quantize(weight[rows])
        values[rows], scale[rows], dense[rows] = part.values, part.scale, part.dense(weight.dtype)
    return Quantized(values, scale)


def _restoring(module: nn.Module, name: str, weight: nn.Parameter) -> Callable[[], None]:
    def restore() -> None:
        module._parameters[name] = weight  # it is the parameter that was there

    return restore
