"""TDA: threshold-based dynamic activation, reconstructed."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tda.contracts import ErrorControlled, PriorMethod, Prompt, Rows, check_choice, check_number
from tda.fitting.collect import Collector, PriorCollector, PromptCollector
from tda.methods import METHODS
from tda.prompt_statistics import RelativeMaximum, RelativeSquares, Squares
from tda.view import FFN, Source, Statistic

Reading = Literal["relative", "l2", "max", "contribution"]


@METHODS.register("tda")
@dataclass(frozen=True, kw_only=True)
class TDA(ErrorControlled, PriorMethod):
    """Keep the neurons whose relative magnitude over the prompt reaches the layer's threshold.

    Score: R_j = sqrt(mean_t (n_tj/‖n_t‖₂)²)·√F with n_tj = z_tj·‖W_down[:, j]‖, kept where R_j ≥ threshold; so the
    count differs by layer and prompt. Source: "First Activations Matter", arXiv 2408.11393. This is a
    **reconstruction**: no public code exists, and the paper leaves normaliser, search rule and calibration text open,
    so each is an option here, and the defaults are the readings that lose least on the reference models.

    Attributes
    ----------
    statistic : {"contribution", "relative", "l2", "max"}
        The reading of "relative magnitudes (L2 over the prompt)": "contribution" is each token's fraction of the norm
        of its contributions n, root mean square over the prompt; "relative" the same of its activations z; "l2" the
        plain L2 norm of z over the prompt, scaled to RMS 1 over neurons; "max" the largest fraction of z over the
        prompt.
    source : {"z", "gate", "up"}
        The activation whose magnitude counts: z, act(gate x), or up x.
    rows : {"per_row", "shared"}
        One set per batch row, or one for all rows from the mean of R over rows.
    min_keep, max_keep : float
        Bounds of a layer's kept share, 0 <= min_keep <= max_keep <= 1.
    prior_tokens : float
        Tokens that a prior from calibration text is worth, see `PriorMethod`; 0 is as published. Of "contribution" and
        "relative" only.
    """

    name: ClassVar[str] = "tda"

    statistic: Reading = "contribution"
    source: Source = "z"
    rows: Rows = "per_row"
    min_keep: float = 0.0
    max_keep: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("statistic", self.statistic, ("relative", "l2", "max", "contribution"))
        check_choice("source", self.source, ("z", "gate", "up"))
        check_choice("rows", self.rows, ("per_row", "shared"))
        if self.prior_tokens and self.statistic not in ("contribution", "relative"):
            raise ValueError(f"prior_tokens needs statistic 'contribution' or 'relative'; got {self.statistic!r}")
        low, high = check_number("min_keep", self.min_keep), check_number("max_keep", self.max_keep)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"need 0 <= min_keep <= max_keep <= 1; got {self.min_keep} and {self.max_keep}")

    @property
    def activation(self) -> Source:
        """The activation that it looks at."""
        return self.source

    def new_statistic(self, ffn: FFN) -> Statistic:
        """Sum that the chosen reading needs."""
        if self.statistic == "l2":
            return Squares()
        if self.statistic == "max":
            return RelativeMaximum()
        return RelativeSquares(ffn.down_norms if self.statistic == "contribution" else None)

    def collector(self, layers: int) -> Collector | None:
        """The prior where there is one, then R of every prompt and of its beginnings."""
        if self.lacks_prior:
            return PriorCollector(self.new_statistic, layers)
        if self.thresholds and self.thresholds.cuts:
            return None
        return PromptCollector(self.new_statistic, self.relative_magnitude, layers)

    def relative_magnitude(self, ffn: FFN, statistic: Statistic) -> Tensor:
        """R of each row: float32 [B, F]."""
        value = statistic.value()
        if self.statistic == "max":
            return value * math.sqrt(ffn.F)
        if self.statistic == "l2":
            return (value / value.mean(1, keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)).sqrt()
        squares, tokens = self.squares(ffn, statistic)
        return (squares * (ffn.F / tokens.clamp(min=1)).unsqueeze(1)).sqrt()

    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """R: [B, F], or [1, F] with shared rows."""
        assert statistic is not None
        R = self.relative_magnitude(ffn, statistic)
        return R if self.rows == "per_row" else R.mean(0, keepdim=True)

    def keep(self, ffn: FFN, scores: Tensor, prompt: Prompt) -> Tensor:
        """R at or above the threshold of the layer and prompt length, within the bounds: bool [B, F]."""
        lengths = prompt.tokens.tolist()
        if len(scores) == 1 and len(lengths) > 1:
            lengths = [sum(lengths) / len(lengths)]
        cuts = torch.tensor([self.fitted.cut(ffn.index, length) for length in lengths], device=scores.device)
        kept = scores >= cuts.unsqueeze(1)
        count = kept.sum(1)
        bounded = count.clamp(math.ceil(self.min_keep * ffn.F), math.floor(self.max_keep * ffn.F))
        if torch.equal(count, bounded):
            return kept
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(ffn.F, device=order.device).expand_as(order))
        return rank < bounded.unsqueeze(1)
