"""TT: threshold truncation of each token's neuron contributions."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tda.contracts import ErrorControlled, ThresholdMethod
from tda.methods import METHODS
from tda.view import FFN, Projection


@METHODS.register("tt")
@dataclass(frozen=True, kw_only=True)
class TT(ErrorControlled, ThresholdMethod):
    """Leave out, for each decode token, the neurons whose contribution is below the layer's threshold.

    Kept where ‖n_j‖ = abs(z_j)·‖W_down[:, j]‖ ≥ ε of the layer. Source: ReLU² wins, arXiv 2402.03804
    (thresholds by CETT). As published it needs gate and up in full before it decides, so it saves only the down
    projection.
    """

    name: ClassVar[str] = "tt"
    skips: ClassVar[tuple[Projection, ...]] = ("down",)

    def factors(self, ffn: FFN) -> Tensor:
        """‖W_down[:, j]‖: float32 [F]."""
        return ffn.down_norms
