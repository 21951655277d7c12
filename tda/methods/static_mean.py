"""Static mean: Griffin's statistic averaged over calibration prompts; what a prompt-based method must beat."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tda.contracts import Prompt, PromptMethod, Scope, Window
from tda.fitting.collect import Collector, MeanCollector
from tda.methods import METHODS
from tda.prompt_statistics import RelativeSquares
from tda.view import FFN, Statistic


@METHODS.register("static_mean")
@dataclass(frozen=True, kw_only=True)
class StaticMean(PromptMethod):
    """Keep the neurons that matter on average over calibration prompts, the same for every prompt.

    Score: the mean over calibration prompts of s_j/√T, s Griffin's statistic and T the prompt's length.

    Attributes
    ----------
    sparsity : float
        Fraction of neurons left out.
    """

    name: ClassVar[str] = "static_mean"
    scope: ClassVar[Scope] = "model"
    window: ClassVar[Window] = "request"
    not_calibrated: ClassVar[frozenset[str]] = frozenset({"sparsity"})

    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """Averaged statistic from the artifact: [1, F]."""
        return self.numbers("scores", ffn, prompt.tokens.device).unsqueeze(0)

    def collector(self, layers: int) -> Collector | None:
        """Mean over prompts of Griffin's statistic."""
        return None if self.thresholds else MeanCollector(lambda ffn: RelativeSquares(), layers)
