"""How much a series changed between two builds that ran in the same blocks, and how sure that is.

Each block gives one log ratio (new over old, one fresh process each). Blocks hold bursts of foreign load, so the
estimate is their trimmed mean with Yuen's error; its variance is moderated towards what this series' other steps on
this machine showed, which is the between-process A/A noise (empirical Bayes as in Smyth 2004, "Linear models and
empirical Bayes methods", with a capped weight).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tda.statistics import Values

TRIM = 0.2
"""Share of the blocks cut off at either end."""
PRIOR_WEIGHT = 2.0
"""The A/A noise counts at most this many times a step's own degrees of freedom."""
MIN_BLOCKS = 4


@dataclass(frozen=True)
class Prior:
    """Noise of one series: variance of a step's block values, and the degrees of freedom that it comes from."""

    variance: float
    dof: float


@dataclass(frozen=True)
class Effect:
    """A log ratio with its standard error and degrees of freedom."""

    log_ratio: float
    error: float
    dof: float

    @property
    def size(self) -> float:
        """Relative change: .1 is 10% more than before."""
        return float(np.expm1(self.log_ratio))

    @property
    def p(self) -> float:
        """Two-sided p-value of no change."""
        if self.error == 0:
            return 1.0 if self.log_ratio == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.log_ratio) / self.error, self.dof))

    def bounds(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of `size`."""
        half = float(stats.t.ppf((1 + level) / 2, self.dof)) * self.error
        return float(np.expm1(self.log_ratio - half)), float(np.expm1(self.log_ratio + half))

    def floor(self, level: float = 0.99) -> float:
        """Relative change that noise alone stays within at this level: what the series cannot resolve."""
        return float(np.expm1(stats.t.ppf((1 + level) / 2, self.dof) * self.error))


def _trimmed(differences: Values) -> tuple[float, float, int]:
    """Trimmed mean, Winsorised variance, and the number of values that count."""
    ordered = np.sort(differences)
    cut = int(TRIM * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    winsorised = np.clip(ordered, kept[0], kept[-1])
    return float(kept.mean()), float(winsorised.var(ddof=1)), len(kept)


def prior(steps: Iterable[Values]) -> Prior | None:
    """Pool the noise of steps of one series, each about its own mean; None without a step of `MIN_BLOCKS` blocks."""
    parts = [_trimmed(step) for step in steps if len(step) >= MIN_BLOCKS]
    if not parts:
        return None
    weights = np.array([kept - 1 for _, _, kept in parts], dtype=np.float64)
    variances = np.array([variance for _, variance, _ in parts])
    return Prior(float((weights * variances).sum() / weights.sum()), float(weights.sum()))


def effect(differences: Values, noise: Prior | None = None) -> Effect:
    """Estimate a change from its block values.

    Parameters
    ----------
    differences : array [blocks]
        Log ratios, new over old.
    noise : Prior, optional
        What other steps of the series showed.

    Raises
    ------
    ValueError
        With fewer than `MIN_BLOCKS` blocks.
    """
    blocks = len(differences)
    if blocks < MIN_BLOCKS:
        raise ValueError(f"{blocks} blocks; an effect needs {MIN_BLOCKS}")
    mean, variance, kept = _trimmed(differences)
    dof = float(kept - 1)
    if noise is not None:
        weight = min(noise.dof, PRIOR_WEIGHT * dof)
        variance = (weight * noise.variance + dof * variance) / (weight + dof)
        dof += weight
    return Effect(mean, _error(variance, blocks), dof)


def _error(variance: float, blocks: int) -> float:
    """Yuen's standard error of a trimmed mean, from the Winsorised variance."""
    kept = blocks - 2 * int(TRIM * blocks)
    return float(np.sqrt(variance * (blocks - 1) / (kept * (kept - 1))))


def resolution(noise: Prior, blocks: int) -> Effect:
    """An effect of nothing at this noise: its `floor` is the between-process A/A floor of so many blocks."""
    return Effect(0.0, _error(noise.variance, blocks), noise.dof)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected so that one false alarm among all of them is as unlikely as asked (Holm 1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return [float(value) for value in corrected]
