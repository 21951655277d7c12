"""Two commits, or two folders of results, case by case.

Commits are installed and run in alternating processes, the older one twice: what its installs differ by is the
between-process A/A noise of this very comparison. Folders were measured before, one process each; they are held against
the noise that is known of their machine.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tda.records import FAKE, LAYER_PROFILE, Case, Machine, Record, label, merge
from tda.regression import alternate, detect
from tda.regression.alternate import Grid, Runner
from tda.regression.builds import Build, BuildFailedError, Builds
from tda.regression.detect import FAMILY, Change, Pair, Rules, Suspect
from tda.regression.effects import Prior, resolution
from tda.regression.findings import Split
from tda.regression.floor import Floors, Series, identity, single, unlike
from tda.regression.quality import QualityMove, quality_moves
from tda.regression.repository import Repository
from tda.regression.series import Blocks, Key
from tda.regression.units import History, Role, Stage, Unit
from tda.regression.wording import short, speed_sentence
from tda.results import load, results_path
from tda.statistics import MIN_GROUPS, RESAMPLES, Estimate, by_group, is_baseline

if TYPE_CHECKING:
    from tda.bench.plan import Plan

SPEED_DOCUMENTS = 2
"""Documents scored by a process whose times are wanted: quality is measured once, apart."""
RULES = Rules()
INSTALLED = "installed"
"""What the present installation is called where it is measured against itself."""


class NotMeasuredError(Exception):
    """A commit that does not build, or whose processes fail; the text says why."""


@dataclass(frozen=True)
class Asked:
    """What is measured of a commit: keyword arguments of `tda.run_bench`."""

    options: Mapping[str, Any]

    @cached_property
    def plan(self) -> "Plan":
        """The matrix that they stand for; ValueError where one is wrong."""
        from tda.bench.plan import given, plan_of

        rest = dict(self.options)
        preset, models = rest.pop("preset", "default"), rest.pop("model", ())
        sizes = {name: rest.pop(name, None) for name in ("prompt_tokens", "new_tokens", "dtype")}
        plural = {"method": "methods", "sparsity": "sparsities"}
        return plan_of(
            preset, models, given(**sizes), given(**{plural.get(name, name): value for name, value in rest.items()})
        )

    @cached_property
    def machine(self) -> Machine:
        """The machine that measures it here and now."""
        from tda.device import machine

        return machine(self.plan.device)

    @cached_property
    def _digest(self) -> str:
        """Name of the options on this machine: units of others are never taken for theirs."""
        text = json.dumps([self.options, identity(self.machine)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def speed(self) -> Grid:
        """What runs in every block."""
        few = {"documents": SPEED_DOCUMENTS} if self.quality else {}
        return Grid(f"speed-{self._digest}", {**self.options, **few})

    @property
    def quality(self) -> Grid | None:
        """What runs once for a commit; None for models with random weights alone."""
        if not any(subject.quality for subject in self.plan.subjects):
            return None
        return Grid(f"quality-{self._digest}", {**self.options, "rounds": 1}, repeated=False)

    def narrowed(self, case: str) -> "Asked":
        """The same for one case alone, and the dense run that it is compared with.

        Raises
        ------
        ValueError
            If the case is not among what is asked.
        """
        cells = {
            label(self.plan.case(subject, built)): (subject, built)
            for subject in self.plan.subjects
            for built in self.plan.build()
        }
        if case not in cells:
            raise ValueError(f"no case {case!r} in what is measured; there are: {', '.join(cells)}")
        subject, built = cells[case]
        chosen: dict[str, Any] = {"method": [built.name]}
        if built.name != "dense":
            chosen["sparsity"] = [built.sparsity]
        if subject.layer_profile is None:  # else the model whose sparsity it imitates must run before it
            chosen |= {name: getattr(subject, name) for name in ("prompt_tokens", "new_tokens", "dtype")}
            chosen["model"] = [subject.model]
        return Asked({**self.options, **chosen})


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Where installed builds are measured.

    Attributes
    ----------
    out : Path
        Folder of the units: an interrupted measurement goes on with them.
    work : Path
        Folder for builds and children; safe to delete.
    timeout_s : float
        After this a process is ended.
    floors : Floors
        Told what every control shows.
    say : callable
        Told in a sentence what is going on.
    """

    out: Path
    work: Path
    timeout_s: float = 900.0
    floors: Floors = field(default_factory=Floors)
    say: Callable[[str], None] = print

    def run(self, name: str, builds: Sequence[Build], grid: Grid, blocks: int, stage: Stage = "first") -> list[Unit]:
        """Units of some builds in so many blocks; what an earlier run finished is not paid again, what failed is."""
        history = History(self.out)
        kept, problems = history.units(name)
        for problem in problems:
            self.say(f"{problem}; what it held is measured again")
        done = [unit for unit in kept if unit.status == "ok"]
        roles: list[tuple[Build, Role]] = [(one, "control" if one.copy == "control" else "commit") for one in builds]
        tasks = list(alternate.design(roles, grid, stage, blocks))
        runner = Runner(name, self.work / "children", self.timeout_s)
        return alternate.measure(tasks, runner, done, history.keep, self.say)

    def learn(self, source: str, units: Sequence[Unit], commit: str) -> None:
        """Keep what the processes of one commit differ by; a cache that cannot be written stops nothing."""
        try:
            self.floors.learn(source, units, commit)
        except OSError as error:
            self.say(f"the noise of this machine is not kept: {error}")


