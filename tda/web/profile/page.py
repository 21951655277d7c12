"""From a folder of profiles to its page and figures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tda.profiler.records import KernelRow, ModuleRow, Profile
from tda.profiler.roofline import points
from tda.profiler.split import COMPONENTS
from tda.profiler.store import KERNELS, MODULES
from tda.results import write_whole
from tda.spans import PHASES
from tda.web.profile.figures import gap_figure, roofline_figure, step_figure
from tda.web.profile.groups import PIECES, ProfileGroup, ShownProfile, gather_profiles, piece_of, piece_rows, verdicts
from tda.web.theme.figures import STYLE, inline
from tda.web.theme.formatting import MISSING, listed, number, size
from tda.web.theme.pages import environment

TOP_ROWS = 15
"""Rows of a phase in the page's kernel tables; the CSV holds them all."""


@dataclass(frozen=True)
class ProfileReport:
    """What was written: the page."""

    index: Path


def build_profile_report(folder: Path, viewers: Callable[[Path], str | None] = lambda trace: None) -> ProfileReport:
    """Write ``index.html`` and ``figures/`` for the profiles below a folder; all of it works offline.

    Parameters
    ----------
    folder : Path
        What ``tda profile`` wrote.
    viewers : callable
        Given a case's folder, the file name of a page in it that shows its trace, or None.

    Raises
    ------
    FileNotFoundError
        If the folder holds no profile.
    ValueError
        If one cannot be read, or was made on a device that a test plays.
    """
    groups = gather_profiles(folder)
    with matplotlib.rc_context(STYLE):
        page = _Page(folder, groups, viewers)
        html = page.render()
    for name, content in page.files.items():
        write_whole(folder / "figures" / name, content)
    write_whole(folder / "index.html", html)
    return ProfileReport(folder / "index.html")


@dataclass
class _Page:
    """Renders groups of profiles; `files` holds the figures' files by name afterwards."""

    folder: Path
    groups: list[ProfileGroup]
    viewers: Callable[[Path], str | None]
    files: dict[str, bytes] = field(default_factory=dict)

    def render(self) -> str:
        made = environment("tda.web.profile", number=_number, size=_size, percent=_percent)
        return made.get_template("profile.html").render(groups=[self._group(group) for group in self.groups])

    def _group(self, group: ProfileGroup) -> dict[str, Any]:
        profile = group.first
        return {
            "number": group.number,
            "profile": profile,
            "title": f"{profile.case.model}, {profile.case.dtype}, batch {profile.case.batch}, "
            f"prompt {profile.case.prompt_tokens} tokens",
            "findings": list(_findings(group)),
            "step": self._picture(f"step-{group.number}", step_figure(group)),
            "labels": [shown.label for shown in group.shown],
            "pieces": piece_rows(group),
            "gaps": [
                {
                    "label": shown.label,
                    "gap": gap,
                    "figure": self._picture(f"gap-{group.number}-{place}", gap_figure(shown, group.dense, gap)),
                    "rows": list(zip(COMPONENTS, gap.at_limit, gap.method, gap.components, strict=True)),
                }
                for place, (shown, gap) in enumerate(group.gaps, start=1)
                if group.dense is not None
            ],
            "roofline": self._roofline(group),
            "cases": [self._case(shown) for shown in group.shown],
        }

    def _roofline(self, group: ProfileGroup) -> dict[str, Any] | None:
        figure = roofline_figure(group)
        if figure is None:
            return None
        rows = [(shown.label, point) for shown in group.shown for point in points(shown.profile)]
        return {"figure": self._picture(f"roofline-{group.number}", figure), "rows": rows}

    def _case(self, shown: ShownProfile) -> dict[str, Any]:
        profile = shown.profile
        place = shown.folder.relative_to(self.folder).as_posix()
        return {
            "label": shown.label,
            "profile": profile,
            "files": {name: f"{place}/{name}" for name in (KERNELS, MODULES, profile.trace)},
            "viewer": None if (name := self.viewers(shown.folder)) is None else f"{place}/{name}",
            "phases": list(_phases(profile)),
            "kernels": [(phase, _top(profile, phase)) for phase in PHASES if profile.rows(phase)],
            "modules": _slowest(profile),
            "memory": profile.memory,
            "telemetry": list(_telemetry(profile)),
        }

    def _picture(self, stem: str, figure: Figure) -> dict[str, Any]:
        return {"stem": stem, "svg": inline(figure, stem, self.files)}


