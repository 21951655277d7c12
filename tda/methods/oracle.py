"""The per-token oracle: what no selection that must be made beforehand can beat."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tda.contracts import TokenMethod, keep_top, kept_count
from tda.methods import METHODS
from tda.view import FFN, Projection


@METHODS.register("oracle")
@dataclass(frozen=True, kw_only=True)
class Oracle(TokenMethod):
    """Keep, for each decode token, the k neurons that contribute most to its output.

    Score: ‖n_j‖ = abs(z_j)·‖W_down[:, j]‖. It knows z before it chooses, so it is a bound of quality and never
    has a speed.

    Attributes
    ----------
    sparsity : float
        Fraction of neurons left out.
    """

    name: ClassVar[str] = "oracle"
    skips: ClassVar[tuple[Projection, ...]] = ()
    fast: ClassVar[bool] = False

    def importance(self, ffn: FFN, a: Tensor) -> Tensor:
        """Size of each neuron's contribution to the output."""
        return a.abs().float() * ffn.down_norms

    def keep(self, ffn: FFN, importance: Tensor) -> Tensor:
        """Top k of each token; a nan is kept, so that logits tell of it."""
        assert self.sparsity is not None
        return keep_top(importance.nan_to_num(math.inf, math.inf), kept_count(self.sparsity, ffn.F))