@dataclass(frozen=True, kw_only=True)
class CommitBench(Workbench):
    """Where commits of a repository are installed and measured."""

    repository: Repository

    def install(self, commit: str, copy: str = "commit") -> Build:
        """Install a commit; NotMeasuredError if it does not build."""
        try:
            return Builds(self.repository, self.work / "builds").install(commit, copy)
        except BuildFailedError as error:
            raise NotMeasuredError(f"{short(commit)} does not build: {error}") from None

    def against(self, old: str, new: str, asked: Asked, blocks: int) -> list[Unit]:
        """Units of two commits in the same blocks, with a control; their noise is learnt."""
        builds = [self.install(old, "control"), self.install(old), self.install(new)]
        name = f"{short(old)}-{short(new)}"
        units = self.run(name, builds, asked.speed, blocks)
        self.learn(f"{name}-{asked.speed.name}", units, old)
        for commit in (old, new):
            check_measured(units, commit)
        return units

    def text(self, commit: str, asked: Asked) -> list[Record]:
        """Quality records of a commit, measured once; empty where nothing has a quality."""
        if asked.quality is None:
            return []
        units = self.run("quality", [self.install(commit)], asked.quality, 1)
        check_measured(units, commit)
        return list(units[0].records)


def check_measured(units: Iterable[Unit], commit: str) -> None:
    """Raise NotMeasuredError if no process of a commit ended well."""
    own = [unit for unit in units if unit.commit == commit]
    if not any(unit.status == "ok" for unit in own):
        last = own[-1]
        raise NotMeasuredError(f"{short(commit)} cannot be measured: {last.status}: {last.reason}")


# What a comparison says.


