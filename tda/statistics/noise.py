"""Records beside dense: their speed-up, and the noise floor below which it says nothing."""

from collections.abc import Sequence

import numpy as np

from tda.records import MIN_GROUPS, Record
from tda.statistics.estimates import LEVEL, Estimate, by_group, t_quantile
from tda.statistics.paired import paired_ratio

LOOKED_LEVEL = 0.97
"""Level of the t interval of a case that gets no more rounds once its interval is narrow (``precision``).

Looking after each round favours rounds whose scatter looks small: a 95% interval would cover 92% then. At this level it
covers 95% or more, whatever width is asked (`tests/test_statistics.py` draws it).
"""

BLIND = 0.5
"""An A/A floor above this hides what one would want to see: no verdict follows from it."""


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
    return float(np.expm1(max(t_quantile(dof, comparisons=compared) * error, apart)))


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
