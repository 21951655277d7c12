"""Estimates from raw samples, each with a 95% interval: ratios and times by t on logarithms, quality by bootstrap.

The unit is a group (a round of timings, a document of quality, an item of a task), never a token or a repeat. An
interval says how well this process is known; what differs from process to process (memory layout, neighbours) is not
in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from tda.records import MIN_GROUPS as MIN_GROUPS
from tda.records import Better, Measurement, Record

RESAMPLES = 2000
LEVEL = 0.95
LOOKED_LEVEL = 0.97
"""Level of the t interval of a case that gets no more rounds once its interval is narrow (``precision``).

Looking after each round favours rounds whose scatter looks small: a 95% interval would cover 92% then. At this level it
covers 95% or more, whatever width is asked (`tests/test_statistics.py` draws it).
"""

BLIND = 0.5
"""An A/A floor above this hides what one would want to see: no verdict follows from it."""

MARGIN = 0.01
"""A share that differs from dense's by less than one point counts as equal."""
Verdict = Literal["as good as dense", "better", "worse", "cannot tell"]

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95% interval; the bounds are None where there are too few groups."""

    value: float
    low: float | None
    high: float | None
    groups: int

    def __str__(self) -> str:
        return f"{self.value:.3g}" + (f" [{self.low:.3g}, {self.high:.3g}]" if self.low is not None else "")


def by_group(measurement: Measurement) -> dict[int, float]:
    """Median sample of each group."""
    samples: dict[int, list[float]] = {}
    groups = measurement.groups or range(len(measurement.samples))
    for group, sample in zip(groups, measurement.samples, strict=True):
        samples.setdefault(group, []).append(sample)
    return {group: values[0] if len(values) == 1 else float(np.median(values)) for group, values in samples.items()}


def _array(values: Sequence[float]) -> Values:
    if not len(values):
        raise ValueError("no values to estimate from")
    return np.asarray(values, dtype=np.float64)


# Estimates of one quantity.


def arithmetic(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Arithmetic mean with its t interval, one value a group.

    Raises
    ------
    ValueError
        If there are no values.
    """
    data = _array(values)
    if (data == data[0]).all():  # a mean of equal values may differ from them in the last bit
        value, reach = float(data[0]), 0.0
    else:
        value = float(data.mean())
        reach = _quantile(len(data) - 1, level) * float(data.std(ddof=1)) / np.sqrt(len(data))
    if len(data) < MIN_GROUPS:
        return Estimate(value, None, None, len(data))
    return Estimate(value, value - reach, value + reach, len(data))


