"""``nightly.md``: a night told to people, fit to be posted as an issue."""

from collections.abc import Iterable, Sequence

from tda.cases import describe
from tda.changes.messages import named, relative
from tda.changes.series import split_name
from tda.history.findings import Alarm, Alarms, Finding
from tda.history.nights import Night, NightCommit, Seen
from tda.history.profiles import Profiles
from tda.history.repository import short
from tda.nightly.alarms import raised_in
from tda.nightly.explain import SPLIT_PHASES, explanation, headline, main_changes, name_of

SHOWN_ROWS = 6
"""Rows of a kernel table that are attached to an alarm."""


def nightly_report(night: Night, alarms: Alarms, problems: Sequence[str], profiles: Profiles | None = None) -> str:
    """Markdown of a night: what was raised, what is known already, every commit, and how to go on.

    Parameters
    ----------
    night : Night
        A finished night.
    alarms : Alarms
        As they stand after it.
    problems : sequence of str
        Files that were skipped, decisions about unknown alarms.
    profiles : Profiles, optional
        What was profiled: an alarm whose two commits were says which kernels changed.
    """
    raised = raised_in(alarms, night.id)
    parts = [_head(night, raised)]
    parts += [_alarm(alarm) + _explained(alarm.finding, profiles or Profiles()) for alarm in raised]
    parts += _list("Faster or smaller", (f for f in night.findings if f.verdict == "improvement"))
    parts += _list("Not confirmed", (f for f in night.findings if f.verdict == "warning"))
    earlier = [alarm for alarm in alarms.alarms if alarm not in raised]
    if earlier:
        rows = (f"| {a.state} | `{a.id}` | {_what(a)} | {_cell(a.reason or '')} |" for a in earlier)
        parts.append("\n".join(["## Known alarms\n", "| state | alarm | what | why |", "|---|---|---|---|", *rows]))
    parts.append(_commits(night.commits))
    parts += _seen(night.seen)
    if problems:
        parts.append("\n".join(["## Skipped\n", *(f"- {_cell(problem)}" for problem in problems)]))
    return "\n\n".join(parts) + "\n"


def _head(night: Night, raised: Sequence[Alarm]) -> str:
    machine = night.machine
    told = f"{machine.gpu or machine.cpu}, {machine.cores_told}, torch {machine.torch}" if machine else "no machine"
    many = "no alarm" if not raised else "1 alarm" if len(raised) == 1 else f"{len(raised)} alarms"
    return (
        f"# Nightly run {night.id}: {many}\n\n"
        f"{len(night.measured)} of {len(night.commits)} commits measured on {_cell(told)}; "
        f"baseline commit `{short(night.baseline_commit)}`."
        + "".join(f"\n\n**{_cell(note[0].upper() + note[1:])}.**" for note in night.notes)
    )


def _alarm(alarm: Alarm) -> str:
    finding = alarm.finding
    reopened = " (reopened: it had been fixed)" if alarm.state == "reopened" else ""
    floor = f"; between-process A/A floor {finding.floor:.1%}" if finding.floor is not None else ""
    chance = f"; p = {finding.p:.1e} after correction for the whole night" if finding.p is not None else ""
    span = f"`{short(finding.good)}` (good) .. `{short(finding.commit)}` (bad)"
    decision = f'[[decision]]\nalarm = "{alarm.id}"\nstate = "accepted"  # or "acknowledged"\nreason = ""'
    return (
        f"## {_what(alarm)}\n\n"
        f"- alarm `{alarm.id}`{reopened}, split **{finding.split}**, {finding.shape}, {span}{floor}{chance}\n"
        f"- cases: {_cell(named(finding.cases))}\n"
        f"- reproduce with: `{finding.reproduce}`\n\n"
        "If this is intended or known, commit to `benchmarks/decisions.toml`:\n\n"
        f"```toml\n{decision}\n```"
    )


def _what(alarm: Alarm) -> str:
    """What an alarm says, and what remains of it where it was mended in part."""
    told = _cell(alarm.finding.sentence)
    if alarm.remains is None:
        return told
    size = relative if alarm.finding.unit == "ratio" else "{:+.3g} nats a token".format
    return f"{told} {size(alarm.remains)} remains of {size(alarm.finding.size or 0.0)}."


def _explained(finding: Finding, profiles: Profiles) -> str:
    """What profiles of the two commits say, where there are any."""
    compared = explanation(finding, profiles)
    if compared is None:
        return ""
    many = f"{len(compared.before)} and {len(compared.after)} processes{' in turn' if compared.paired else ''}"
    lines = [f"\n\nProfiled, {_cell(str(compared.case))}, {many}:\n"]
    phases = [one.phase for one in compared.phases if one.phase in SPLIT_PHASES[finding.split]]
    lines += [f"- {_cell(headline(compared, phase))}" for phase in phases]
    changes = main_changes(finding, compared, SHOWN_ROWS)
    if changes:
        lines += ["", "| phase | part | kernel | | before → after (ms) | fraction of the phase's change |"]
        lines.append("|---|---|---|---|---|---|")
    certain = {one.phase for one in compared.phases if one.certain}
    for change in changes:
        share = f"{change.share:.0%}" if change.phase in certain else "–"
        times = f"{change.before_ms:.3g} → {change.after_ms:.3g}"
        kernel = _cell(name_of(change).removesuffix(f" in {change.part}"))
        lines.append(f"| {_cell(change.phase)} | {_cell(change.part)} | {kernel} | {change.kind} | {times} | {share} |")
    return "\n".join(lines)


def _list(title: str, findings: Iterable[Finding]) -> list[str]:
    lines = [f"- {_cell(finding.sentence)} `{finding.reproduce}`" for finding in findings]
    return ["\n".join([f"## {title}\n", *lines])] if lines else []


def _seen(seen: Sequence[Seen]) -> list[str]:
    """What the night could not have seen: changes below the floor of each series."""
    if not seen:
        return []
    cases = [one.case for one in seen]
    rows = [
        f"| {_cell(describe(one.case, cases))} | {one.grid} | {split_name(one.split, one.relative)} | "
        f"{'cannot tell' if one.floor is None else f'{one.floor:.1%}'} |"
        for one in seen
    ]
    head = ["## Smallest change that this run could find\n", "| case | grid | what | change |"]
    return ["\n".join([*head, "|---|---|---|---|", *rows])]


def _commits(commits: Iterable[NightCommit]) -> str:
    rows = (f"| `{short(c.hash)}` | {_cell(c.subject)} | {c.status} | {_cell(c.reason or '')} |" for c in commits)
    return "\n".join(["## Commits\n", "| commit | subject | status | reason |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    """Text of others, so that it breaks neither a table nor the page that shows it."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'"), ("@", "@\u200b")):
        text = text.replace(sign, instead)
    return " ".join(text.split())
