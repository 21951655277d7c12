"""GRIFFIN: the top-k neurons of the prompt."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tda.contracts import FFN, Prompt, PromptMethod, Rows, Statistic, check_choice
from tda.methods import METHODS
from tda.prompt_statistics import RelativeSquares
from tda.thresholds import Thresholds


@METHODS.register("griffin")
@dataclass(frozen=True, kw_only=True)
class Griffin(PromptMethod):
    """Keep the k neurons with the largest relative activation over the prompt.

    Score: s_j = sqrt(Σ_t (z_tj/‖z_t‖₂)²). Source: GRIFFIN, arXiv 2404.01365. Unlike its public code, a prompt of
    one token selects too, padding never counts, and batch rows select for themselves.

    Attributes
    ----------
    sparsity : float
        Share of neurons left out.
    rows : {"per_row", "shared"}
        One set per batch row, or one for all rows from Σ_b s_b/√T_b.
    """

    name: ClassVar[str] = "griffin"

    rows: Rows = "per_row"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rows", self.rows, ("per_row", "shared"))

    def new_statistic(self, ffn: FFN) -> Statistic:
        """Relative squares of z."""
        return RelativeSquares()

    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt, thresholds: Thresholds | None) -> Tensor:
        """s: [B, F], or [1, F] with shared rows."""
        assert statistic is not None
        s = statistic.value().sqrt()
        if self.rows == "per_row":
            return s
        return (s / statistic.tokens.clamp(min=1).sqrt().unsqueeze(1)).sum(0, keepdim=True)
