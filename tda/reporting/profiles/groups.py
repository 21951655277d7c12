"""Profiles in groups that may be compared, and a decode step in as many pieces as a reader can hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tda.profiler.parts import FFN_PARTS, WEIGHT_PARTS
from tda.profiler.records import KernelRow, Profile
from tda.profiler.split import Gap, gap
from tda.profiler.store import read_profiles
from tda.records import FAKE
from tda.reporting.style import rank

PIECES = {
    "FFN projections": "#0072B2",
    "FFN: activation, selection": "#56B4E9",
    "attention projections": "#D55E00",
    "attention": "#E69F00",
    "norms": "#F0E442",
    "head": "#CC79A7",
    "other operators": "#8C8C8C",
    "framework": "#D9D9D9",
}
"""Pieces of a step with their colours, from what methods save to what they cannot touch."""
_OF_PART = {
    **{part: "FFN projections" if part in WEIGHT_PARTS else "FFN: activation, selection" for part in FFN_PARTS},
    **dict.fromkeys(("statistic", "selection", "gather"), "FFN: activation, selection"),
    "projection": "attention projections",
    "attention": "attention",
    "norm": "norms",
    "head": "head",
}


@dataclass(frozen=True)
class Shown:
    """A profile with the folder it lies in, and what it is called beside others of its model."""

    folder: Path
    profile: Profile

    @property
    def label(self) -> str:
        """Method and sparsity."""
        case = self.profile.case
        dial = "" if case.method == "dense" or case.sparsity is None else f" {case.sparsity:g}"
        return f"{case.method}{dial}"

    @property
    def decode_ms(self) -> float:
        """Timed decode step: median over rounds."""
        return median(self.profile.timed.decode_ms)

    def pieces(self, phase: str = "decode") -> dict[str, float]:
        """Self time of a phase by piece, in ms a step."""
        found = dict.fromkeys(PIECES, 0.0)
        for row in self.profile.rows(phase):
            found[piece_of(row)] += row.self_ms
        return found


@dataclass(frozen=True)
class Group:
    """Profiles of one model in one setting, on one machine and commit; dense first.

    Attributes
    ----------
    number : int
        Its place on the page, from 1.
    shown : tuple of Shown
        The profiles, in the order of legends.
    """

    number: int
    shown: tuple[Shown, ...]

    @property
    def first(self) -> Profile:
        """Any of them, for what they share."""
        return self.shown[0].profile

    @property
    def dense(self) -> Shown | None:
        """The dense profile, which every saving is against."""
        return next((shown for shown in self.shown if shown.profile.case.method == "dense"), None)

    @property
    def gaps(self) -> list[tuple[Shown, Gap]]:
        """What keeps each method that skips anything from its limit."""
        dense = self.dense
        if dense is None:
            return []
        return [
            (shown, gap(shown.profile, dense.profile))
            for shown in self.shown
            if shown is not dense and shown.profile.step_bytes < dense.profile.step_bytes
        ]


def piece_of(row: KernelRow) -> str:
    """The piece of a step that a row belongs to."""
    return _OF_PART.get(row.part, "other operators") if row.op else "framework"


def gather_profiles(folder: Path) -> list[Group]:
    """Read a folder's profiles in groups.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If one cannot be read, or was made on a device that a test plays.
    """
    held: dict[tuple[str, str | None, str], list[Shown]] = {}
    for place, profile in read_profiles(folder):
        if FAKE in (profile.machine.gpu or ""):
            raise ValueError(f"{place} was made on {profile.machine.gpu}, a device that a test plays: nothing is shown")
        key = (profile.case.setting, profile.commit.hash, profile.machine.fingerprint)
        held.setdefault(key, []).append(Shown(place, profile))
    return [Group(number, tuple(sorted(found, key=_order))) for number, found in enumerate(held.values(), start=1)]


def _order(shown: Shown) -> tuple[tuple[int, str], float]:
    case = shown.profile.case
    return rank(case.method), case.sparsity or 0.0


def step_rows(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """A row for each profile: its timed decode step, and its pieces as the profile shows them, in ms."""
    rows = []
    for profile in profiles:
        shown = Shown(Path(), profile)
        rows.append({"model": profile.case.model, "case": shown.label, "decode_ms": shown.decode_ms, **shown.pieces()})
    return rows
