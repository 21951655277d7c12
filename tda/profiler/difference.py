"""The difference of two commits' profiles of one case: which kernels appeared, vanished or grew, and what that cost.

Several profiles of a commit come from several processes, and their spread is the error. A row has few processes, so its
own spread says little: it is moderated by the relative spread of all rows of its phase, as if `PRIOR_DOF` more
processes had shown that. With one profile on a side there is only the spread over its steps, which knows nothing of
what differs between processes.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from statistics import fmean, variance
from typing import Literal, NamedTuple

from tda.profiler.records import KernelRow, Profile, RowKey
from tda.spans import PHASES

CERTAIN = 4.0
"""Something changed if its difference exceeds this many standard errors of it …"""
NOTABLE = 0.005
"""… and this share of the phase."""
PRIOR_DOF = 4.0
ChangeKind = Literal["appeared", "vanished", "grew", "shrank", "same"]


class ProfileChange(NamedTuple):
    """One row of the kernel table in both commits.

    Attributes
    ----------
    phase, part, op, kernel : str
        The row.
    before_ms, after_ms : float
        Self time per step; 0 where the row is missing.
    error_ms : float
        Standard error of the difference.
    share : float
        Of the phase's whole difference; sums to 1 over the phase, and 0 where the phase did not differ at all.
    kind : str
        What became of it.
    """

    phase: str
    part: str
    op: str
    kernel: str
    before_ms: float
    after_ms: float
    error_ms: float
    share: float
    kind: ChangeKind

    @property
    def delta_ms(self) -> float:
        """After less before."""
        return self.after_ms - self.before_ms

    @property
    def sure_ms(self) -> float:
        """How much of the difference is beyond the noise; below zero where nothing is."""
        return abs(self.delta_ms) - CERTAIN * self.error_ms


class PhaseChange(NamedTuple):
    """A phase in both commits: the sums of its rows, per step."""

    phase: str
    before_ms: float
    after_ms: float
    error_ms: float

    @property
    def delta_ms(self) -> float:
        """After less before."""
        return self.after_ms - self.before_ms

    @property
    def certain(self) -> bool:
        """Whether it differs beyond the noise: shares of a difference that may be none say nothing."""
        return _certain(self.delta_ms, self.error_ms, max(self.before_ms, self.after_ms))


def difference(before: Sequence[Profile], after: Sequence[Profile]) -> list[ProfileChange]:
    """Compare profiles of one case on two commits, row by row: first what changed, and most beyond the noise.

    Raises
    ------
    ValueError
        If the profiles are not all of one case and machine, or one side has none.
    """
    old, new = _sides(before, after)
    wholes = {phase: (old.phase(phase).mean, new.phase(phase).mean) for phase in dict.fromkeys(old.order + new.order)}
    changes = [_change(key, old, new, *wholes[key[0]]) for key in dict.fromkeys((*old.rows, *new.rows))]
    return sorted(changes, key=lambda change: (change.kind == "same", -change.sure_ms))


def phase_differences(before: Sequence[Profile], after: Sequence[Profile]) -> list[PhaseChange]:
    """Compare the phases as wholes, in the order of a request. Raises as `difference`."""
    old, new = _sides(before, after)
    found = []
    for phase in sorted(dict.fromkeys(old.order + new.order), key=PHASES.index):
        one, other = old.phase(phase), new.phase(phase)
        found.append(PhaseChange(phase, one.mean, other.mean, (one.error**2 + other.error**2) ** 0.5))
    return found


class _Level(NamedTuple):
    """Mean over a commit's processes, and its standard error."""

    mean: float
    error: float


class _Side:
    """The profiles of one commit, row by row; a row that a process does not have took no time there."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self._tables = [{_key(row): row for row in profile.kernels} for profile in profiles]
        self.rows: dict[RowKey, tuple[float, ...]] = {
            key: tuple(table[key].self_ms if key in table else 0.0 for table in self._tables)
            for key in dict.fromkeys(key for table in self._tables for key in table)
        }
        self.order = list(dict.fromkeys(key[0] for key in self.rows))

    def level(self, key: RowKey) -> _Level:
        """Level of a row."""
        if key not in self.rows:
            return _Level(0.0, 0.0)
        return self._level(key[0], self.rows[key], self._tables[0][key].se_ms if key in self._tables[0] else 0.0)

    def phase(self, phase: str) -> _Level:
        """Level of a phase as a whole."""
        sums = tuple(sum(row.self_ms for key, row in table.items() if key[0] == phase) for table in self._tables)
        steps = sum(row.se_ms**2 for key, row in self._tables[0].items() if key[0] == phase) ** 0.5
        return self._level(phase, sums, steps)

    def _level(self, phase: str, values: tuple[float, ...], steps_error: float) -> _Level:
        middle = fmean(values)
        if len(values) < 2:
            return _Level(middle, steps_error)
        own = len(values) - 1
        moderated = (own * variance(values) + PRIOR_DOF * self._spread[phase] * middle**2) / (own + PRIOR_DOF)
        return _Level(middle, (moderated / len(values)) ** 0.5)

    @cached_property
    def _spread(self) -> dict[str, float]:
        """Squared relative spread of a phase's rows between processes, but no less than that of all rows.

        Long rows count most. A phase of few rows may look calm by chance.
        """
        found = {phase: _relative([held for key, held in self.rows.items() if key[0] == phase]) for phase in self.order}
        least = _relative(list(self.rows.values()))
        return {phase: max(spread, least) for phase, spread in found.items()}


def _relative(rows: Sequence[tuple[float, ...]]) -> float:
    """Variance of rows over the squares of their means, summed over both."""
    squares = sum(fmean(values) ** 2 for values in rows)
    return sum(map(variance, rows)) / squares if squares else 0.0


def _sides(before: Sequence[Profile], after: Sequence[Profile]) -> tuple[_Side, _Side]:
    both = (*before, *after)
    cases, machines = ({profile.case.key for profile in both}, {profile.machine.fingerprint for profile in both})
    if not before or not after or len(cases) > 1 or len(machines) > 1:
        raise ValueError(
            f"a difference needs profiles of one case and machine on both sides; got {len(before)} and {len(after)} "
            f"profiles of {len(cases)} cases and {len(machines)} machines"
        )
    return _Side(before), _Side(after)


def _key(row: KernelRow) -> RowKey:
    return row.phase, row.part, row.op, row.kernel


def _change(key: RowKey, old: _Side, new: _Side, whole_before: float, whole_after: float) -> ProfileChange:
    (low, low_error), (high, high_error) = old.level(key), new.level(key)
    error = (low_error**2 + high_error**2) ** 0.5
    delta, whole = high - low, whole_after - whole_before
    kind: ChangeKind = "same"
    if _certain(delta, error, max(whole_before, whole_after)):
        kind = "appeared" if not low else "vanished" if not high else "grew" if delta > 0 else "shrank"
    return ProfileChange(*key, low, high, error, delta / whole if whole else 0.0, kind)


def _certain(delta: float, error: float, whole: float) -> bool:
    return abs(delta) > max(CERTAIN * error, NOTABLE * whole)


def telling(changes: Iterable[ProfileChange], phase: str) -> list[ProfileChange]:
    """What changed in a phase, in the order of all changes."""
    return [change for change in changes if change.phase == phase and change.kind != "same"]
