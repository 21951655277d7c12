"""Two folders of results, case by case: one process each, held against the noise that is known of their machine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tda.bench.plan import only
from tda.cases import describe
from tda.config import BenchConfig
from tda.device import machine
from tda.records import FAKE, Machine, Record, merge
from tda.regression.builds import Build
from tda.regression.compare import (
    Comparison,
    Row,
    blind,
    failed_cases,
    newly_failed,
    quality_is_worse,
    quality_row,
    speed_verdict,
)
from tda.regression.detect import FAMILY
from tda.regression.effects import Prior
from tda.regression.floor import Series, single, unlike
from tda.regression.quality import quality_moves
from tda.regression.series import Key, round_values, split_name
from tda.regression.wording import short
from tda.regression.workbench import Workbench, check_measured, speed_grid
from tda.results import load, results_path
from tda.statistics import MIN_GROUPS, Estimate, by_group, unpaired_ratio

INSTALLED = "installed"
"""What the present installation is called where it is measured against itself."""


Identity = tuple[str, str]
"""Key of a case, and of what it was measured on."""


@dataclass(frozen=True)
class Folder:
    """Results of one commit on one machine.

    Attributes
    ----------
    path : Path
        As it was given.
    records : tuple of Record
        The rounds of each case joined.
    problems : tuple of str
        Lines that could not be read.
    """

    path: Path
    records: tuple[Record, ...]
    problems: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Folder":
        """Read a folder.

        Raises
        ------
        ValueError
            If it holds nothing, or results of several commits or machines, or of a played device.
        """
        found = load(path)
        if not found.records:
            raise ValueError(f"{path} holds no results")
        states = {(record.machine.fingerprint, record.commit) for record in found.records}
        if len(states) > 1:
            raise ValueError(f"{path} holds results of several commits or machines; compare them one by one")
        if FAKE in (found.records[0].machine.gpu or ""):
            raise ValueError(f"{path} holds results of a device that a test plays")
        return cls(path, tuple(merge(found.records)), tuple(found.problems))

    @property
    def machine(self) -> Machine:
        """What it was taken on."""
        return self.records[0].machine

    @property
    def name(self) -> str:
        """Commit and state of its tree."""
        commit = self.records[0].commit
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
        texts = ": the cases that both have are of other texts, calibration or weights" if alike else ""
        raise ValueError(f"{old.path} and {new.path} have no good case in common{texts or ': nothing to compare'}")
    paired = [
        _Paired(key, Series.of(new.machine, key), unpaired_ratio(list(values.values()), list(old.values[key].values())))
        for key, values in new.values.items()
        if key in old.values
    ]
    judged = [(one, one.row(noise.get(one.series), len(paired))) for one in paired]
    rows = [row for _, row in judged]
    moves = quality_moves(new.records, old.records)
    failed = newly_failed(old.records, new.records)
    return Comparison(
        old=old.name,
        new=new.name,
        rows=(*rows, *map(quality_row, moves)),
        told=(*old.problems, *new.problems, *failed, *_lonely(old, new), *blind(rows)),
        worse=_speed_is_worse(judged) or quality_is_worse(moves) or bool(failed),
        unjudged=(*_without_floor(rows, old, new), *_without_interval(rows)),
    )


UNKNOWN, FEW = "no floor known", f"under {MIN_GROUPS} rounds"


@dataclass(frozen=True)
class _Paired:
    """One series in both folders."""

    key: Key
    series: Series
    ratio: Estimate

    def row(self, noise: Prior | None, tested: int) -> Row:
        """Judged against the floor of one process against one other, at a level for all series together."""
        case, split = self.key.case, split_name(self.key.split, self.key.relative)
        floor = single(noise, 1 - FAMILY / tested) if noise is not None else None
        ratio, verdict = self.ratio, self._verdict(floor)
        return Row(case, split, ratio=ratio.value, low=ratio.low, high=ratio.high, floor=floor, verdict=verdict)

    def _verdict(self, floor: float | None) -> str:
        low, high = self.ratio.low, self.ratio.high
        if self.key.split == "memory":  # one peak a process, and no rounds
            low = high = self.ratio.value
        if low is None or high is None:
            return FEW
        if floor is None:
            return UNKNOWN
        if low > 1 + floor or high < 1 / (1 + floor):
            return speed_verdict(self.key.split, low > 1)
        return "same"


def _speed_is_worse(judged: Sequence[tuple[_Paired, Row]]) -> bool:
    """A ratio to dense that rose because dense became faster is no regression."""
    faster = {
        one.key.case.setting
        for one, row in judged
        if one.key.case.is_baseline and one.key.split == "decode" and row.verdict == "faster"
    }
    bad = [one.key for one, row in judged if row.verdict in ("slower", "more")]
    return any(not key.relative or key.case.setting not in faster for key in bad)


def _lonely(old: Folder, new: Folder) -> list[str]:
    """Sentences about cases that only one of two folders has."""
    told = []
    for one, other in ((old, new), (new, old)):
        failed = failed_cases(other.records)
        alone = [record.case for key, record in one.cases.items() if key not in other.cases]
        among = [record.case for record in (*one.cases.values(), *other.cases.values())]
        for what, cases in (
            ("failed in", [case for case in alone if case.key in failed]),
            ("not in", [case for case in alone if case.key not in failed]),
        ):
            names = ", ".join(describe(case, among) for case in cases)
            told += [f"not compared, since {what} {other.path}: {names}"] if names else []
    return told


def _without_floor(rows: Iterable[Row], old: Folder, new: Folder) -> list[str]:
    names = [f"{row.split} of {row.case}" for row in rows if row.verdict == UNKNOWN]
    if not names:
        return []
    return [
        f"no between-process A/A floor of this machine is known for {_first(names)}, and two processes of one build "
        f"differ too. `tda compare {old.path} {new.path} --measure-floor` measures it; comparing commits does, too"
    ]


def _without_interval(rows: Iterable[Row]) -> list[str]:
    names = [f"{row.split} of {row.case}" for row in rows if row.verdict == FEW]
    return [f"too few rounds for an interval of {_first(names)}; {MIN_GROUPS} are needed"] if names else []


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


# The floor of folders.


def measure_floor(bench: Workbench, old: Folder, new: Folder, blocks: int) -> None:
    """Learn what the cases of two folders differ by from process to process of the present installation.

    Raises
    ------
    ValueError
        If the folders were taken on another machine than this one.
    NotMeasuredError
        If a process fails.
    """
    site = Path(__file__).parents[2]
    builds = [Build(INSTALLED, copy, site) for copy in ("control", "commit")]
    for config in _settings(old, new):
        differences = unlike(new.machine, machine(config.device or "cpu"))
        if differences:
            raise ValueError(f"{new.path} was taken on another machine than this one: {differences}")
        grid = speed_grid(config)
        units = bench.run(INSTALLED, builds, grid, blocks)
        check_measured(units, INSTALLED)
        bench.learn(grid.name, units, INSTALLED)


def _settings(old: Folder, new: Folder) -> list[BenchConfig]:
    """What to run so that every timed case of both folders runs: one grid for each model and size."""
    held: dict[tuple[str, str], list[Record]] = {}
    for key, record in new.cases.items():
        if key in old.cases and record.samples("decode_ms"):
            held.setdefault((record.case.setting, record.case.execution), []).append(record)
    return [_asked(records) for records in held.values()]


def _asked(records: Sequence[Record]) -> BenchConfig:
    rounds = max(len(by_group(one.measurements["decode_ms"])) for one in records)
    return only(BenchConfig(rounds=rounds), [one.case for one in records])
