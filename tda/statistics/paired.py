"""Ratios and differences of two quantities: paired within groups, or of two processes."""

from collections.abc import Sequence

import numpy as np

from tda.records import MIN_GROUPS, Measurement
from tda.statistics.estimates import LEVEL, Estimate, as_array, bootstrap, by_group, geometric, t_quantile


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
    top, bottom = as_array(above), as_array(below)
    if bottom.mean() == 0:
        raise ValueError("the mean that is divided by is zero")
    value, groups = float(top.mean() / bottom.mean()), len(top)
    if groups < MIN_GROUPS:
        return Estimate(value, None, None, groups)
    spread = t_quantile(groups - 1, level) ** 2 * np.cov(top, bottom) / groups
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
    reach = t_quantile(sum(variances) ** 2 / weight, level) * np.sqrt(sum(variances))
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
