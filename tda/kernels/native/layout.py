"""The layout that a decode step wants: what belongs to a neuron lies together."""

from collections.abc import Callable
from contextlib import ExitStack

import torch

from tda.kernels.pages import fresh
from tda.view import Linear


@torch.no_grad()
def lay_rows(down: Linear | None, *beside: Linear) -> Callable[[], None]:
    """Store weights so that what belongs to a neuron is contiguous; return what undoes it.

    Where a neuron's rows of several projections are read together, they lie side by side: a picked neuron is then one
    longer stretch of memory. The modules see strided views of the same values, and no second copy is kept. Undoing
    restores the layout that was there, bit for bit.

    Parameters
    ----------
    down : Linear or None
        The down projection [D, F], which is stored transposed.
    *beside : Linear
        Projections with weights [F, D] whose rows are to lie before its own.
    """
    linears = beside if down is None else (*beside, down)
    rows = [linear.weight.detach().t() if linear is down else linear.weight.detach() for linear in linears]  # [F, D]
    widths = [one.shape[1] for one in rows]
    undo = ExitStack()
    for linear in linears:
        undo.callback(_restoring(linear))
    with torch.inference_mode(False):
        together = fresh((len(rows[0]), sum(widths)), rows[0].dtype, rows[0].device)
        places = [place.copy_(own) for place, own in zip(together.split(widths, dim=1), rows, strict=True)]
        for linear, place in zip(linears, places, strict=True):
            linear.lay(place.t() if linear is down else place)
    return undo.close


def _restoring(linear: Linear) -> Callable[[], None]:
    """What gives a weight the layout back that it has now, if it is still the linear's weight."""
    parameter = linear.parameter
    stride, dense = parameter.stride(), parameter.is_contiguous()

    @torch.no_grad()
    def restore() -> None:
        if linear.parameter is not parameter:
            return
        with torch.inference_mode(False):
            before = fresh(parameter.shape, parameter.dtype, parameter.device)
            if not dense:
                before = torch.empty_strided(parameter.shape, stride, dtype=before.dtype, device=before.device)
            parameter.data = before.copy_(parameter.data)

    return restore