@dataclass(frozen=True)
class Row:
    """One series of a case: a ratio (new over old) for times and memory, a difference in nats a token for quality.

    `low` and `high` bound the 95% interval; `floor` is the relative change that lies within the between-process A/A
    noise; `p` is corrected for all series together (commits only).
    """

    case: str
    split: str
    ratio: float | None = None
    nats: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    p: float | None = None
    verdict: str = "same"


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes
    ----------
    old, new : str
        What was compared, in a few words.
    rows : tuple of Row
        Every series.
    told : tuple of str
        Sentences: what moved, what could not be compared.
    worse : bool
        Whether something is worse beyond the noise, or fails that did not.
    unjudged : tuple of str
        Sentences: what could not be judged, and what to do about it.
    """

    old: str
    new: str
    rows: tuple[Row, ...]
    told: tuple[str, ...]
    worse: bool
    unjudged: tuple[str, ...] = ()


def _split_name(split: Split, relative: bool) -> str:
    return "decode to dense" if relative else split


def _verdict(split: Split, up: bool) -> str:
    words = ("more", "less") if split == "memory" else ("slower", "faster")
    return words[0] if up else words[1]


def quality_row(move: QualityMove) -> Row:
    """What changed in the text of a case."""
    if move.nll is None:
        return Row(move.case, "quality", verdict=f"other neurons in {move.sets} of {move.documents} documents")
    nll = move.nll
    verdict = "worse" if nll.value > 0 else "better"
    return Row(move.case, "quality", nats=nll.value, low=nll.low, high=nll.high, verdict=verdict)


def _quality_is_worse(moves: Iterable[QualityMove]) -> bool:
    """A better text may keep other neurons; other neurons without a better text are a mistake."""
    return any(move.nll is None or move.nll.value > 0 for move in moves)


def _newly_failed(old: Iterable[Record], new: Iterable[Record]) -> list[str]:
    """A sentence for each case that always fails now and did not before."""
    before, now = _failed(old), _failed(new)
    return [
        f"{label(record.case)} fails: {record.status}: {record.reason}"
        for key, record in now.items()
        if key not in before
    ]


def _failed(records: Iterable[Record]) -> dict[str, Record]:
    """Cases without a good record."""
    records = list(records)
    good = {record.case.key for record in records if record.status == "ok"}
    return {record.case.key: record for record in records if record.case.key not in good}


# Commits.


def compare_commits(bench: CommitBench, old: str, new: str, asked: Asked, blocks: int) -> Comparison:
    """Measure two commits against each other.

    Parameters
    ----------
    old, new : str
        Full hashes.
    blocks : int
        Processes of each build.

    Raises
    ------
    ValueError
        If both are one commit, or an option is wrong.
    NotMeasuredError
        If one of them does not build or run.
    """
    if old == new:
        raise ValueError(f"{short(old)} and {short(new)} are one commit")
    bench.say(f"{3 * blocks} processes{' for speed, 2 for quality' if asked.quality else ''}")
    before, after = (bench.text(commit, asked) for commit in (old, new))
    units = bench.against(old, new, asked, blocks)
    judged = Judged(units, Pair(new, old), bench.repository.facts(new).subject)
    moves = quality_moves(after, before)
    records = {
        commit: [*text, *(record for unit in units if unit.commit == commit for record in unit.records)]
        for commit, text in ((old, before), (new, after))
    }
    failed = _newly_failed(records[old], records[new])
    return Comparison(
        old=short(old),
        new=short(new),
        rows=(*judged.rows(), *map(quality_row, moves)),
        told=(*judged.told(), *failed),
        worse=judged.is_worse or _quality_is_worse(moves) or bool(failed),
    )


class Judged:
    """What the blocks of two commits say, all series tested together.

    Parameters
    ----------
    units : sequence of Unit
        Of both commits and of the older one's second install.
    pair : Pair
        The commits.
    subject : str
        First line of the newer one's message.
    """

    def __init__(self, units: Sequence[Unit], pair: Pair, subject: str) -> None:
        self.blocks = Blocks(units)
        self.pair = pair
        self.subject = subject
        # The control alone: the steps' own spread is in their effects already.
        self.noise = detect.noise(self.blocks, (), pair.old)
        self.effects = detect.effects(self.blocks, pair, self.noise)
        every = [Suspect(pair, key, found) for key, found in self.effects.items()]
        self.tested = detect.confirm(self.blocks, every, self.noise)
        self.sure = [one for one in self.tested if one.holds and self._is_beyond(one.suspect.key)]

    def floor(self, key: Key) -> float | None:
        """Between-process A/A floor of a series with as many blocks as it has."""
        noise = self.noise.get(key)
        if noise is None:
            return None
        return resolution(noise, len(detect.differences(self.blocks, key, self.pair))).floor()

    def _is_beyond(self, key: Key) -> bool:
        floor, found = self.floor(key), self.effects[key]
        return floor is not None and abs(found.log_ratio) > np.log1p(floor) and RULES.matters(found)

    @cached_property
    def changes(self) -> list[Change]:
        """What moved, named: everything alike, dense alone, or methods of their own."""
        return detect.changes(self.blocks, self.sure, self.noise, RULES)

    @property
    def is_worse(self) -> bool:
        """Whether something that moved is for the worse; a faster dense alone is not, though ratios to it rise."""
        return any(change.verdict == "alarm" for change in self.changes)

    def told(self) -> list[str]:
        """What moved, and which series have too few blocks with a sensible value."""
        left = [key for key in self.blocks.keys if key not in self.effects]
        names = [f"{_split_name(key.split, key.relative)} of {key.case} has too few values to compare" for key in left]
        return [*(speed_sentence(change, self.subject) for change in self.changes), *names]

    def rows(self) -> Iterator[Row]:
        """Every series, moved or not."""
        moved = {one.suspect.key for one in self.sure}
        for one in self.tested:
            key, found = one.suspect.key, one.suspect.effect
            low, high = found.bounds()
            yield Row(
                case=key.case,
                split=_split_name(key.split, key.relative),
                ratio=1 + found.size,
                low=1 + low,
                high=1 + high,
                floor=self.floor(key),
                p=one.p,
                verdict=_verdict(key.split, found.log_ratio > 0) if key in moved else "same",
            )


# Folders.


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
        states = {(identity(record.machine), record.commit) for record in found.records}
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
    def cases(self) -> dict[str, Record]:
        """Good records by the key of their case, controls aside."""
        return {one.case.key: one for one in self.records if one.status == "ok" and not one.control}

    def values(self, case: str) -> Iterator[tuple[Split, bool, Sequence[float]]]:
        """Series of a case, one value a round: as `tda.regression.series` defines them for units."""
        record = self.cases[case]
        if record.samples("peak_memory_bytes"):
            yield "memory", False, _rounds(record, "peak_memory_bytes")
        if not record.samples("decode_ms"):
            return
        yield "decode", False, _rounds(record, "decode_ms")
        if is_baseline(record):
            yield "prefill", False, _rounds(record, "prefill_ms")
            return
        if record.samples("selection_digest") and record.samples("select_ms"):
            yield "select", False, _rounds(record, "select_ms")
        dense = self._dense(record.case)
        if dense is not None:
            one, other = (by_group(part.measurements["decode_ms"]) for part in (record, dense))
            yield "decode", True, [one[number] / other[number] for number in one.keys() & other.keys()]

    def _dense(self, case: Case) -> Record | None:
        same = (one for one in self.cases.values() if is_baseline(one) and one.case.setting == case.setting)
        return next((one for one in same if one.samples("decode_ms")), None)


def _rounds(record: Record, name: str) -> list[float]:
    return list(by_group(record.measurements[name]).values())


def is_folder(name: str) -> bool:
    """Whether a name is that of a results folder or file."""
    return results_path(Path(name)).is_file()


def unpaired_ratio(new: Sequence[float], old: Sequence[float], *, seed: int = 0) -> Estimate | None:
    """Ratio of medians over rounds; its interval resamples the rounds of either process by themselves.

    None where a median, or a resampled one, is not positive: select times around zero have no ratio.
    """
    above, below = (np.asarray(values, dtype=np.float64) for values in (new, old))
    if np.median(above) <= 0 or np.median(below) <= 0:
        return None
    value, groups = float(np.median(above) / np.median(below)), min(len(above), len(below))
    if groups < MIN_GROUPS:
        return Estimate(value, None, None, groups)
    draw = np.random.default_rng(seed)
    one, other = (np.median(draw.choice(values, (RESAMPLES, len(values))), axis=-1) for values in (above, below))
    if min(one.min(), other.min()) <= 0:
        return None
    low, high = np.quantile(one / other, (0.025, 0.975))
    return Estimate(value, float(low), float(high), groups)


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
    both = [case for case in old.cases if case in new.cases]
    if not both:
        raise ValueError(f"{old.path} and {new.path} have no good case in common: nothing to compare")
    paired = [one for case in both for one in _paired(old, new, case)]
    judged = [(one, one.row(noise.get(one.series), len(paired))) for one in paired]
    rows = [row for _, row in judged]
    moves = quality_moves(new.records, old.records)
    failed = _newly_failed(old.records, new.records)
    return Comparison(
        old=old.name,
        new=new.name,
        rows=(*rows, *map(quality_row, moves)),
        told=(*old.problems, *new.problems, *failed, *_lonely(old, new)),
        worse=_speed_is_worse(judged) or _quality_is_worse(moves) or bool(failed),
        unjudged=(*_without_floor(rows, old, new), *_without_interval(rows)),
    )


UNKNOWN, FEW = "no floor known", f"under {MIN_GROUPS} rounds"


@dataclass(frozen=True)
class _Paired:
    """One series in both folders; `ratio` is None where it has none."""

    series: Series
    case: Case
    ratio: Estimate | None

    def row(self, noise: Prior | None, tested: int) -> Row:
        """Judged against the floor of one process against one other, at a level for all series together."""
        case, split = label(self.case), _split_name(self.series.split, self.series.relative)
        floor = single(noise, 1 - FAMILY / tested) if noise is not None else None
        ratio = self.ratio
        if ratio is None:
            return Row(case, split, floor=floor, verdict="around zero")
        verdict = self._verdict(ratio, floor)
        return Row(case, split, ratio=ratio.value, low=ratio.low, high=ratio.high, floor=floor, verdict=verdict)

    def _verdict(self, ratio: Estimate, floor: float | None) -> str:
        low, high = ratio.low, ratio.high
        if self.series.split == "memory":  # one peak a process, and no rounds
            low = high = ratio.value
        if low is None or high is None:
            return FEW
        if floor is None:
            return UNKNOWN
        if low > 1 + floor or high < 1 / (1 + floor):
            return _verdict(self.series.split, low > 1)
        return "same"


def _paired(old: Folder, new: Folder, case: str) -> Iterator[_Paired]:
    before = {(split, relative): values for split, relative, values in old.values(case)}
    for split, relative, values in new.values(case):
        other = before.get((split, relative))
        if values and other:
            series = Series(identity(new.machine), case, split, relative)
            yield _Paired(series, new.cases[case].case, unpaired_ratio(values, other))


def _speed_is_worse(judged: Sequence[tuple[_Paired, Row]]) -> bool:
    """A ratio to dense that rose because dense became faster is no regression."""
    faster = {
        one.case.setting
        for one, row in judged
        if one.case.method == "dense" and one.series.split == "decode" and row.verdict == "faster"
    }
    bad = [one for one, row in judged if row.verdict in ("slower", "more")]
    return any(not one.series.relative or one.case.setting not in faster for one in bad)


def _lonely(old: Folder, new: Folder) -> list[str]:
    """Sentences about cases that only one of two folders has."""
    told = []
    for one, other in ((old, new), (new, old)):
        failed = _failed(other.records)
        alone = [record.case for key, record in one.cases.items() if key not in other.cases]
        for what, cases in (
            ("failed in", [case for case in alone if case.key in failed]),
            ("not in", [case for case in alone if case.key not in failed]),
        ):
            names = ", ".join(f"{label(case)} ({case.prompt_tokens}+{case.new_tokens} tokens)" for case in cases)
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
    for asked in _settings(old, new):
        differences = unlike(new.machine, asked.machine)
        if differences:
            raise ValueError(f"{new.path} was taken on another machine than this one: {differences}")
        units = bench.run(INSTALLED, builds, asked.speed, blocks)
        check_measured(units, INSTALLED)
        bench.learn(asked.speed.name, units, INSTALLED)


def _settings(old: Folder, new: Folder) -> list[Asked]:
    """What to run so that every timed case of both folders runs: one grid for each model and size."""
    grids: dict[str, list[Record]] = {}
    for key, record in new.cases.items():
        if key in old.cases and record.samples("decode_ms"):
            case = record.case
            grids.setdefault(f"{case.setting} {case.execution}", []).append(record)
    return [_asked(records) for records in grids.values()]


def _asked(records: Sequence[Record]) -> Asked:
    case = records[0].case
    profiles = [one.case.options[LAYER_PROFILE] for one in records if LAYER_PROFILE in one.case.options]
    shared = ("prompt_tokens", "new_tokens", "batch", "dtype", "device", "execution", "seed")
    return Asked(
        {
            "model": list(dict.fromkeys([*profiles, case.model])),
            "method": list(dict.fromkeys(one.case.method for one in records)),
            "sparsity": sorted({one.case.sparsity for one in records if one.case.method != "dense"}) or [0.5],
            "rounds": max(len(by_group(one.measurements["decode_ms"])) for one in records),
            **{name: getattr(case, name) for name in shared},
        }
    )
