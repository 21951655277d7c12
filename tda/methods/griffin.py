"""GRIFFIN: the top-k neurons of the prompt."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tda.contracts import PriorMethod, Prompt, Rows, check_choice
from tda.fitting.collect import Collector, PriorCollector
from tda.methods import METHODS
from tda.prompt_statistics import RelativeSquares
from tda.view import FFN, Statistic


@METHODS.register("griffin")
@dataclass(frozen=True, kw_only=True)
class Griffin(PriorMethod):
    """Keep the k neurons with the largest relative activation over the prompt.

    Score: s_j = sqrt(Σ_t (z_tj/‖z_t‖₂)²). Source: GRIFFIN, arXiv 2404.01365. Unlike its public code, a prompt of
    one token selects too, padding never counts, and batch rows select for themselves.

    Attributes
    ----------
    sparsity : float
        Fraction of neurons left out.
    rows : {"per_row", "shared"}
        One set per batch row, or one for all rows from Σ_b s_b/√T_b.
    prior_tokens : float
        Tokens that a prior from calibration text is worth, see `PriorMethod`; 0 is as published.
    """

    name: ClassVar[str] = "griffin"
    not_calibrated: ClassVar[frozenset[str]] = frozenset({"sparsity", "rows", "prior_tokens"})

    rows: Rows = "per_row"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rows", self.rows, ("per_row", "shared"))

    def new_statistic(self, ffn: FFN) -> Statistic:
        """Relative squares of z."""
        return RelativeSquares()

    def collector(self, layers: int) -> Collector | None:
        """Mean squares over calibration windows, where there is a prior."""
        return PriorCollector(self.new_statistic, layers) if self.lacks_prior else None

    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """s: [B, F], or [1, F] with shared rows."""
        assert statistic is not None
        squares, tokens = self.squares(ffn, statistic)
        s = squares.sqrt()
        if self.rows == "per_row":
            return s
        return (s / tokens.clamp(min=1).sqrt().unsqueeze(1)).sum(0, keepdim=True)
