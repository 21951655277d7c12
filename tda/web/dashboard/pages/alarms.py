"""What a person must look at this morning: alarms with their state, and what the last night did."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.patches import Rectangle

from tda.history.findings import Alarm, Finding
from tda.history.nights import Night
from tda.web.dashboard.evidence import Evidence
from tda.web.dashboard.formatting import ACTIVE, COLOURS, percent, size_text, standing
from tda.web.dashboard.pages import HtmlPage, page
from tda.web.dashboard.profiled import kernels_of, pair_of
from tda.web.dashboard.trends import FAILED, place_of
from tda.web.theme.figures import INK, case_axes, inline, label_axes, plain_ticks
from tda.web.theme.formatting import counted, listed

STATES = ("open", "reopened", "acknowledged", "accepted", "fixed")
LATE_HOURS = 36
"""A last night that began longer ago than this is called late: two in a row are missing."""


@page("alarms", 10, "Alarms", "Which commit made what worse, and did last night run?")
def alarms_page(evidence: Evidence) -> Iterator[HtmlPage]:
    """Open alarms first, then the last night of each machine, then alarms that are settled."""
    alarms = sorted(evidence.alarms, key=lambda alarm: STATES.index(alarm.state))
    yield HtmlPage(
        "alarms.html",
        "Alarms",
        "alarms.html",
        {
            "headline": _headline(alarms),
            "active": [finding_status(evidence, alarm.finding) for alarm in alarms if alarm.state in ACTIVE],
            "settled": [finding_status(evidence, alarm.finding) for alarm in alarms if alarm.state not in ACTIVE],
            "warnings": [finding_status(evidence, finding) for finding in _beside_alarms(evidence)],
            "sizes": _sizes([alarm for alarm in alarms if alarm.finding.unit == "ratio"]),
            "nights": [_night(evidence, night) for night in last_nights(evidence)],
            "late_hours": LATE_HOURS,
        },
    )


def _headline(alarms: Sequence[Alarm]) -> str:
    counts = {state: sum(alarm.state == state for alarm in alarms) for state in STATES}
    texts = [f"{count} {state}" for state, count in counts.items() if count and state in ACTIVE]
    if not texts:
        return "No alarm waits for anybody."
    total = sum(counts[state] for state in ACTIVE)
    return f"{counted(total, 'alarm')} to look at: {listed(texts)}."


def finding_status(evidence: Evidence, finding: Finding) -> dict[str, object]:
    """A finding as it is shown: its state, its size in words, and where else it is seen."""
    alarm = evidence.states.get(finding.key)
    left = finding.model_copy(update={"size": alarm and alarm.remains, "low": None, "high": None})
    return {
        "id": finding.key,
        "finding": finding,
        "alarm": alarm,
        "state": standing(finding, alarm),
        "cases": ", ".join(evidence.labels.get(case.key, str(case)) for case in finding.cases),
        "size": size_text(finding),
        "remains": None if left.size is None else size_text(left),
        "floor": None if finding.floor is None else percent(finding.floor).lstrip("+"),
        "machine": evidence.label_of(finding.machine),
        "figure": place_of(evidence, finding),
        "pair": pair_of(evidence, finding),
        "kernels": kernels_of(evidence, finding),
    }


def last_nights(evidence: Evidence) -> list[Night]:
    """The last night of each kind of hardware, newest first."""
    held: dict[Any, Night] = {}
    for night in evidence.nights:
        machine = night.machine
        held[evidence.hardware(machine.fingerprint) if machine is not None else None] = night
    return sorted(held.values(), key=lambda night: night.id, reverse=True)


def _beside_alarms(evidence: Evidence) -> list[Finding]:
    """What the last nights found that is no alarm."""
    found = (finding for night in last_nights(evidence) for finding in night.findings)
    return [finding for finding in found if finding.verdict != "alarm"]


def _night(evidence: Evidence, night: Night) -> dict[str, object]:
    machine = night.machine
    return {
        "night": night,
        "machine": "nothing was measured" if machine is None else evidence.label_of(machine.fingerprint),
        "failed": [commit for commit in night.commits if commit.status in FAILED],
        "counts": Counter(commit.status for commit in night.commits),
        "raised": [finding for finding in night.findings if finding.verdict == "alarm"],
    }


# The figure.


def _sizes(alarms: Sequence[Alarm]) -> Markup | None:
    """How large every alarm is, against what noise alone does."""
    shown = [alarm for alarm in alarms if alarm.finding.size is not None]
    if not shown:
        return None
    labels = [f"{alarm.finding.commit[:8]} {alarm.finding.split}, {alarm.state}" for alarm in shown]
    figure, axes = case_axes("Size of every alarm, and the A/A floor", labels)
    for row, alarm in enumerate(shown):
        finding, colour = alarm.finding, COLOURS[alarm.state]
        if finding.floor is not None:
            size = (200 * finding.floor, 0.7)
            axes.add_patch(Rectangle((-100 * finding.floor, row - 0.35), *size, color="#e3e6ea", linewidth=0))
        value = 100 * (finding.size or 0.0)
        if finding.low is not None and finding.high is not None:
            axes.plot([100 * finding.low, 100 * finding.high], [row, row], color=colour, linewidth=2.2, alpha=0.6)
        filled = colour if alarm.state in ACTIVE else "white"
        axes.plot([value], [row], marker="o", color=colour, markerfacecolor=filled)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.margins(x=0.08)
    label_axes(axes, "Change (%)")
    plain_ticks(axes, "x")
    return inline(figure, "alarm-sizes")
