"""The layout that a decode step wants: a row of the down projection for each neuron."""

from collections.abc import Callable

import torch
from torch import nn

from tda.kernels.pages import fresh


@torch.no_grad()
def lay_rows(linear: nn.Linear) -> Callable[[], None]:
    """Store a weight [D, F] transposed, so that what belongs to a neuron is contiguous; return what undoes it.

    The module sees a strided view of the same values, and no second copy is kept. Undoing restores the layout that was
    there, bit for bit.
    """
    parameter = linear.weight
    stride, dense = parameter.stride(), parameter.is_contiguous()
    with torch.inference_mode(False):
        rows = fresh(parameter.shape[::-1], parameter.dtype, parameter.device)
        parameter.data = rows.copy_(parameter.data.t()).t()

    @torch.no_grad()
    def undo() -> None:
        if linear.weight is parameter:
            with torch.inference_mode(False):
                before = fresh(parameter.shape, parameter.dtype, parameter.device)
                if not dense:
                    before = torch.empty_strided(parameter.shape, stride, dtype=before.dtype, device=before.device)
                parameter.data = before.copy_(parameter.data)

    return undo
