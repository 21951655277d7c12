"""Two folders of results, case by case: one process each, held against the noise that is known of their machine."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tda.bench.planning import only
from tda.cases import describe
from tda.changes.builds import Build
from tda.changes.compare import (
    CANNOT_TELL,
    RULES,
    Comparison,
    Failures,
    Row,
    failed_cases,
    quality_is_worse,
    quality_row,
    speed_verdict,
    unjudged,
)
from tda.changes.detect import FAMILY
from tda.changes.effects import Prior
from tda.changes.floor import Series, single, two_modes, unlike
from tda.changes.messages import says_nothing
from tda.changes.quality import quality_moves
from tda.changes.series import Key, round_values, split_name
from tda.changes.workbench import Workbench, check_measured, speed_grid
from tda.config import BenchConfig
from tda.device import machine
from tda.history.repository import short
from tda.records import FAKE, Machine, Record, merge
from tda.results import load, results_path
from tda.statistics import BLIND, MIN_GROUPS, is_baseline, noise_floor, unpaired_ratio

INSTALLED = "installed"
"""What the present installation is called where it is measured against itself."""


MEASURED_S = 120.0
"""What measuring a floor takes at most, about."""
Identity = tuple[str, str]
"""Key of a case, and of what it was measured on."""


@dataclass(frozen=True)
class Folder:
    """Results of one commit on one machine.

    Attributes
    ----------
    path : Path
        As it was given.
    lines : tuple of Record
        As read, one per round.
    problems : tuple of str
        Lines that could not be read.
    """

    path: Path
    lines: tuple[Record, ...]
    problems: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Folder":
        """Read a folder of one machine.

        Raises
        ------
        ValueError
            If it holds nothing, or results of several commits or machines, or of a played device.
        """
        found = cls.read_machines(path)
        if len(found) > 1:
            raise ValueError(f"{path} holds results of several machines")
        return found[0]

    @classmethod
    def read_machines(cls, path: Path) -> list["Folder"]:
        """Read a folder, the lines of each machine apart, in order of first appearance.

        Raises
        ------
        ValueError
            If it holds nothing, or results of several commits, or of a played device.
        """
        found = load(path)
        if not found.records:
            raise ValueError(f"{path} holds no results")
        if len({record.commit for record in found.records}) > 1:
            raise ValueError(f"{path} holds results of several commits; compare them one by one")
        if any(FAKE in (record.machine.gpu or "") for record in found.records):
            raise ValueError(f"{path} holds results of a device that a test plays")
        held: dict[str, list[Record]] = {}
        for record in found.records:
            held.setdefault(record.machine.fingerprint, []).append(record)
        return [cls(path, tuple(lines), tuple(found.problems)) for lines in held.values()]

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The rounds of each case joined."""
        return tuple(merge(self.lines))

    @property
    def machine(self) -> Machine:
        """What it was taken on."""
        return self.lines[0].machine

    @property
    def machine_name(self) -> str:
        """What tells its machine from another one of the folder."""
        return f"{self.machine.gpu or self.machine.cpu} [{self.machine.fingerprint[:6]}]"

    @property
    def name(self) -> str:
        """Commit and state of its tree."""
        commit = self.lines[0].commit
        return short(commit.hash or "no commit") + (" with uncommitted changes" if commit.dirty else "")

    @cached_property
    def cases(self) -> dict[Identity, Record]:
        """Good records by case and inputs, controls aside."""
        good = (one for one in self.records if one.status == "ok" and one.case.control is None)
        return {(one.case.key, one.inputs.data): one for one in good}

    @cached_property
    def values(self) -> dict[Key, dict[int, float]]:
        """Its series, a value a round."""
        return round_values(self.records)


def is_folder(name: str) -> bool:
    """Whether a name is that of a results folder or file."""
    return results_path(Path(name)).is_file()


def compare_machines(old: Sequence[Folder], new: Sequence[Folder], noise: Mapping[Series, Prior]) -> Comparison:
    """Compare two results folders machine by machine: numbers of unlike machines are never held against each other.

    Parameters
    ----------
    old, new : sequence of Folder
        What each folder holds, as of `Folder.read_machines`.
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
        told=(*_told(found, lambda one: one.told), *_machines_alone(new, [one for _, one in pairs], old[0].path)),
        worse=any(one.worse for _, one in found),
        unjudged=(
            *_told(found, lambda one: one.unjudged),
            *(f"not compared, on {sentence}" for sentence in apart),
            *_machines_alone(old, [one for one, _ in pairs], new[0].path),
        ),
    )


def _told(found: Iterable[tuple[str, Comparison]], of: Callable[[Comparison], Iterable[str]]) -> list[str]:
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


def _machines_alone(folders: Iterable[Folder], paired: Sequence[Folder], other: Path) -> list[str]:
    """A sentence for machines that only one of two folders has."""
    names = [one.machine_name for one in folders if one not in paired]
    return [f"not compared, since not in {other}: what ran on {', '.join(names)}"] if names else []


def compare_folders(old: Folder, new: Folder, noise: Mapping[Series, Prior]) -> Comparison:
    """Compare two results folders, paired by case.

    Parameters
    ----------
    old, new : Folder
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
        raise ValueError(f"{old.path} and {new.path} have no good case in common{texts or ': nothing to compare'}")
    both = {key: (old.values[key], values) for key, values in new.values.items() if key in old.values}
    modes = two_modes(_streams(old), _streams(new))
    known = _Floors(old, new, noise, len(both))
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
        told=(*old.problems, *new.problems, *failures.new, *_alone(new, old), *known.told()),
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
) -> Row:
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
    return Row(key.case, split, text, ratio=ratio.value, low=ratio.low, high=ratio.high, floor=floor, verdict=verdict)


