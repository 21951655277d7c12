"""CATS: contextually aware thresholding of the gate."""

from dataclasses import dataclass
from typing import ClassVar

from tda.contracts import ThresholdMethod
from tda.methods import METHODS
from tda.view import Projection, Source


@METHODS.register("cats")
@dataclass(frozen=True, kw_only=True)
class CATS(ThresholdMethod):
    """Leave out, for each decode token, the neurons whose gate is closed.

    Kept where abs(act(W_gate x)_j) ≥ τ of the layer, each layer leaving out the asked share on calibration text.
    Source: CATS, arXiv 2404.08763. It looks at the gate only, so rows of up and down are both skipped; gated FFNs only.

    Attributes
    ----------
    sparsity : float
        Fraction of neurons left out in each layer, on average.
    """

    name: ClassVar[str] = "cats"
    skips: ClassVar[tuple[Projection, ...]] = ("up", "down")

    @property
    def activation(self) -> Source:
        """The gate's activation."""
        return "gate"
