"""Scores of a task, one value an item: their intervals, their differences, and what those say."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.special import ndtri

from tda.records import MIN_GROUPS, Better
from tda.statistics.estimates import LEVEL, Estimate, Values, arithmetic, as_array, t_quantile

MARGIN = 0.01
"""A share that differs from dense's by less than one point counts as equal."""
Verdict = Literal["as good as dense", "better", "worse", "cannot tell"]


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean, as lm-eval prints it; None for one value.

    Raises
    ------
    ValueError
        If there are no values.
    """
    data = as_array(values)
    return float(data.std(ddof=1) / np.sqrt(len(data))) if len(data) > 1 else None


def _shares(values: Sequence[float]) -> Values:
    data = as_array(values)
    if not ((data >= 0) & (data <= 1)).all():
        raise ValueError(f"a share lies between 0 and 1, got {data[~((data >= 0) & (data <= 1))][0]:g}")
    return data


def item_score(values: Sequence[float], *, share: bool) -> Estimate:
    """Mean of a score over items: Wilson's interval where each item is right or wrong, else t.

    Parameters
    ----------
    values : sequence of float
        One an item.
    share : bool
        Whether a score lies within 0 and 1; its bounds do, too, then.

    Raises
    ------
    ValueError
        If there are no values, or a share is none.

    References
    ----------
    E. B. Wilson, Probable inference, the law of succession, and statistical inference, Journal of the American
    Statistical Association 22 (1927).
    """
    data = _shares(values) if share else as_array(values)
    count = len(data)
    if not (share and np.isin(data, (0, 1)).all()):
        found = arithmetic(values)
        return _within(found, 0.0, 1.0) if share else found
    value = float(data.mean())
    if count < MIN_GROUPS:
        return Estimate(value, None, None, count)
    square = _normal() ** 2
    middle = (data.sum() + square / 2) / (count + square)
    reach = _normal() / (count + square) * np.sqrt(count * value * (1 - value) + square / 4)
    # Of no or all items right, the bound is 0 or 1 but for rounding.
    low, high = min(float(middle - reach), value), max(float(middle + reach), value)
    return _within(Estimate(value, low, high, count), 0.0, 1.0)


def item_difference(
    one: Mapping[int, float], other: Mapping[int, float], *, share: bool, comparisons: int = 1
) -> Estimate | None:
    """Mean of one - other over the items that both answered, by the items' numbers; None without any.

    Where each item is right or wrong, the interval is Tango's: the differences that a score test of matched pairs
    does not reject. Otherwise it is the t interval of the differences; of a share, it is Tango's too where no answer
    differs, and reaches no less far than Agresti's and Min's does then where some do: that so many items agree is no
    proof that all others do.

    Agresti's and Min's adjusted Wald interval is simpler, and too narrow for right and wrong items: with 20 of which
    few change, nearly all for the worse, it covers 86% where it claims 95%, and at the level of 12 comparisons it
    misses up to three times as often as it claims (`tests/test_statistics.py` holds Tango's to its level).

    Parameters
    ----------
    one, other : mapping of int to float
        Score by number of the item.
    share : bool
        Whether scores lie within 0 and 1.
    comparisons : int
        Differences that the intervals hold for together (Bonferroni).

    References
    ----------
    T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998). A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched
    proportions, Statistics in Medicine 24 (2005).
    """
    numbers = [number for number in one if number in other]
    if not numbers:
        return None
    left, right = as_array([one[number] for number in numbers]), as_array([other[number] for number in numbers])
    apart, count = left - right, len(numbers)
    value = float(apart.mean())
    if count < MIN_GROUPS:
        return Estimate(value, None, None, count)
    level = 1 - (1 - LEVEL) / comparisons
    if not share:
        return arithmetic(apart.tolist(), level)
    z = _normal(level)
    if np.isin([left, right], (0, 1)).all() or not apart.any():
        gained, lost = int((apart > 0).sum()), int((apart < 0).sum())
        low, high = (_tango(gained, lost, count, z, end) for end in (-1.0, 1.0))
        return Estimate(value, low, high, count)
    spread = float(apart.std(ddof=1)) / np.sqrt(count)
    reach = max(t_quantile(count - 1, level) * spread, z / (count + 2))
    return _within(Estimate(value, value - reach, value + reach, count), -1.0, 1.0)


def _tango(gained: int, lost: int, count: int, z: float, end: float) -> float:
    """The difference farthest towards an end, -1 or 1, that the score test does not reject, by bisection."""
    kept, rejected = (gained - lost) / count, end
    if _unrejected(gained, lost, count, z, end):
        return end
    for _ in range(60):
        middle = (kept + rejected) / 2
        if _unrejected(gained, lost, count, z, middle):
            kept = middle
        else:
            rejected = middle
    return kept


def _unrejected(gained: int, lost: int, count: int, z: float, difference: float) -> bool:
    """Whether a score test allows for a difference; `down` is the likeliest share of lost items under it."""
    half = (gained + lost - (2 * count - gained + lost) * difference) / (4 * count)
    root = half**2 + lost * difference * (1 - difference) / (2 * count)
    down = half + np.sqrt(max(root, 0.0))
    variance = max(2 * down + difference * (1 - difference), 0.0)
    return bool((gained - lost - count * difference) ** 2 <= z**2 * count * variance)


def verdict(difference: Estimate, margin: float | None, better: Better) -> Verdict:
    """What the interval of a difference to dense says; one without an interval says nothing.

    Parameters
    ----------
    difference : Estimate
        Score less dense's, with the interval at the level that the verdict is to hold at.
    margin : float or None
        Differences up to it count as none: within it, the score is as good as dense's. None where no such margin is
        known.
    better : {"lower", "higher"}
        Which scores are better.
    """
    low, high = difference.low, difference.high
    if low is None or high is None or np.isnan([low, high]).any():
        return "cannot tell"
    if margin is not None and -margin <= low and high <= margin:
        return "as good as dense"
    if low <= 0 <= high:
        return "cannot tell"
    return "better" if (low > 0) == (better == "higher") else "worse"


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates, e.g. of several tasks, bounded by their own bounds (MOVER).

    Raises
    ------
    ValueError
        If there are no estimates.

    References
    ----------
    G. Y. Zou, A. Donner, Construction of confidence limits about effect measures, Statistics in Medicine 27 (2008).
    """
    value = float(as_array([estimate.value for estimate in estimates]).mean())
    groups = min(estimate.groups for estimate in estimates)
    bounded = [(one.value, one.low, one.high) for one in estimates if one.low is not None and one.high is not None]
    if len(bounded) < len(estimates):
        return Estimate(value, None, None, groups)
    down = float(np.sqrt(sum((middle - low) ** 2 for middle, low, _ in bounded))) / len(bounded)
    up = float(np.sqrt(sum((high - middle) ** 2 for middle, _, high in bounded))) / len(bounded)
    return Estimate(value, value - down, value + up, groups)


def _normal(level: float = LEVEL) -> float:
    """Two-sided quantile of the normal distribution."""
    return float(ndtri((1 + level) / 2))


def _within(estimate: Estimate, lowest: float, highest: float) -> Estimate:
    """An estimate whose bounds lie within what is possible."""
    if estimate.low is None or estimate.high is None:
        return estimate
    return Estimate(estimate.value, max(estimate.low, lowest), min(estimate.high, highest), estimate.groups)
