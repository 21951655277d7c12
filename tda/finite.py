"""Numbers that are not finite: where they stand, and which weight they come from."""

import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tda.as_built import tensor_problem
from tda.view import Statistic

_FINITE: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Models whose weights were read and are finite."""


class NotFiniteError(FloatingPointError, ValueError):
    """Numbers hold a nan or an infinity, so that nothing can be told or chosen by them."""


def not_finite(values: Tensor) -> str | None:
    """The first value that is not finite and its place, e.g. ``"nan at [3, 0]"``; None where all are finite."""
    values = values.detach()
    if not values.numel() or _all_finite([values]):
        return None
    first = values.isfinite().logical_not().int().argmax().cpu()
    place = [int(index) for index in torch.unravel_index(first, values.shape)]
    return f"{float(values.flatten()[first])} at {place}"


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors are finite: each is read once, at the speed of memory, and a device is waited for once."""
    bounds = [bound for tensor in tensors if tensor.numel() for bound in torch.aminmax(tensor)]  # nan where one is
    return not bounds or all(map(math.isfinite, torch.stack(bounds).tolist()))


def broken_weight(model: nn.Module) -> str | None:
    """The first weight of a model that is not finite, in words; None where all that can be read as they lie are."""
    for name, weight in model.named_parameters():
        if tensor_problem(weight) is None and (found := not_finite(weight)):
            return f"the weight {name} holds {found}"
    return None


def check_weights(model: nn.Module, what: str = "") -> None:
    """Raise NotFiniteError, `what` in front, unless a model's weights are finite; those of a model are read once."""
    if model in _FINITE:
        return
    broken = broken_weight(model)
    if broken is not None:
        raise NotFiniteError(what + broken)
    _FINITE.add(model)


def explained(model: nn.Module, what: str) -> NotFiniteError:
    """The error that says what is not finite and, after a look at all weights as they are now, why."""
    dtype = next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
    largest = f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:.3g}"
    cause = broken_weight(model) or f"all weights are finite, so the computation itself gave it: {largest}"
    return NotFiniteError(f"{what}; {cause}")


def check_logits(model: nn.Module, logits: Tensor, inside: Tensor) -> None:
    """Raise NotFiniteError unless logits [B, G, V] are finite where a token of the continuation counts, bool [B, G]."""
    low, high = torch.aminmax(logits, dim=-1)
    broken = ~(low.isfinite() & high.isfinite()) & inside
    if bool(broken.any()):
        row, token = broken.nonzero()[0].tolist()
        where = f"the logits of row {row}, token {token} of the continuation"
        raise explained(model, f"{where} hold {not_finite(logits[row, token])}")


def check_statistics(model: nn.Module, statistics: Sequence[Statistic | None]) -> None:
    """Raise NotFiniteError unless every layer's statistic of the prompts is finite."""
    values = [statistic.value() for statistic in statistics if statistic is not None]  # [B, F] each
    if not values or _all_finite(values):
        return
    layer, row, found = next(
        (layer, row, found)
        for layer, value in enumerate(values)
        for row, sums in enumerate(value)
        if (found := not_finite(sums)) is not None
    )
    raise explained(model, f"layer {layer}, row {row}: the prompt's statistic holds {found}")
