"""The weights that kernels read: those of the model, or what a quantizer has made of them."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from tda.kernels.hugepages import empty_on_huge_pages
from tda.view import Linear


class Stored(NamedTuple):
    """A linear's weights as they lie.

    Attributes
    ----------
    values : Tensor
        [N, K]
    bias : Tensor or None
        [N]
    scale : Tensor or None
        Factor of each row: float32 [N].
    """

    values: Tensor
    bias: Tensor | None
    scale: Tensor | None = None


class Weights:
    """The weights of a model's linears, where the model has them."""

    def of(self, linear: Linear) -> Stored:
        """A linear's weights."""
        return Stored(linear.weight.detach(), linear.bias)

    def lay(self, linear: Linear, values: Tensor) -> None:
        """Let a linear's weights lie where equal ones do: [N, K]."""
        linear.lay(values)

    def keep(self, linear: Linear) -> Callable[[], None]:
        """What gives a linear's weights the layout back that they have now, if the linear still has them."""
        parameter = linear.parameter
        stride, dense = parameter.stride(), parameter.is_contiguous()

        @torch.no_grad()
        def restore() -> None:
            if linear.parameter is not parameter:
                return
            with torch.inference_mode(False):
                before = empty_on_huge_pages(parameter.shape, parameter.dtype, parameter.device)
                if not dense:
                    before = torch.empty_strided(parameter.shape, stride, dtype=before.dtype, device=before.device)
                parameter.data = before.copy_(parameter.data)

        return restore


AS_BUILT = Weights()


@torch.no_grad()
def lay_rows(down: Linear | None, *beside: Linear, weights: Weights = AS_BUILT) -> Callable[[], None]:
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
    weights : Weights
        Where the weights are.
    """
    linears = beside if down is None else (*beside, down)
    own = [weights.of(linear).values for linear in linears]
    rows = [values.t() if linear is down else values for linear, values in zip(linears, own, strict=True)]  # [F, D]
    widths = [one.shape[1] for one in rows]
    undo = ExitStack()
    for linear in linears:
        undo.callback(weights.keep(linear))
    with torch.inference_mode(False):
        together = empty_on_huge_pages((len(rows[0]), sum(widths)), rows[0].dtype, rows[0].device)
        places = [place.copy_(row) for place, row in zip(together.split(widths, dim=1), rows, strict=True)]
        for linear, place in zip(linears, places, strict=True):
            weights.lay(linear, place.t() if linear is down else place)
    return undo.close
