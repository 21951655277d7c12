"""Estimates of one quantity, each with its interval: t where the groups are few rounds, bootstrap for documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from tda.records import MIN_GROUPS, Measurement

RESAMPLES = 2000
LEVEL = 0.95

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


def as_array(values: Sequence[float]) -> Values:
    """Values as float64; ValueError if there are none."""
    if not len(values):
        raise ValueError("no values to estimate from")
    return np.asarray(values, dtype=np.float64)


def arithmetic(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Arithmetic mean with its t interval, one value a group.

    Raises
    ------
    ValueError
        If there are no values.
    """
    data = as_array(values)
    if (data == data[0]).all():  # a mean of equal values may differ from them in the last bit
        value, reach = float(data[0]), 0.0
    else:
        value = float(data.mean())
        reach = t_quantile(len(data) - 1, level) * float(data.std(ddof=1)) / np.sqrt(len(data))
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
    data = as_array(values)
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
    data = as_array(values)
    value = float(data.mean())
    if len(data) < MIN_GROUPS:
        return Estimate(value, None, None, len(data))
    drawn = np.random.default_rng(seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(data[drawn].mean(axis=-1), (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(data))


def perplexity(values: Sequence[float]) -> Estimate:
    """Geometric mean of what is itself the exponential of a mean, with the bootstrap of that mean."""
    return _exponential(bootstrap(np.log(as_array(values)).tolist()))


def _exponential(estimate: Estimate) -> Estimate:
    low, high = (None if bound is None else float(np.exp(bound)) for bound in (estimate.low, estimate.high))
    return Estimate(float(np.exp(estimate.value)), low, high, estimate.groups)


def t_quantile(dof: float, level: float = LEVEL, comparisons: int = 1) -> float:
    """Two-sided quantile of t that holds for some comparisons together (Bonferroni)."""
    return float(stdtrit(dof, 1 - (1 - level) / (2 * comparisons))) if dof > 0 else float("nan")
