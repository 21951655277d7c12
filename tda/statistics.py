"""Estimates from raw samples: paired ratios and differences with bootstrap intervals.

The unit of resampling is a group (a round of timings, a document of quality), never a token or a repeat.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tda.records import Measurement, Record

MIN_GROUPS = 5
"""Fewer rounds or documents than this give no interval."""
RESAMPLES = 2000

Reducer = Callable[[NDArray[np.float64]], NDArray[np.float64]]


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
    return {group: float(np.median(values)) for group, values in samples.items()}


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over the last axis."""
    return np.asarray(np.median(values, axis=-1))


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis."""
    return np.asarray(np.mean(values, axis=-1))


def bootstrap(values: list[float], reduce: Reducer = median, *, seed: int = 0) -> Estimate:
    """Percentile bootstrap of `reduce` over groups.

    Parameters
    ----------
    values : list of float
        One value per group.
    reduce : callable
        `median` for times and ratios, `mean` for quality.
    seed : int
        Seed of the resampling.

    Raises
    ------
    ValueError
        If there are no values.
    """
    if not values:
        raise ValueError("no values to estimate from")
    data = np.asarray(values, dtype=np.float64)
    value = float(reduce(data))
    if len(data) < MIN_GROUPS:
        return Estimate(value, None, None, len(data))
    drawn = np.random.default_rng(seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(reduce(data[drawn]), (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(data))


def paired_ratio(numerator: Measurement, denominator: Measurement) -> Estimate | None:
    """Median over groups of the ratio of the two medians within a group; None without a common group."""
    above, below = by_group(numerator), by_group(denominator)
    ratios = [above[group] / below[group] for group in above if below.get(group)]
    return bootstrap(ratios) if ratios else None


def paired_difference(left: Measurement, right: Measurement) -> Estimate | None:
    """Mean over groups of left - right; None without a common group."""
    one, other = by_group(left), by_group(right)
    differences = [one[group] - other[group] for group in one if group in other]
    return bootstrap(differences, mean) if differences else None


def is_baseline(record: Record) -> bool:
    """Whether a record is the dense run that ratios are taken to (not its A/A control)."""
    return record.case.method == "dense" and not record.control


def speedup(record: Record, dense: Record, name: str = "decode_ms") -> Estimate | None:
    """Dense time over the record's time, paired per round; None where either has no samples."""
    if not (record.samples(name) and dense.samples(name)):
        return None
    return paired_ratio(dense.measurements[name], record.measurements[name])


def noise_floor(control: Record, dense: Record, name: str = "decode_ms") -> float | None:
    """Bound of the A/A interval: the largest distance from 1 that two runs of the same thing showed.

    Returns
    -------
    float or None
        E.g. .03 where a ratio within 3% says nothing; None with fewer than `MIN_GROUPS` rounds.
    """
    ratio = speedup(control, dense, name)
    if ratio is None or ratio.low is None or ratio.high is None:
        return None
    return max(abs(ratio.low - 1), abs(ratio.high - 1), abs(ratio.value - 1))
