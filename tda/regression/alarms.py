"""The life of alarms: replayed from the findings of all nights and the committed decisions, never stored as a state.

Replaying gives the same alarms after every restart, and a decision that is taken back is undone.
"""

from collections.abc import Iterable, Sequence

from tda.regression.config import Decision
from tda.regression.findings import Alarm, Alarms, Finding, State
from tda.regression.units import Night

FIXED_SHARE = 0.5
"""An improvement that gives back this share of a change has fixed it."""


def replay(nights: Iterable[Night], decisions: Sequence[Decision]) -> tuple[Alarms, list[str]]:
    """Alarms as they stand after some nights, and a sentence for each decision about an alarm that is not known."""
    alarms: dict[str, Alarm] = {}
    for night in sorted(nights, key=lambda night: night.id):
        order = [commit.hash for commit in night.commits]
        for finding in night.findings:
            if finding.verdict == "alarm":
                _raise(alarms, finding, night.id, order)
            elif finding.verdict == "improvement":
                _fix(alarms, finding, night.id)
    unknown = [
        f"no alarm {decision.alarm!r} to be {decision.state}" for decision in decisions if decision.alarm not in alarms
    ]
    for decision in decisions:
        alarm = alarms.get(decision.alarm)
        if alarm is not None and alarm.state in ("open", "reopened"):
            alarms[alarm.id] = alarm.model_copy(update={"state": decision.state, "reason": decision.reason})
    return Alarms(alarms=tuple(reversed(alarms.values()))), unknown


def raised_in(alarms: Alarms, night: str) -> list[Alarm]:
    """Alarms that a night raised and that nobody has accepted or acknowledged: what makes it fail."""
    return [alarm for alarm in alarms.alarms if alarm.finding.night == night and alarm.state in ("open", "reopened")]


def _alike(one: Finding, other: Finding) -> bool:
    """Whether two findings are about the same thing."""
    same = (one.machine, one.split, one.scope) == (other.machine, other.split, other.scope)
    return same and (one.grid == other.grid or None in (one.grid, other.grid)) and bool({*one.cases} & {*other.cases})


def _raise(alarms: dict[str, Alarm], finding: Finding, night: str, order: Sequence[str]) -> None:
    """Open an alarm; it takes the place of a fixed one about the same thing, and of one over a wider range."""
    alike = [alarm for alarm in alarms.values() if _alike(alarm.finding, finding)]
    fixed = [alarm for alarm in alike if alarm.state == "fixed"]
    for alarm in (*fixed, *(alarm for alarm in alike if _within(finding, alarm.finding, order))):
        alarms.pop(alarm.id, None)
    state: State = "reopened" if fixed else "open"
    alarms[finding.key] = Alarm(id=finding.key, finding=finding, state=state, since=night)


def _within(narrow: Finding, wide: Finding, order: Sequence[str]) -> bool:
    """Whether a range of commits lies within another, as the night lists them."""
    if not {narrow.good, narrow.commit, wide.good, wide.commit} <= set(order):
        return False
    return order.index(wide.good) <= order.index(narrow.good) and order.index(narrow.commit) <= order.index(wide.commit)


def _fix(alarms: dict[str, Alarm], finding: Finding, night: str) -> None:
    for alarm in list(alarms.values()):
        if alarm.state == "fixed" or not _alike(alarm.finding, finding):
            continue
        if alarm.finding.unit == "ratio" and not _gives_back(finding, alarm.finding):
            continue
        update = {"state": "fixed", "since": night, "fixed_by": finding.commit}
        alarms[alarm.id] = alarm.model_copy(update=update)


def _gives_back(improvement: Finding, change: Finding) -> bool:
    return -(improvement.size or 0.0) >= FIXED_SHARE * (change.size or 0.0)
