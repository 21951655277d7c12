"""TT: threshold truncation of each token's neuron contributions."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tda.contracts import FFN, ErrorControlled, Reads, TokenMethod
from tda.methods import METHODS
from tda.thresholds import Thresholds


def contribution(ffn: FFN, z: Tensor) -> Tensor:
    """‖n_j‖ = abs(z_j)·‖W_down[:, j]‖: [..., F] -> float32 [..., F]."""
    return z.abs().float() * ffn.down_norms


@METHODS.register("tt")
@dataclass(frozen=True, kw_only=True)
class TT(ErrorControlled, TokenMethod):
    """Leave out, for each decode token, the neurons whose contribution is below the layer's threshold.

    Kept where ‖n_j‖ = abs(z_j)·‖W_down[:, j]‖ ≥ ε of the layer. Source: ReLU² wins, arXiv 2402.03804
    (thresholds by CETT). As published it needs gate and up in full before it decides, so it saves only the down
    projection.
    """

    name: ClassVar[str] = "tt"
    reads: ClassVar[Reads] = Reads(gate=False, up=False, down=True)

    def importance(self, ffn: FFN, a: Tensor) -> Tensor:
        """Size of each neuron's contribution to the output."""
        return contribution(ffn, a)

    def keep(self, ffn: FFN, importance: Tensor, thresholds: Thresholds | None) -> Tensor:
        """Contribution at or above the layer's threshold."""
        assert thresholds is not None
        return importance >= thresholds.cut(ffn.index)
