"""The kinds of methods: one set for each prompt, with or without a prior, and one for each token, by any rule or a cut.

Shapes: B rows, T tokens, F neurons (intermediate size).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from tda.contracts.method import Kind, Method, Scope, Window
from tda.contracts.options import check_choice, check_number, check_quantization
from tda.fitting.allocate import at_level, equal_error
from tda.fitting.collect import Collector, TokenCollector
from tda.names import Allocation
from tda.view import FFN, Place, SquaresSum, Statistic

Rows = Literal["per_row", "shared"]


@dataclass(frozen=True)
class Prompt:
    """What a selection may know of a batch of prompts besides its statistic.

    Attributes
    ----------
    tokens : Tensor
        Prompt tokens per row, padding left out: int64 [B].
    key : callable
        Gives for a row a number that depends on that row's own tokens only.
    """

    tokens: Tensor
    key: Callable[[int], int]

    @property
    def rows(self) -> int:
        """Batch rows."""
        return len(self.tokens)


def kept_count(sparsity: float, F: int) -> int:
    """Neurons kept of F: F minus floor(sparsity·F + ½)."""
    return F - math.floor(sparsity * F + 0.5)


def keep_top(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` largest scores of each row; ties keep the lower index.

    Parameters
    ----------
    scores : Tensor
        [..., F]
    count : int
        How many to keep.

    Returns
    -------
    Tensor
        bool [..., F]
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = torch.topk(scores, count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, level = scores > least, scores == least
    room = count - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


@dataclass(frozen=True, kw_only=True)
class PromptMethod(Method):
    """A method whose set is fixed during decode: chosen once per prompt, or once for the model."""

    kind: ClassVar[Kind] = "prompt"
    scope: ClassVar[Scope] = "prompt"

    @property
    def knows_unseen(self) -> bool:
        """Whether it can choose of an expert that no token of a prompt reached. Where not, that one keeps all."""
        return False

    def new_statistic(self, ffn: FFN) -> Statistic | None:
        """Return a fresh statistic to be filled in prefill; None where the prompt's activations do not matter."""
        return None

    def statistics(self, ffns: Sequence[Any], sweep: SquaresSum) -> list[Statistic | None]:
        """A fresh statistic of each place, which adds squares by a kernel; None where the prompt does not matter."""
        statistics = [self.new_statistic(ffn) for ffn in ffns]
        for statistic in statistics:
            if statistic is not None:
                statistic.sweep = sweep
        return statistics

    @abstractmethod
    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """Score the neurons of one layer: float32 [B, F], or [1, F] where all rows share one set."""

    def keep(self, ffn: FFN, scores: Tensor, prompt: Prompt) -> Tensor:
        """Turn scores [B, F] into kept sets: bool [B, F]. By default the top k, k from the sparsity."""
        assert self.sparsity is not None
        return keep_top(scores, kept_count(self.sparsity, ffn.F))

    def select(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """Kept set of one layer for a batch of prompts: bool [B, F]."""
        shape = (prompt.rows, ffn.F)
        if self.keeps_all:
            return torch.ones(shape, dtype=torch.bool, device=prompt.tokens.device)
        kept = self.keep(ffn, self.scores(ffn, statistic, prompt), prompt).expand(shape)
        if ffn.experts is None or statistic is None or self.knows_unseen:
            return kept
        return kept | (statistic.tokens == 0).unsqueeze(1)  # of an expert that a prompt did not reach nothing is known


@dataclass(frozen=True, kw_only=True)
class PriorMethod(PromptMethod):
    """A prompt-wise method over mean squares of a relative statistic, which a prior may shrink to the model's own.

    S_j² = (Σ_t c_tj² + prior_tokens·m_j) / (T + prior_tokens), c the method's relative statistic and m_j its mean
    square over calibration windows: as if so many more tokens had been seen. The prior is ours: no paper has it.

    Attributes
    ----------
    prior_tokens : float
        Tokens that the prior is worth; 0 is the method as published.
    """

    prior_tokens: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= check_number("prior_tokens", self.prior_tokens) < math.inf:
            raise ValueError(f"prior_tokens is a count of tokens, 0 or more; got {self.prior_tokens}")

    @property
    def window(self) -> Window:  # type: ignore[override]
        """A prior is of whole requests."""
        return "request" if self.prior_tokens else "prompt"

    @property
    def knows_unseen(self) -> bool:
        """By its prior."""
        return self.prior_tokens > 0

    @property
    def lacks_prior(self) -> bool:
        """Whether it needs a prior and has none."""
        return self.prior_tokens > 0 and not (self.thresholds and self.thresholds.prior)

    def squares(self, ffn: FFN, statistic: Statistic) -> tuple[Tensor, Tensor]:
        """Sums of squares [B, F] and their tokens [B], the prior among them."""
        if not self.prior_tokens:
            return statistic.value(), statistic.tokens
        prior = self.numbers("prior", ffn, statistic.tokens.device)
        return statistic.value() + self.prior_tokens * prior, statistic.tokens + self.prior_tokens


@dataclass(frozen=True, kw_only=True)
class TokenMethod(Method):
    """A method that chooses anew for every decode token."""

    kind: ClassVar[Kind] = "token"
    scope: ClassVar[Scope] = "token"

    @abstractmethod
    def importance(self, ffn: Any, a: Tensor) -> Tensor:
        """Score what a place has, a token's neurons or inputs, from its activation: [..., F] -> float32 [..., F]."""

    @abstractmethod
    def keep(self, ffn: Any, importance: Tensor) -> Tensor:
        """Turn importance [..., F] into kept sets: bool [..., F]."""

    def select(self, ffn: Place, a: Tensor) -> Tensor:
        """Kept set of each token: [..., F] -> bool [..., F]."""
        if self.keeps_all:
            return torch.ones_like(a, dtype=torch.bool)
        return self.keep(ffn, self.importance(ffn, a))


@dataclass(frozen=True, kw_only=True)
class ThresholdMethod(TokenMethod):
    """A per-token method that keeps what reaches a cut: abs(a)·factor ≥ cut of the layer. Kernels know this rule."""

    kind: ClassVar[Kind] = "threshold"

    def collector(self, layers: int) -> Collector | None:
        """Importance of every neuron and token."""
        return None if self.thresholds else TokenCollector(self.importance, layers)

    def factors(self, ffn: FFN) -> Tensor | None:
        """Factor of each neuron: float32 [F]; None is 1."""
        return None

    def importance(self, ffn: FFN, a: Tensor) -> Tensor:
        """abs(a)·factor: [..., F] -> float32 [..., F]."""
        factors = self.factors(ffn)
        return a.abs().float() if factors is None else a.abs().float() * factors

    def keep(self, ffn: FFN, importance: Tensor) -> Tensor:
        """Importance at or above the layer's threshold; a nan is kept, so that logits tell of it."""
        return ~(importance < self.cut(ffn))

    def cut(self, ffn: FFN) -> float:
        """The layer's threshold; everything reaches it where nothing is to be left out."""
        if self.keeps_all:
            return 0.0
        return self.fitted.cut(ffn.index)


@dataclass(frozen=True, kw_only=True)
class ErrorControlled(Method):
    """Options of the methods whose thresholds are controlled by the error they make (CETT).

    Attributes
    ----------
    sparsity : float or None
        Mean share left out over the layers; None where `cett` is given. 0.5 if neither is.
    allocation : {"uniform", "equal_error"}
        How layers share the sparsity: the same mean share for each, or one error level for all of them. The default is
        "uniform", and "equal_error" where `cett` is given, which is such a level.
    cett : float or None
        The error level itself, instead of a sparsity: the cumulative error of tail truncation, 0 < cett < 1.
    """

    instead_of_sparsity: ClassVar[str | None] = "cett"

    sparsity: float | None = None
    allocation: Allocation | None = None
    cett: float | None = None

    def __post_init__(self) -> None:
        if self.allocation is None:
            object.__setattr__(self, "allocation", "uniform" if self.cett is None else "equal_error")
        check_choice("allocation", self.allocation, get_args(Allocation))
        if self.cett is None:
            if self.sparsity is None:
                object.__setattr__(self, "sparsity", 0.5)
            super().__post_init__()
            return
        if self.sparsity is not None:
            raise ValueError(
                f"give a sparsity or an error level, not both; got sparsity {self.sparsity}, cett {self.cett}"
            )
        check_quantization(self.quantization)
        if not 0 < check_number("cett", self.cett) < 1:
            raise ValueError(f"cett is a relative error, 0 < cett < 1; got {self.cett}")
        if self.allocation != "equal_error":
            raise ValueError(
                f"cett is one error level for all layers; it needs allocation 'equal_error', got {self.allocation!r}"
            )

    def shares(self, curves: Sequence[Any]) -> Sequence[float]:
        """The same for each layer, or what one error level for all of them gives."""
        if self.cett is not None:
            return at_level(curves, self.cett)
        if self.allocation == "equal_error":
            assert self.sparsity is not None
            return equal_error(curves, self.sparsity)
        return super().shares(curves)
