"""GLASS: the prompt's ranking of the neurons joined with the model's own."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tda.contracts import Prompt, PromptMethod, Window, check_choice, check_number
from tda.fitting.collect import Collector, MeanCollector
from tda.methods import METHODS
from tda.prompt_statistics import RelativeSquares
from tda.view import FFN, Statistic

TIE = 1e-6
"""Weight by which the prompt's rank decides between equal sums, which are frequent among ranks."""


@METHODS.register("glass")
@dataclass(frozen=True, kw_only=True)
class GLASS(PromptMethod):
    """Keep the k neurons that rank highest in the prompt and over calibration text together.

    Score: weight·rank_j(s) + (1 − weight)·rank_j(mean of s over calibration windows), s Griffin's statistic, or the
    same of contributions. Source: GLASS, arXiv 2508.14302. A short prompt tells little; the model's own ranking fills
    in.

    Attributes
    ----------
    sparsity : float
        Fraction of neurons left out.
    weight : float
        Weight of the prompt's ranks, 0 <= weight <= 1: 1 is the prompt alone, 0 the calibration text alone.
    statistic : {"relative", "contribution"}
        Activations z_tj, or contributions z_tj·‖W_down[:, j]‖, each relative to its token's norm.
    """

    name: ClassVar[str] = "glass"
    window: ClassVar[Window] = "request"
    not_calibrated: ClassVar[frozenset[str]] = frozenset({"sparsity", "weight"})

    weight: float = 0.5
    statistic: Literal["relative", "contribution"] = "relative"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("statistic", self.statistic, ("relative", "contribution"))
        if not 0 <= check_number("weight", self.weight) <= 1:
            raise ValueError(f"weight is the prompt's fraction, 0 <= weight <= 1; got {self.weight}")

    @property
    def knows_unseen(self) -> bool:
        """By the model's own ranking."""
        return True

    def new_statistic(self, ffn: FFN) -> Statistic:
        """Relative squares."""
        return RelativeSquares(ffn.down_norms if self.statistic == "contribution" else None)

    def collector(self, layers: int) -> Collector | None:
        """Mean of the statistic over windows."""
        return None if self.thresholds else MeanCollector(self.new_statistic, layers)

    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """Joined ranks: float64 [B, F]."""
        assert statistic is not None
        own = statistic.value()
        prior = self.numbers("scores", ffn, own.device).unsqueeze(0)
        ranked = ranks(own)
        return self.weight * ranked + (1 - self.weight) * ranks(prior) + TIE * ranked


def ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, 1 for the least to F; equal ones share the mean of theirs: float64 [B, F]."""
    ordered = values.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, values, right=right).double() for right in (False, True))
    return (below + upto + 1) / 2