def geometric(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Geometric mean of positive values (times, sizes, ratios) with the t interval of the mean of their logarithms.

    The inverse of a ratio has the inverse estimate and bounds.

    Raises
    ------
    ValueError
        If there are no values, or one is not positive.
    """
    data = _array(values)
    if not (data > 0).all():
        raise ValueError(f"a geometric mean needs positive values, got {data[~(data > 0)][0]:g}")
    if (data == data[0]).all():
        return arithmetic(values)
    return _exponential(arithmetic(np.log(data).tolist(), level))


def typical(values: Sequence[float]) -> Estimate:
    """`geometric` of what is positive, as times, sizes and ratios are; `arithmetic` of what may be zero or less."""
    return geometric(values) if min(values, default=1.0) > 0 else arithmetic(values)


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Arithmetic mean with its percentile bootstrap over groups: for quality, whose groups are many documents.

    Raises
    ------
    ValueError
        If there are no values.
    """
    data = _array(values)
    value = float(data.mean())
    if len(data) < MIN_GROUPS:
        return Estimate(value, None, None, len(data))
    drawn = np.random.default_rng(seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(data[drawn].mean(axis=-1), (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(data))


def perplexity(values: Sequence[float]) -> Estimate:
    """Geometric mean of what is itself the exponential of a mean, with the bootstrap of that mean."""
    return _exponential(bootstrap(np.log(_array(values)).tolist()))


def _exponential(estimate: Estimate) -> Estimate:
    low, high = (None if bound is None else float(np.exp(bound)) for bound in (estimate.low, estimate.high))
    return Estimate(float(np.exp(estimate.value)), low, high, estimate.groups)


def _quantile(dof: float, level: float = LEVEL, comparisons: int = 1) -> float:
    """Two-sided quantile of t that holds for some comparisons together (Bonferroni)."""
    return float(stdtrit(dof, 1 - (1 - level) / (2 * comparisons))) if dof > 0 else float("nan")


# Estimates of two quantities.


def fieller(above: Sequence[float], below: Sequence[float], level: float = LEVEL) -> Estimate:
    """Ratio of two means over paired groups, bounded by Fieller's theorem.

    The set of ratios q for which the mean of ``above - q * below`` is not told from zero by a t test. Where `below`
    itself is not told from zero, that set has no end: its bounds are infinite then.

    Raises
    ------
    ValueError
        If there are no values, or the mean of `below` is zero.

    References
    ----------
    E. C. Fieller, Some problems in interval estimation, Journal of the Royal Statistical Society B 16 (1954).
    """
    top, bottom = _array(above), _array(below)
    if bottom.mean() == 0:
        raise ValueError("the mean that is divided by is zero")
    value, groups = float(top.mean() / bottom.mean()), len(top)
    if groups < MIN_GROUPS:
        return Estimate(value, None, None, groups)
    spread = _quantile(groups - 1, level) ** 2 * np.cov(top, bottom) / groups
    square = bottom.mean() ** 2 - spread[1, 1]
    if square <= 0:
        return Estimate(value, -np.inf, np.inf, groups)
    middle = top.mean() * bottom.mean() - spread[0, 1]
    reach = np.sqrt(max(middle**2 - square * (top.mean() ** 2 - spread[0, 0]), 0.0))
    return Estimate(value, float((middle - reach) / square), float((middle + reach) / square), groups)


def unpaired_ratio(new: Sequence[float], old: Sequence[float], level: float = LEVEL) -> Estimate:
    """Ratio of geometric means of two processes' rounds, by Welch's t on their logarithms.

    Raises
    ------
    ValueError
        If either has no values, or one that is not positive.
    """
    one, other = geometric(new), geometric(old)
    value, groups = one.value / other.value, min(one.groups, other.groups)
    if groups < MIN_GROUPS:
        return Estimate(value, None, None, groups)
    variances = [float(np.log(values).var(ddof=1)) / len(values) for values in (new, old)]
    if not any(variances):
        return Estimate(value, value, value, groups)
    weight = sum(v**2 / (len(values) - 1) for v, values in zip(variances, (new, old), strict=True))
    reach = _quantile(sum(variances) ** 2 / weight, level) * np.sqrt(sum(variances))
    return Estimate(value, float(value * np.exp(-reach)), float(value * np.exp(reach)), groups)


def ratios(numerator: Measurement, denominator: Measurement) -> dict[int, float]:
    """Ratio of the two medians within each group that both have."""
    above, below = by_group(numerator), by_group(denominator)
    return {group: above[group] / below[group] for group in above if below.get(group)}


def paired_ratio(numerator: Measurement, denominator: Measurement, level: float = LEVEL) -> Estimate | None:
    """Geometric mean over groups of the ratio of the two medians within a group; None without a common group."""
    found = list(ratios(numerator, denominator).values())
    return geometric(found, level) if found else None


def paired_difference(left: Measurement, right: Measurement) -> Estimate | None:
    """Mean over groups of left - right, with its bootstrap; None without a common group."""
    one, other = by_group(left), by_group(right)
    differences = [one[group] - other[group] for group in one if group in other]
    return bootstrap(differences) if differences else None


def floor(times: Sequence[Sequence[float]], compared: int) -> float:
    """What the mean ratios to dense stay within, with 95% for all of them together, when nothing changes anything.

    Noise is what is left of the logarithms of times when the mean of each case and of each round is taken out, so that
    all cases tell of it and not the control alone; it is taken to be alike in all. The level is corrected for the
    number of comparisons (Bonferroni). What dense and its control differ by is within the floor, too.

    Parameters
    ----------
    times : sequence of sequence of float
        One row a case, one column a round; dense first, its control second.
    compared : int
        How many are held against the floor.
    """
    logs = np.log(np.asarray(times, dtype=np.float64))
    left = logs - logs.mean(0) - logs.mean(1, keepdims=True) + logs.mean()
    dof = (logs.shape[0] - 1) * (logs.shape[1] - 1)
    error = np.sqrt(2 * float((left**2).sum()) / dof / logs.shape[1])
    apart = abs(float(logs[1].mean() - logs[0].mean()))
    return float(np.expm1(max(_quantile(dof, comparisons=compared) * error, apart)))


# Scores of a task, one value an item.


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean, as lm-eval prints it; None for one value.

    Raises
    ------
    ValueError
        If there are no values.
    """
    data = _array(values)
    return float(data.std(ddof=1) / np.sqrt(len(data))) if len(data) > 1 else None


def _shares(values: Sequence[float]) -> Values:
    data = _array(values)
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
    data = _shares(values) if share else _array(values)
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
    left, right = _array([one[number] for number in numbers]), _array([other[number] for number in numbers])
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
    reach = max(_quantile(count - 1, level) * spread, z / (count + 2))
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
    value = float(_array([estimate.value for estimate in estimates]).mean())
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


# Records beside dense.


def is_baseline(record: Record) -> bool:
    """Whether a record is the dense run that ratios are taken to (not its A/A control)."""
    return record.case.is_baseline


def level_of(record: Record) -> float:
    """Level of the intervals of a record's times: higher where its rounds were stopped by looking at them."""
    return LOOKED_LEVEL if record.conditions.get("precision") else LEVEL


def finite(record: Record, name: str) -> bool:
    """Whether all samples of a measurement are numbers; there may be none."""
    return bool(np.isfinite(record.samples(name)).all())


def speedup(record: Record, dense: Record, name: str = "decode_ms") -> Estimate | None:
    """Dense time over the record's time, paired per round; None where either has no samples."""
    if not (record.samples(name) and dense.samples(name)):
        return None
    return paired_ratio(dense.measurements[name], record.measurements[name], level_of(record))


def noise_floor(control: Record, dense: Record, others: Sequence[Record] = (), name: str = "decode_ms") -> float | None:
    """`floor` of what is held against dense, with the control: what says nothing about a method.

    Parameters
    ----------
    control, dense : Record
        The two runs of dense.
    others : sequence of Record
        What is held against the floor; a case that lacks rounds tells nothing of the noise.

    Returns
    -------
    float or None
        E.g. 0.03 where a ratio within 3% says nothing; None with fewer than `MIN_GROUPS` rounds.
    """
    found = [by_group(one.measurements[name]) for one in (dense, control, *others) if one.samples(name)]
    if not (dense.samples(name) and control.samples(name)):
        return None
    rounds = found[0].keys() & found[1].keys()
    if len(rounds) < MIN_GROUPS:
        return None
    return floor([[one[number] for number in rounds] for one in found if rounds <= one.keys()], max(len(others), 1))