def _findings(group: ProfileGroup) -> Iterator[str]:
    """The page's answer in sentences: where a step's time goes, and what each method saved."""
    dense = group.dense
    if dense is None:
        return
    yield from verdicts([group])
    pieces = dense.pieces()
    whole = sum(pieces.values())
    largest = sorted(pieces, key=lambda piece: -pieces[piece])[:3]
    if not dense.warnings:
        shares = listed([f"{piece} {pieces[piece] / whole:.0%}" for piece in largest])
        yield f"A dense decode step takes {number(dense.decode_ms)} ms: {shares}."
    for shown, gap in group.gaps:
        if dense.warnings or shown.warnings:
            continue
        own = shown.pieces()
        changed = {piece: own[piece] - pieces[piece] for piece in PIECES}
        saved = sorted((piece for piece in PIECES if changed[piece] < 0), key=lambda piece: changed[piece])[:2]
        added = [piece for piece in PIECES if changed[piece] > 0.02 * whole]
        sentence = f"{shown.label} takes {number(shown.decode_ms)} ms, "
        sentence += f"{number(gap.speedup)}× of a possible {number(gap.limit)}×"
        if saved:
            sentence += "; it saves " + listed([f"{number(-changed[piece])} ms in {piece}" for piece in saved])
        if added:
            sentence += ", and adds " + listed([f"{number(changed[piece])} ms in {piece}" for piece in added])
        yield sentence + "."


def _phases(profile: Profile) -> Iterator[dict[str, Any]]:
    """Each phase as recorded, less the recording, and as timed."""
    rounds = {
        "prefill": profile.timed.prefill_ms,
        "selection": profile.timed.selection_ms,
        "decode": profile.timed.decode_ms,
    }
    timed = {phase: median(values) for phase, values in rounds.items() if values}
    inside = {"prefill": ("prefill", "statistic"), "selection": ("selection", "gather")}
    for phase in PHASES:
        found = profile.phases.get(phase)
        if found is None:
            continue
        parts = [profile.phases[name] for name in inside.get(phase, (phase,)) if name in profile.phases]
        net = sum(part.recorded_ms - part.cost_ms for part in parts)
        yield {
            "phase": phase,
            "found": found,
            "net": found.recorded_ms - found.cost_ms,
            "timed": timed.get(phase),
            "apart": net / timed[phase] - 1 if timed.get(phase) else None,
        }


def _top(profile: Profile, phase: str) -> list[tuple[KernelRow, str]]:
    return [(row, piece_of(row)) for row in profile.rows(phase)[:TOP_ROWS]]


def _slowest(profile: Profile) -> list[ModuleRow]:
    """Modules in which a decode step spends most."""
    return sorted((row for row in profile.modules if row.phase == "decode"), key=lambda row: -row.self_ms)[:TOP_ROWS]


def _telemetry(profile: Profile) -> Iterator[dict[str, Any]]:
    for name, series in profile.telemetry.series.items():
        values = series.samples
        yield {
            "name": name.rpartition("/")[2],
            "device": series.device,
            "unit": series.unit,
            "summary": _spread(values) if values else MISSING,
            "missing": series.missing,
        }


def _spread(values: Sequence[float]) -> str:
    return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"


def _number(value: float | None, *, signed: bool = False) -> str:
    return MISSING if value is None else number(value, signed=signed)


def _size(value: float | None) -> str:
    return MISSING if value is None else size(value)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}%"
