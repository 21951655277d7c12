"""Profiles: where each commit's requests spend their time, and which kernels changed between two commits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from tda.changes.messages import named
from tda.history.profiles import ProfileComparison, StoredProfile
from tda.nightly.explain import headline, name_of
from tda.profiler.difference import PhaseChange, ProfileChange, telling
from tda.profiler.records import KernelRow
from tda.profiler.store import KERNELS, MODULES, TRACE
from tda.spans import PHASES
from tda.web.dashboard.evidence import Evidence, KnownCommit
from tda.web.dashboard.pages import File, HtmlPage, page
from tda.web.dashboard.profiled import NEWEST, CommitPair, alike, page_of, pairs, profiled, shown, standing_for
from tda.web.profile.figures import step_figure
from tda.web.profile.groups import PIECES, ProfileGroup, order, piece_of, piece_rows, together
from tda.web.profile.viewer import VIEWER, viewer_page
from tda.web.theme.figures import INK, case_axes, inline, label_axes, plain_ticks, row_text

TOP = 12
"""Rows of a kernel table and bars of a figure; the CSV holds all."""
LETTERS = 38
NO_TRACE = "no trace is kept here: old ones are deleted, and a history on a branch holds tables alone"
KINDS = {"appeared": "#8e1a15", "grew": "#c2524c", "vanished": "#2f6131", "shrank": "#4d824e"}
"""Colours of what became of a row: red where it costs more, green where it costs less."""


@page("profiles", 45, "Profiles", "Where does a request's time go, and which kernels changed?")
def profiles_page(evidence: Evidence) -> Iterator[HtmlPage | File]:
    """The list, a page for each commit, and one for each two commits that are compared."""
    compared = pairs(evidence)
    rows = [_listed(evidence, commit, compared) for commit in reversed(profiled(evidence))]
    values = {"rows": rows, "newest": NEWEST, "failed": evidence.profiles.failed}
    yield HtmlPage("profiles.html", "Profiles", "profiles.html", values)
    published: set[str] = set()
    for commit in shown(evidence):
        files = _Files(evidence, published)
        yield HtmlPage(page_of(commit), f"Profile of {commit.short}", "commit_profile.html",
                    _commit(evidence, commit, compared, files))  # fmt: skip
        yield from files.made
    for pair in compared:
        files = _Files(evidence, published)
        title = f"Profiles: {pair.old.short} → {pair.new.short}"
        yield HtmlPage(pair.page, title, "profile_difference.html", _difference(evidence, pair, files))
        yield from files.made


def _listed(evidence: Evidence, commit: KnownCommit, compared: Sequence[CommitPair]) -> dict[str, object]:
    kept = evidence.profiles.by_commit[commit.hash]
    held = list(dict.fromkeys(one.case for one in kept))
    return {
        "commit": commit,
        "page": page_of(commit) if commit in shown(evidence) else None,
        "pairs": [pair for pair in compared if pair.new == commit],
        "cases": [named([case], held) for case in held],
        "processes": len({(one.unit.night, one.unit.block) for one in kept}),
        "traces": sum(one.trace is not None for one in kept),
    }


# What a profile's page links to.


@dataclass
class _Files:
    """Files of profiles that sheets link to, each published once; `published` holds the paths of all pages."""

    evidence: Evidence
    published: set[str]
    made: list[File] = field(default_factory=list)

    def of(self, kept: StoredProfile) -> dict[str, str | None]:
        """Paths below the pages' folder of a profile's tables, trace and viewer, as far as they are there."""
        commit = self.evidence.by_hash[kept.unit.commit]
        home = f"profile/{commit.short}/{kept.folder.parent.name}/{kept.folder.name}"
        for name in (KERNELS, MODULES):
            self._publish(f"{home}/{name}", kept.folder / name)
        return {"kernels": f"{home}/{KERNELS}", "modules": f"{home}/{MODULES}", **self._trace(kept, commit, home)}

    def _trace(self, kept: StoredProfile, commit: KnownCommit, home: str) -> dict[str, str | None]:
        trace, speedscope = kept.trace, self.evidence.speedscope
        if trace is None:
            return {"trace": None, "viewer": None, "missing": NO_TRACE}
        self._publish(f"{home}/{TRACE}", trace)
        found: dict[str, str | None] = {"trace": f"{home}/{TRACE}", "viewer": None, "missing": None}
        if speedscope is None:
            return found | {"missing": "no viewer: speedscope could not be had when this was published"}
        if f"{home}/{VIEWER}" not in self.published:
            try:
                content = viewer_page(trace, speedscope, f"{kept.case}, {commit.short}").encode()
            except (ValueError, OSError) as error:
                return found | {"missing": f"no viewer: {error}"}
            self._publish(f"{home}/{VIEWER}", content)
        return found | {"viewer": f"{home}/{VIEWER}"}

    def _publish(self, path: str, content: Any) -> None:
        if path not in self.published:
            self.published.add(path)
            self.made.append(File(path, content))


# A commit.


def _commit(
    evidence: Evidence, commit: KnownCommit, compared: Sequence[CommitPair], files: _Files
) -> dict[str, object]:
    groups = [sorted(found, key=lambda one: order(one.profile.case)) for found in standing_for(evidence, commit)]
    return {
        "commit": commit,
        "pairs": [pair for pair in compared if pair.new == commit],
        "later": [pair for pair in compared if pair.old == commit],
        "groups": [_group(evidence, commit, number, kept, files) for number, kept in enumerate(groups, start=1)],
    }


def _group(
    evidence: Evidence, commit: KnownCommit, number: int, kept: list[StoredProfile], files: _Files
) -> dict[str, object]:
    group = ProfileGroup(number, together([(one.folder, one.profile) for one in kept]))
    case, machine = group.first.case, group.first.machine
    slug = f"p{commit.short}-{number}"
    return {
        "slug": slug,
        "machine": evidence.label_of(machine.fingerprint) if machine.fingerprint in evidence.machines
        else f"{machine.gpu or machine.cpu}, {machine.cores_told}, torch {machine.torch}",
        "title": f"{case.model} · {case.device}, {case.dtype}, batch {case.batch}, {case.prompt_tokens} prompt, "
        f"{case.new_tokens} new tokens",
        "dirty": bool(group.first.commit.dirty),
        "figure": inline(step_figure(group), slug),
        "labels": [one.label for one in group.shown],
        "messages": list(_messages(group)),
        "pieces": list(piece_rows(group)),
        "phases": list(_phases(group)),
        "cases": [
            {"label": seen.label, "files": files.of(one), "kernels": _kernels(one), "process": one.folder.parent.name}
            for one, seen in zip(kept, group.shown, strict=True)
        ],
    }  # fmt: skip


def _messages(group: ProfileGroup) -> Iterator[str]:
    """What each method saved of a timed decode step, and where."""
    dense = group.dense
    for one in group.shown:
        if dense is None or one is dense:
            continue
        own, base = one.pieces(), dense.pieces()
        saved = sorted(PIECES, key=lambda piece: own[piece] - base[piece])
        least, most = own[saved[0]] - base[saved[0]], own[saved[-1]] - base[saved[-1]]
        sentence = f"{one.label}: a decode step takes {one.decode_ms:.3g} ms instead of {dense.decode_ms:.3g}"
        if least < 0:
            sentence += f"; most of what it saves, {-least:.3g} ms, is in {saved[0]}"
        if most > 0:
            sentence += f"; it adds {most:.3g} ms in {saved[-1]}"
        yield f"{sentence}."


def _phases(group: ProfileGroup) -> Iterator[dict[str, object]]:
    """A row for each phase: ms of every case as profiled, without the cost of recording."""
    for phase in PHASES:
        found = [one.profile.phases.get(phase) for one in group.shown]
        if any(found):
            yield {"name": phase, "cells": [None if one is None else one.recorded_ms - one.cost_ms for one in found]}


def _kernels(kept: StoredProfile) -> list[tuple[KernelRow, str]]:
    """The longest rows of a decode step, with the piece that each belongs to."""
    rows = sorted(kept.profile.rows("decode"), key=lambda row: -row.self_ms)
    return [(row, piece_of(row)) for row in rows[:TOP]]


# Two commits.


def _difference(evidence: Evidence, pair: CommitPair, files: _Files) -> dict[str, object]:
    found = evidence.profiles.compare(pair.old.hash, pair.new.hash)
    alarmed = {case for finding in pair.findings for case in finding.cases}
    found.sort(key=lambda one: (one.case not in alarmed, one.case.model, order(one.case)))
    among = [one.case for one in found]
    return {
        "pair": pair,
        "cases": [
            _case(evidence, pair, number, one, files) | {"label": named([one.case], among)}
            for number, one in enumerate(found, start=1)
        ],
        "colours": KINDS,
    }


def _case(
    evidence: Evidence, pair: CommitPair, number: int, compared: ProfileComparison, files: _Files
) -> dict[str, object]:
    phases = [
        _phase(compared, one, f"d{pair.old.short}-{pair.new.short}-{number}-{one.phase}") for one in compared.phases
    ]
    return {
        "slug": f"case-{number}",
        "first": next((change for change in compared.changes if change.kind != "same"), None),
        "paired": compared.paired,
        "many": (len(compared.before), len(compared.after)),
        "decode_ms": compared.decode_ms,
        "phases": phases,
        "changed": [phase for phase in phases if phase["rows"]],
        "files": [(commit, files.of(alike(evidence, commit, side[0])))
                  for commit, side in ((pair.old, compared.before), (pair.new, compared.after))],
    }  # fmt: skip


def _phase(compared: ProfileComparison, whole: PhaseChange, slug: str) -> dict[str, Any]:
    changes = telling(compared.changes, whole.phase)
    own = [change for change in compared.changes if change.phase == whole.phase]
    rest = [change for change in own if change not in changes[:TOP]]
    return {
        "name": whole.phase,
        "whole": whole,
        "headline": headline(compared, whole.phase),
        "rows": [(change, share_text(whole, change.share)) for change in changes[:TOP]],
        "rest": {
            "many": len(rest),
            "delta_ms": sum(change.delta_ms for change in rest),
            "share": share_text(whole, sum(change.share for change in rest)),
        },
        "figure": inline(draw(whole, changes[:TOP]), slug) if changes else None,
    }


def draw(whole: PhaseChange, changes: Sequence[ProfileChange]) -> Figure:
    """A bar for each row that changed: how much, its error, and its share of the phase's change if that is certain."""
    figure, axes = case_axes(f"{whole.phase}: what changed", [_shortened(name_of(change)) for change in changes])
    reach = [0.0]
    for row, change in enumerate(changes):
        axes.barh(row, change.delta_ms, height=0.62, color=KINDS[change.kind], zorder=2)
        bounds = [change.delta_ms - 2 * change.error_ms, change.delta_ms + 2 * change.error_ms]
        axes.plot(bounds, [row, row], color=INK, linewidth=1.0, zorder=3)
        reach += bounds
        row_text(axes, row, share_text(whole, change.share))
    room = 0.16 * (max(reach) - min(reach))
    axes.set_xlim(min(reach) - 0.2 * room, max(reach) + room)
    axes.axvline(0, color=INK, linewidth=0.9)
    label_axes(axes, f"Change of self time (ms in a {_step(whole.phase)})")
    plain_ticks(axes, "x")
    return figure


def share_text(whole: PhaseChange, share: float) -> str:
    """A share of a phase's change; nothing where that may be none."""
    return f"{share:.0%}" if whole.certain else ""


def _step(phase: str) -> str:
    return {"decode": "decode step", "prefill": "prefill"}.get(phase, f"request's {phase}")


def _shortened(words: str) -> str:
    return words if len(words) <= LETTERS else f"{words[: LETTERS // 2 - 1]}…{words[-LETTERS // 2 :]}"
