"""Two folders of results, case by case: one process each, held against the noise that is known of their machine."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from tda.cases import describe
from tda.changes.compare import (
    CANNOT_TELL,
    RULES,
    Comparison,
    ComparisonRow,
    Failures,
    failed_cases,
    quality_is_worse,
    quality_row,
    speed_verdict,
    unjudged,
)
from tda.changes.effects import Prior
from tda.changes.floor import FloorKey, two_modes, unlike
from tda.changes.folder import CommitResults
from tda.changes.folder_floors import FolderFloors
from tda.changes.messages import says_nothing
from tda.changes.quality import quality_moves
from tda.changes.series import Key, split_name
from tda.statistics import BLIND, unpaired_ratio


def compare_machines(
    old: Sequence[CommitResults], new: Sequence[CommitResults], noise: Mapping[FloorKey, Prior]
) -> Comparison:
    """Compare two results folders machine by machine: numbers of unlike machines are never held against each other.

    Parameters
    ----------
    old, new : sequence of CommitResults
        What each folder holds, as of `CommitResults.read_machines`.
    noise : mapping
        As for `compare_folders`.

    Raises
    ------
    ValueError
        If no machine is in both, or no case of one is.
    """
    if len(old) == len(new) == 1:
        return compare_folders(old[0], new[0], noise)
    pairs = [(one, other) for one in old for other in new if not unlike(one.machine, other.machine)]
    if not pairs:
        told = (f"{held[0].path}: {', '.join(one.machine_name for one in held)}" for held in (old, new))
        raise ValueError(f"no machine is in both folders; {'; '.join(told)}")
    found: list[tuple[str, Comparison]] = []
    apart: list[str] = []
    for one, other in pairs:
        try:
            found.append((one.machine_name, compare_folders(one, other, noise)))
        except ValueError as error:
            apart.append(f"{one.machine_name}: {error}")
    if not found:
        raise ValueError("; ".join(apart))
    return Comparison(
        old=old[0].name,
        new=new[0].name,
        rows=tuple(replace(row, machine=name) for name, one in found for row in one.rows),
        messages=(
            *_messages(found, lambda one: one.messages),
            *_machines_alone(new, [one for _, one in pairs], old[0].path),
        ),
        worse=any(one.worse for _, one in found),
        unjudged=(
            *_messages(found, lambda one: one.unjudged),
            *(f"not compared, on {sentence}" for sentence in apart),
            *_machines_alone(old, [one for one, _ in pairs], new[0].path),
        ),
    )


def _messages(found: Iterable[tuple[str, Comparison]], of: Callable[[Comparison], Iterable[str]]) -> list[str]:
    """Sentences about each machine that name it; one that all machines have alike stands once and names none."""
    held: dict[str, list[str]] = {}
    for name, one in found:
        for sentence in of(one):
            held.setdefault(sentence, []).append(name)
    every = len({name for name, _ in found})
    return [
        sentence if 1 < every == len(names) else f"on {', '.join(names)}: {sentence}"
        for sentence, names in held.items()
    ]


def _machines_alone(folders: Iterable[CommitResults], paired: Sequence[CommitResults], other: Path) -> list[str]:
    """A sentence for machines that only one of two folders has."""
    names = [one.machine_name for one in folders if one not in paired]
    return [f"not compared, since not in {other}: what ran on {', '.join(names)}"] if names else []


def _unlike_cases(old: CommitResults, new: CommitResults) -> str:
    """A case of each folder, as alike as two of them are."""
    both = [[record.case for record in folder.cases.values()] for folder in (old, new)]
    if not all(both):
        return ": nothing to compare"
    alike = (pair for pair in product(*both) if len({(case.method, case.model) for case in pair}) == 1)
    pair = next(alike, (both[0][0], both[1][0]))
    return ": e.g. {} here, {} there".format(*(describe(case, pair) for case in pair))


def compare_folders(old: CommitResults, new: CommitResults, noise: Mapping[FloorKey, Prior]) -> Comparison:
    """Compare two results folders, paired by case.

    Parameters
    ----------
    old, new : CommitResults
        Measured on like machines.
    noise : mapping
        Between-process noise of each series, as far as it is known.

    Raises
    ------
    ValueError
        If the machines differ (the sentence names the fields), or no case is in both.
    """
    differences = unlike(old.machine, new.machine)
    if differences:
        raise ValueError(f"{old.path} and {new.path} were taken on unlike machines: {differences}")
    if not old.cases.keys() & new.cases.keys():
        alike = {case for case, _ in old.cases} & {case for case, _ in new.cases}
        told = all(data for folder in (old, new) for _, data in folder.cases)
        unlike_in = "are of other texts, calibration or weights" if told else "do not all tell their text and weights"
        texts = f": the cases that both have {unlike_in}" if alike else ""
        raise ValueError(f"{old.path} and {new.path} have no good case in common{texts or _unlike_cases(old, new)}")
    both = {key: (old.values[key], values) for key, values in new.values.items() if key in old.values}
    modes = two_modes(_streams(old), _streams(new))
    known = FolderFloors(old, new, noise, len(both))
    names = {record.inputs.data: record.inputs.text_name for record in new.cases.values()}
    several = len({one.setting for one in new.cases.values()}) > len({one.case.setting for one in new.cases.values()})
    rows = {
        key: _row(key, *values, text=names[key.inputs] if several else None, floor=known.of(key), modes=modes)
        for key, values in both.items()
    }
    moves = quality_moves(new.records, old.records)
    failures = Failures.of(old.lines, new.lines)
    return Comparison(
        old=old.name,
        new=new.name,
        rows=(*rows.values(), *map(quality_row, moves)),
        messages=(*old.problems, *new.problems, *failures.new, *_alone(new, old), *known.messages()),
        worse=_speed_is_worse(rows) or quality_is_worse(moves) or bool(failures.new),
        unjudged=(*unjudged(rows, modes), *failures.unknown, *_alone(old, new)),
    )


def _row(
    key: Key,
    old: Mapping[int, float],
    new: Mapping[int, float],
    *,
    text: str | None,
    floor: float | None,
    modes: bool,
) -> ComparisonRow:
    """A series of both folders, judged against a floor."""
    ratio = unpaired_ratio(list(new.values()), list(old.values()))
    low, high = (ratio.value, ratio.value) if key.split == "memory" else (ratio.low, ratio.high)  # one peak a process
    verdict = CANNOT_TELL
    if low is not None and high is not None and floor is not None and not (modes and not key.relative):
        if low > 1 + floor or high < 1 / (1 + floor):
            verdict = speed_verdict(key.split, low > 1) if abs(np.log(ratio.value)) >= RULES.smallest else "same"
        elif high / low < (1 + BLIND) ** 2:
            verdict = "same"
    split = split_name(key.split, key.relative)
    return ComparisonRow(
        key.case, split, text, ratio=ratio.value, low=ratio.low, high=ratio.high, floor=floor, verdict=verdict
    )


def _streams(folder: CommitResults) -> list[float]:
    """Stream bandwidth around every timed round."""
    return [value for one in folder.records for value in one.samples("stream_gb_per_s")]


def _speed_is_worse(rows: Mapping[Key, ComparisonRow]) -> bool:
    """A ratio to dense that rose because dense became faster is no regression."""
    faster = {
        key.case.setting
        for key, row in rows.items()
        if key.case.is_baseline and key.split == "decode" and row.verdict == "faster"
    }
    bad = [key for key, row in rows.items() if row.verdict in ("slower", "more")]
    return any(not key.relative or key.case.setting not in faster for key in bad)


def _alone(one: CommitResults, other: CommitResults) -> list[str]:
    """Sentences about cases that only one of two folders has, or has a good record of."""
    failed = failed_cases(other.lines)
    lost = {key for key, record in failed.items() if says_nothing(record)}
    alone = [record.case for key, record in one.cases.items() if key not in other.cases]
    among = [record.case for record in (*one.cases.values(), *other.cases.values())]
    tasks = ", ".join(sorted({task for record in one.cases.values() for task in record.tasks}))
    told = [f"not compared: scores of tasks in {one.path} ({tasks}); `tda report` shows them"] if tasks else []
    for what, cases in (
        ("failed in", [case for case in alone if case.key in failed and case.key not in lost]),
        ("killed or lost in", [case for case in alone if case.key in lost]),
        ("not in", [case for case in alone if case.key not in failed]),
    ):
        names = ", ".join(describe(case, among) for case in cases)
        told += [f"not compared, since {what} {other.path}: {names}"] if names else []
    return told
