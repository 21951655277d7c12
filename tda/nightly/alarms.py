"""The life of alarms: replayed from the findings of all nights and the committed decisions, never stored as a state.

Replaying gives the same alarms after every restart, and a decision that is taken back is undone.

Findings are read in the order of their commits, whichever night found them. For one split of one case on one machine
(in decode: and one scope) they add up to a level: relative sizes as logarithms, quality as differences. A change over a
range counts at its last commit, and for no alarm within the range, whose rise it holds already. What remains of an
alarm is how far the lowest level since lies above the one before it. It is fixed when, in each of its cases, a gain
brings the level back: lower, or to within the smallest change or the uncertainty of the two sizes, but never by less
than half. Else it stays open and tells what remains. So a gain before an alarm does not mend it, and what rises after
an alarm was fixed is a new alarm, "reopened". Nothing tells a repair from a gain of something else: a gain counts for
the newest alarms first, and what remains of all adds up to how far the level lies above the lowest that it has been.

A case whose text is again exactly what it was has the level of then. Nothing else mends an alarm that has no size
(other neurons are kept). An accepted alarm is the new baseline: it moves no level.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from tda.cases import Case
from tda.changes.detect import Rules
from tda.changes.quality import ROUNDING
from tda.history.findings import Alarm, Alarms, Finding, State
from tda.history.nights import Night
from tda.nightly.config import Decision


def replay(
    nights: Iterable[Night], decisions: Sequence[Decision], smallest: float = Rules.smallest
) -> tuple[Alarms, list[str]]:
    """Alarms as they stand after some nights, and a sentence for each decision about an alarm that is not known.

    Relative changes below `smallest` are not worth telling.
    """
    nights = list(nights)
    line = _Line(nights)
    found = sorted((one for night in nights for one in night.findings if one.verdict != "warning"), key=line.order)
    decided = {decision.alarm: decision for decision in decisions}
    accepted = {alarm for alarm, decision in decided.items() if decision.state == "accepted"}
    moves, lives = defaultdict[object, list[Finding]](list), defaultdict[str, list[_Life]](list)
    grids = _grids(found)
    for finding in found:
        scope = finding.scope if finding.split == "decode" else ""  # there, scopes differ in what sizes are relative to
        for case in finding.cases:
            moves[finding.machine, grids(finding, case), finding.split, scope, case].append(finding)
    for changes in moves.values():
        for life in _lives(line.once(changes), line, accepted, smallest):
            lives[life.finding.key].append(life)
    alarms = [_alarm(lives.pop(one.key), decided.get(one.key), line) for one in reversed(found) if one.key in lives]
    known = {alarm.id for alarm in alarms}
    unknown = [f"no alarm {one.alarm!r} to be {one.state}" for one in decisions if one.alarm not in known]
    return Alarms(alarms=tuple(alarms)), unknown


def raised_in(alarms: Alarms, night: str) -> list[Alarm]:
    """Alarms that a night raised and that nobody has accepted or acknowledged: what makes it fail."""
    return [alarm for alarm in alarms.alarms if alarm.finding.night == night and alarm.state in ("open", "reopened")]


def _grids(findings: Iterable[Finding]) -> Callable[[Finding, Case], str | None]:
    """The grid of a finding; of one of an older night, which does not tell, the only one that has the case."""
    known: dict[tuple[object, ...], set[str | None]] = defaultdict(set)
    for finding in findings:
        for case in finding.cases:
            known[finding.machine, finding.split, case] |= {finding.grid} - {None}

    def of(finding: Finding, case: Case) -> str | None:
        found = known[finding.machine, finding.split, case]
        return next(iter(found)) if finding.grid is None and len(found) == 1 else finding.grid

    return of


# Which changes there were, and in which order.


class _Line:
    """Commits in the order of history, as all nights list them."""

    def __init__(self, nights: Iterable[Night]) -> None:
        line: list[str] = []
        for night in sorted(nights, key=lambda night: night.id):
            at = len(line)
            for commit in reversed(night.commits):  # a new one stands before what its night lists next
                if commit.hash in line:
                    at = line.index(commit.hash)
                else:
                    line.insert(at, commit.hash)
        self._places = {commit: place for place, commit in enumerate(line)}

    def place(self, commit: str | None) -> float:
        """Number of a commit; one that no night lists comes last."""
        return self._places.get(commit or "", math.inf)

    def order(self, finding: Finding) -> tuple[float, float, str, str]:
        """Sorts findings: by last commit, the wider range first."""
        return self.place(finding.commit), self.place(finding.good), finding.night, finding.key

    def once(self, changes: Sequence[Finding]) -> list[Finding]:
        """Changes of one level, without those that another one tells better."""
        return [one for one in changes if not any(self._better(other, one) for other in changes)]

    def _better(self, one: Finding, other: Finding) -> bool:
        """Of two in one direction: a step over a narrower range, a drift over a wider one, the first of equal ones."""
        if one.verdict != other.verdict:
            return False
        inside, around = self._within(one, other), self._within(other, one)
        if inside and around:
            return (one.night, one.key) < (other.night, other.key)
        return (inside and other.shape == "step") or (around and one.shape == "drift")

    def _within(self, narrow: Finding, wide: Finding) -> bool:
        """Whether a range of commits that are known lies within another."""
        ends = [self.place(commit) for commit in (wide.good, narrow.good, narrow.commit, wide.commit)]
        return ends == sorted(ends) and math.inf not in ends


# What became of an alarm.


@dataclass
class _Life:
    """An alarm about one case: how far the level rose, where it lies now and was least since, and what fixed it."""

    finding: Finding
    rise: float
    left: float
    remains: float
    again: bool
    fixed_by: Finding | None = None

    def follow(self, change: Finding, move: float, smallest: float) -> None:
        """Let the level move, and see whether it is back."""
        self.left += move
        self.remains = min(self.remains, self.left)
        if move < 0 and self.left <= min(_tolerance(self.finding, change, smallest), self.rise / 2):
            self.fixed_by = change


def _lives(changes: Iterable[Finding], line: _Line, accepted: Collection[str], smallest: float) -> list[_Life]:
    """Follow the level of one case through its changes."""
    lives: list[_Life] = []
    levels = [(-1.0, 0.0)]  # each from its place on
    for change in changes:
        before, back = levels[-1][1], line.place(change.back)
        if change.key in accepted:
            level = before
        elif back < math.inf:
            level = next(level for place, level in reversed(levels) if place <= back)
        else:
            level = before + _level(change, change.size)
        levels.append((line.place(change.commit), level))
        for life in lives:
            at = line.place(life.finding.commit)
            if life.fixed_by is None and line.place(change.good) >= at:
                if life.rise > 0:
                    life.follow(change, level - before, smallest)
                elif back < at:
                    life.fixed_by = change
        if change.verdict == "alarm":
            rise, again = level - before, any(life.fixed_by is not None for life in lives)
            lives.append(_Life(change, rise, rise, rise, again))
    return lives


def _level(finding: Finding, size: float | None) -> float:
    """A size, so that sizes add up; kept sets have none, and what fails does so or not."""
    if finding.unit == "cases":
        return 1.0 if finding.verdict == "alarm" else -1.0
    if size is None or finding.unit == "sets":
        return 0.0
    if finding.unit == "nats/token":
        return size
    return math.log1p(size) if size > -1 else -math.inf


def _tolerance(alarm: Finding, gain: Finding, smallest: float) -> float:
    """What may remain of an alarm that is fixed."""
    if alarm.unit != "ratio":
        return ROUNDING
    halves = ((_level(one, one.high) - _level(one, one.low)) / 2 for one in (alarm, gain))
    return max(smallest, math.hypot(*halves))


def _alarm(lives: Sequence[_Life], decision: Decision | None, line: _Line) -> Alarm:
    """An alarm as it stands in the case of which most remains."""
    finding, worst = lives[0].finding, max(lives, key=lambda life: life.remains)
    state: State = "reopened" if any(life.again for life in lives) else "open"
    since, reason, fixed_by, remains = finding.night, None, None, None
    fixes = [life.fixed_by for life in lives if life.fixed_by is not None]
    if decision is not None and (decision.state == "accepted" or len(fixes) < len(lives)):
        state, reason = decision.state, decision.reason
    elif len(fixes) == len(lives):
        last = max(fixes, key=line.order)
        state, since, fixed_by = "fixed", max(since, last.night), last.commit
    if state != "fixed" and 0 < worst.rise > worst.remains:
        remains = math.expm1(worst.remains) if finding.unit == "ratio" else worst.remains
    return Alarm(
        id=finding.key, finding=finding, state=state, since=since, reason=reason, fixed_by=fixed_by, remains=remains
    )
