"""Profiles in groups that may be compared, and a decode step in as many pieces as a reader can hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tda.cases import Case, describe
from tda.derived import above_limit, unlike_kernels
from tda.profiler.parts import FFN_PARTS, WEIGHT_PARTS
from tda.profiler.records import GAPS, KernelRow, Profile
from tda.profiler.split import Gap, gap, split
from tda.profiler.store import read_profiles
from tda.records import FAKE
from tda.web.theme.style import rank

GAPS_PIECE = "gaps between kernels"
PIECES = {
    "FFN projections": "#0072B2",
    "FFN: activation, selection": "#56B4E9",
    "attention projections": "#D55E00",
    "attention": "#E69F00",
    "norms": "#F0E442",
    "head": "#CC79A7",
    "other operators": "#8C8C8C",
    GAPS_PIECE: "#B5B5B5",
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


UNEXPLAINED = 0.2
"""Share of a timed step by which the parts that a profile shows may miss it."""


@dataclass(frozen=True)
class ShownProfile:
    """A profile with the folder it lies in, and those of the cases that it is shown beside."""

    folder: Path
    profile: Profile
    beside: tuple[Profile, ...] = ()

    @property
    def label(self) -> str:
        """Method, sparsity, and what tells it from the others."""
        return describe(self.profile.case, [other.case for other in self.beside], model=False)

    @property
    def dense(self) -> Profile | None:
        """The dense one among those."""
        return next((other for other in self.beside if other.case.is_baseline), None)

    @property
    def warnings(self) -> list[str]:
        """Why its numbers cannot be trusted; empty where nothing is known against them."""
        profile, dense = self.profile, self.dense
        found = [f"{name.replace('_', ' ')} ({flag.detail})" for name, flag in profile.flags.items() if flag.raised]
        parts = split(profile)
        if abs(parts.unexplained) > UNEXPLAINED * parts.total:
            profiled = parts.total - parts.unexplained
            found.append(f"its parts sum to {profiled:.3g} ms, and the timed step is {parts.total:.3g} ms")
        if dense is not None and not profile.case.is_baseline:
            held = gap(profile, dense)
            above = above_limit(held.speedup, held.limit)
            unlike = unlike_kernels(profile.backend, dense.backend)
            found += [why for why in (above, unlike) if why is not None]
        return found

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
class ProfileGroup:
    """Profiles of one model in one setting, on one machine and commit; dense first.

    Attributes
    ----------
    number : int
        Its place on the page, from 1.
    shown : tuple of ShownProfile
        The profiles, in the order of legends.
    """

    number: int
    shown: tuple[ShownProfile, ...]

    @property
    def first(self) -> Profile:
        """Any of them, for what they share."""
        return self.shown[0].profile

    @property
    def dense(self) -> ShownProfile | None:
        """The dense profile, which every saving is against."""
        return next((shown for shown in self.shown if shown.profile.case.is_baseline), None)

    @property
    def gaps(self) -> list[tuple[ShownProfile, Gap]]:
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
    if row.kernel == GAPS:
        return GAPS_PIECE
    return _OF_PART.get(row.part, "other operators") if row.op else "framework"


def gather_profiles(folder: Path) -> list[ProfileGroup]:
    """Read a folder's profiles in groups.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If one cannot be read, or was made on a device that a test plays.
    """
    held: dict[tuple[object, ...], list[tuple[Path, Profile]]] = {}
    for place, profile in read_profiles(folder):
        if FAKE in (profile.machine.gpu or ""):
            raise ValueError(f"{place} was made on {profile.machine.gpu}, a device that a test plays: nothing is shown")
        commit, inputs = profile.commit.hash, profile.inputs
        key = (profile.case.setting, inputs.setting, inputs.change, commit, profile.machine.fingerprint)
        held.setdefault(key, []).append((place, profile))
    return [ProfileGroup(number, together(found)) for number, found in enumerate(held.values(), start=1)]


def together(found: Sequence[tuple[Path, Profile]]) -> tuple[ShownProfile, ...]:
    """Profiles of one setting and the folders they lie in, told from one another, in the order of legends."""
    beside = tuple(profile for _, profile in found)
    shown = [ShownProfile(place, profile, beside) for place, profile in found]
    return tuple(sorted(shown, key=lambda one: order(one.profile.case)))


def order(case: Case) -> tuple[int, str, float]:
    """Sorting key: methods in the order of legends, then sparsity."""
    return (*rank(case.method), case.sparsity or 0.0)


def piece_rows(group: ProfileGroup) -> Iterator[dict[str, Any]]:
    """A row for each piece of a decode step: ms of every case, and the difference to dense."""
    dense = None if group.dense is None else group.dense.pieces()
    for piece, colour in PIECES.items():
        values = [shown.pieces()[piece] for shown in group.shown]
        if any(values):
            cells = [
                (value, None if dense is None or shown is group.dense else value - dense[piece])
                for value, shown in zip(values, group.shown, strict=True)
            ]
            yield {"name": piece, "colour": colour, "cells": cells}


def step_rows(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """A row for each profile: its timed decode step, and its pieces as the profile shows them, in ms."""
    rows = []
    for shown in together([(Path(), profile) for profile in profiles]):
        profile = shown.profile
        rows.append({"model": profile.case.model, "case": shown.label, "decode_ms": shown.decode_ms, **shown.pieces()})
    return rows


def verdicts(groups: Sequence[ProfileGroup]) -> list[str]:
    """A sentence for each case whose profile cannot be trusted: the last word of a terminal."""
    return [
        f"{shown.label} on {shown.profile.case.model} cannot be trusted, because {'; '.join(shown.warnings)}"
        for group in groups
        for shown in group.shown
        if shown.warnings
    ]
