"""Static mean: Griffin's statistic averaged over calibration prompts; what a prompt-based method must beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tda.contracts import FFN, Prompt, PromptMethod, Scope, Statistic
from tda.methods import METHODS
from tda.prompt_statistics import RelativeSquares
from tda.thresholds import Thresholds


@METHODS.register("static_mean")
@dataclass(frozen=True, kw_only=True)
class StaticMean(PromptMethod):
    """Keep the neurons that matter on average over calibration prompts, the same for every prompt.

    Score: the mean over calibration prompts of s_j/√T, s Griffin's statistic and T the prompt's length.

    Attributes
    ----------
    sparsity : float
        Share of neurons left out.
    """

    name: ClassVar[str] = "static_mean"
    scope: ClassVar[Scope] = "model"
    needs_thresholds: ClassVar[bool] = True
    not_calibrated: ClassVar[frozenset[str]] = frozenset({"sparsity"})

    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt, thresholds: Thresholds | None) -> Tensor:
        """Averaged statistic from the artifact: [1, F]."""
        assert thresholds is not None
        return torch.tensor([thresholds.layer_scores(ffn.index)], device=prompt.tokens.device)

    def calibration_statistic(self, ffn: FFN) -> Statistic:
        """The statistic whose average the artifact holds."""
        return RelativeSquares()