@dataclass(frozen=True)
class _Floors:
    """What processes of one build differ by: as far as it was learnt, else by the folders' own controls."""

    old: Folder
    new: Folder
    noise: Mapping[Series, Prior]
    tested: int

    def of(self, key: Key) -> float | None:
        """The floor of a series; None where nothing tells it, or where it hides everything."""
        learnt = self._learnt(key)
        floor = self._of_controls(key) if learnt is None else single(learnt, 1 - FAMILY / self.tested)
        return floor if floor is not None and floor <= BLIND else None

    def told(self) -> list[str]:
        """Where the floors are from, if it matters."""
        if all(self._learnt(key) is not None for key in self.new.values if key in self.old.values):
            return []
        return [
            "floors come from the A/A controls in the folders, each within one process; what differs from process to "
            f"process is not in them: `tda compare {self.old.path} {self.new.path} --measure-floor` measures it in "
            f"{MEASURED_S / 60:.0f} minutes"
        ]

    def _learnt(self, key: Key) -> Prior | None:
        """Noise of the series, or of dense in its setting: the machine's own."""
        found = self.noise.get(Series.of(self.new.machine, key))
        if found is not None or key.case.is_baseline:
            return found
        dense = next((k for k in self.new.values if k.case.is_baseline and k.case.setting == key.case.setting), None)
        if dense is None:
            return None
        split = "decode" if key.split == "select" else key.split
        return self.noise.get(Series.of(self.new.machine, dense._replace(split=split)))

    def _of_controls(self, key: Key) -> float | None:
        floors = [self._of_control(folder, key) for folder in (self.old, self.new)]
        known = [floor for floor in floors if floor is not None]
        return math.hypot(*known) if len(known) == len(floors) else None

    def _of_control(self, folder: Folder, key: Key) -> float | None:
        """What dense differs from itself by in one folder."""
        alike = [one for one in folder.records if one.status == "ok" and one.case.setting == key.case.setting]
        dense = next((one for one in alike if is_baseline(one)), None)
        control = next((one for one in alike if one.case.control == "a_a"), None)
        if dense is None or control is None:
            return None
        if key.split == "memory":
            peaks = [one.samples("peak_memory_bytes") for one in (dense, control)]
            return abs(peaks[0][0] / peaks[1][0] - 1) if all(peaks) else None
        name = "prefill_ms" if key.split == "prefill" else "decode_ms"
        return noise_floor(
            control, dense, [one for one in alike if one.case.control is None and one is not dense], name
        )


def _streams(folder: Folder) -> list[float]:
    """Stream bandwidth around every timed round."""
    return [value for one in folder.records for value in one.samples("stream_gb_per_s")]


def _speed_is_worse(rows: Mapping[Key, Row]) -> bool:
    """A ratio to dense that rose because dense became faster is no regression."""
    faster = {
        key.case.setting
        for key, row in rows.items()
        if key.case.is_baseline and key.split == "decode" and row.verdict == "faster"
    }
    bad = [key for key, row in rows.items() if row.verdict in ("slower", "more")]
    return any(not key.relative or key.case.setting not in faster for key in bad)


def _alone(one: Folder, other: Folder) -> list[str]:
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


# The floor of folders.


def measure_floor(bench: Workbench, old: Folder, new: Folder, blocks: int, seconds: float = MEASURED_S) -> None:
    """Learn what dense differs by from process to process of the present installation, in each setting of two folders.

    Parameters
    ----------
    bench : Workbench
        Where processes run.
    old, new : Folder
        What is to be compared.
    blocks : int
        Processes of either install in a setting, at most.
    seconds : float
        Time after which no process is begun that would not end in it.

    Raises
    ------
    ValueError
        If the folders were taken on another machine than this one.
    NotMeasuredError
        If a process fails.
    """
    site = Path(__file__).parents[2]
    builds = [Build(INSTALLED, copy, site) for copy in ("control", "commit")]
    configs = _dense(old, new)
    for place, config in enumerate(configs):
        differences = unlike(new.machine, machine(config.device or "cpu"))
        if differences:
            raise ValueError(f"{new.path} was taken on another machine than this one: {differences}")
        grid = speed_grid(config)
        part = seconds / len(configs)
        bench.say(f"setting {place + 1} of {len(configs)}: processes of dense for {part:.0f} s")
        units = bench.run_for(INSTALLED, builds, grid, blocks, part)
        check_measured(units, INSTALLED)
        bench.learn(grid.name, units, INSTALLED)


def _dense(old: Folder, new: Folder) -> list[BenchConfig]:
    """What runs dense in every timed setting of both folders."""
    timed = {record.setting: record.case for key, record in new.cases.items()
             if key in old.cases and is_baseline(record) and record.samples("decode_ms")}  # fmt: skip
    return [only(BenchConfig(rounds=MIN_GROUPS, documents=MIN_GROUPS), [case]) for case in timed.values()]
