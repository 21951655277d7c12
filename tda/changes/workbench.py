"""Where builds are measured for a comparison or a bisection: what is asked, and processes whose units are kept."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tda.bench.budget import duration
from tda.bench.planning import plan_of
from tda.cases import digest_of
from tda.changes import alternate
from tda.changes.alternate import BenchmarkGrid, Runner
from tda.changes.builds import Build, BuildFailedError, Builds
from tda.changes.floor import Floors
from tda.config import BenchConfig
from tda.device import machine
from tda.history.nights import History, Role, Stage, Unit
from tda.history.repository import Repository, short
from tda.quality.documents import text_facts
from tda.records import Record

logger = logging.getLogger(__name__)

SPEED_DOCUMENTS = 2
"""Documents scored by a process whose times are wanted: quality is measured once, apart."""


class NotMeasuredError(Exception):
    """A commit that does not build, or whose processes fail; the text says why."""


def speed_grid(config: BenchConfig) -> BenchmarkGrid:
    """What runs in every block to compare speeds."""
    few = {"documents": SPEED_DOCUMENTS} if _has_quality(config) else {}
    return BenchmarkGrid(f"speed-{_digest(config)}", config.model_copy(update=few))


def quality_grid(config: BenchConfig) -> BenchmarkGrid | None:
    """What runs once for a commit; None for models with random weights alone."""
    if not _has_quality(config):
        return None
    return BenchmarkGrid(f"quality-{_digest(config)}", config.model_copy(update={"rounds": 1}), repeated=False)


def _has_quality(config: BenchConfig) -> bool:
    return any(subject.quality for subject in plan_of(config).subjects)


def _digest(config: BenchConfig) -> str:
    """Hash of options, texts and this machine: units of others are never taken for theirs."""
    texts = [text_facts(path)[1] for path in (config.text, config.calibration_text) if path is not None]
    return digest_of([config.options(), texts, machine(plan_of(config).device).fingerprint], 8)


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
    """

    out: Path
    work: Path
    timeout_s: float = 900.0
    floors: Floors = field(default_factory=Floors)

    def run(
        self, name: str, builds: Sequence[Build], grid: BenchmarkGrid, blocks: int, stage: Stage = "first"
    ) -> list[Unit]:
        """Units of some builds in so many blocks; what an earlier run finished is not paid again, what failed is."""
        history = History(self.out)
        kept, problems = history.units(name)
        for problem in problems:
            logger.warning(f"{problem}; what it held is measured again")
        done = [unit for unit in kept if unit.status == "ok"]
        roles: list[tuple[Build, Role]] = [(one, "control" if one.copy == "control" else "commit") for one in builds]
        tasks = list(alternate.design(roles, grid, stage, blocks))
        runner = Runner(name, self.work / "children", self.timeout_s)
        return alternate.measure(tasks, runner, done, history.keep)

    def run_for(self, name: str, builds: Sequence[Build], grid: BenchmarkGrid, most: int, seconds: float) -> list[Unit]:
        """Units of some builds in so many blocks at most, as long as the next one will end in time; one at least."""
        units: list[Unit] = []
        longest, end = 0.0, time.monotonic() + seconds
        for blocks in range(1, most + 1):
            begin = time.monotonic()
            if blocks > 1 and begin + longest > end:
                break
            logger.info(f"block {blocks}; {duration(end - begin)} left")
            units = self.run(name, builds, grid, blocks)
            longest = max(longest, time.monotonic() - begin)
        return units

    def learn(self, source: str, units: Sequence[Unit], commit: str) -> None:
        """Keep what the processes of one commit differ by; a cache that cannot be written stops nothing."""
        try:
            self.floors.learn(source, units, commit)
        except OSError as error:
            logger.warning(f"the noise of this machine is not kept: {error}")


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

    def against(self, old: str, new: str, config: BenchConfig, blocks: int) -> list[Unit]:
        """Units of two commits in the same blocks, with a control; their noise is learnt."""
        builds = [self.install(old, "control"), self.install(old), self.install(new)]
        name = f"{short(old)}-{short(new)}"
        grid = speed_grid(config)
        units = self.run(name, builds, grid, blocks)
        self.learn(f"{name}-{grid.name}", units, old)
        for commit in (old, new):
            check_measured(units, commit)
        return units

    def text(self, commit: str, config: BenchConfig) -> list[Record]:
        """Quality records of a commit, measured once; empty where nothing has a quality."""
        grid = quality_grid(config)
        if grid is None:
            return []
        units = self.run("quality", [self.install(commit)], grid, 1)
        check_measured(units, commit)
        return list(units[0].records)


def check_measured(units: Iterable[Unit], commit: str) -> None:
    """Raise NotMeasuredError if no process of a commit ended well."""
    own = [unit for unit in units if unit.commit == commit]
    if not any(unit.status == "ok" for unit in own):
        last = own[-1]
        raise NotMeasuredError(f"{short(commit)} cannot be measured: {last.status}: {last.reason}")
