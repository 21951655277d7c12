"""One night: find the new commits, measure them, judge, and write down what was found.

Everything that is decided follows from the units and the night's record on disk, so a night that was killed goes on
where it stopped and ends as it would have ended.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tda.changes import alternate
from tda.changes.alternate import BenchmarkGrid, Runner, Task
from tda.changes.builds import Build, BuildFailedError, Builds
from tda.changes.floor import Floors
from tda.history.nights import History, Night, NightCommit, Role, Unit
from tda.history.repository import Repository
from tda.nightly.choice import CommitChoice, now
from tda.nightly.config import NightlyConfig
from tda.nightly.data import NightData
from tda.nightly.detector import ChangeDetector
from tda.nightly.spare import SpareTime
from tda.process import alone
from tda.records import Machine

logger = logging.getLogger(__name__)


@dataclass
class NightRun:
    """A night being run.

    Attributes
    ----------
    repository : Repository
        Whose commits are measured.
    history : History
        Where units and records are kept.
    config : NightlyConfig
        What is measured.
    work : Path
        Folder for builds and children; safe to delete between nights.
    newest : str
        Commit up to which to measure.
    since : str or None
        On a first night: the commit to begin with, which becomes the baseline commit; else only the newest is measured.
    """

    repository: Repository
    history: History
    config: NightlyConfig
    work: Path
    newest: str = "HEAD"
    since: str | None = None

    def run(self) -> Night | None:
        """Measure and judge; None where there is nothing new."""
        with alone(self.history.folder), alone(self.work):
            deadline = time.monotonic() + 60 * self.config.cap_minutes
            night = self._unfinished() or self._new()
            if night is None:
                return None
            logger.info(
                f"nightly run {night.id}: {len(night.commits)} commits, baseline commit {night.baseline_commit[:10]}"
            )
            builds = Builds(self.repository, self.work / "builds")
            night = self._measured(night, builds)
            self.history.write(night)
            spare = SpareTime(self.repository, self.history, self.config, builds, deadline)
            spare.explain(night)
            spare.run_extras(night)
            night = night.model_copy(update={"finished": now()})
            self.history.write(night)
            self.history.thin(self.config.keep_nights)
            alternate.clear(self._children(night))
            return night

    def _unfinished(self) -> Night | None:
        nights = self.history.nights()[0]
        return next((night for night in reversed(nights) if night.finished is None), None)

    def _new(self) -> Night | None:
        choice = CommitChoice(self.repository, self.history, self.config, self.newest, self.since)
        night = choice.night()
        if night is not None:
            self.history.write(night)
        return night

    def _measured(self, night: Night, builds: Builds) -> Night:
        night = self._built(night, builds)
        runner = Runner(night.id, self._children(night), timeout_s=self.config.unit_timeout_s)
        night = self._with_baseline(night, builds)
        if not night.measured:
            return night
        control, baseline = builds.install(night.baseline_commit, "control"), builds.install(night.baseline_commit)
        design: list[tuple[Build, Role]] = [(control, "control"), (baseline, "commit")]
        design += [(builds.install(commit), "commit") for commit in night.measured if commit != night.baseline_commit]
        tasks: list[Task] = []
        by_cost = sorted(self.config.grids, key=lambda grid: grid.repeated)  # quality is cheap, and exact at once
        grids = [BenchmarkGrid(grid.name, grid.options, grid.repeated) for grid in by_cost]
        for grid in grids:
            who = design if grid.repeated else [entry for entry in design if entry[1] == "commit"]
            tasks += alternate.design(who, grid, "first", self.config.blocks)
        self._measure(runner, night, tasks)
        self._learn(night)
        night = self._statuses(night)
        night = night.model_copy(update={"machine": self._machine(night)})
        self.history.write(night)
        detector = ChangeDetector(NightData(self.history, night, self.config, self.repository))
        if wanted := detector.to_confirm():
            logger.info(f"candidates at {', '.join(commit[:10] for commit in wanted)}: measuring again")
            again: list[tuple[Build, Role]] = [(builds.install(commit), "commit") for commit in wanted]
            fresh: list[Task] = []
            for grid in grids:
                if grid.repeated:
                    fresh += alternate.design(again, grid, "confirm", self.config.confirm_blocks)
            self._measure(runner, night, fresh)
        notes = (*night.notes, *detector.unmeasured())
        return night.model_copy(update={"findings": detector.findings(), "seen": detector.seen(), "notes": notes})

    def _built(self, night: Night, builds: Builds) -> Night:
        commits = []
        for commit in night.commits:
            if commit.status == "measured":
                try:
                    builds.install(commit.hash)
                except BuildFailedError as error:
                    logger.warning(f"{commit.hash[:10]} does not build: {error}")
                    commit = commit.model_copy(update={"status": "build failed", "reason": str(error)})
            commits.append(commit)
        return night.model_copy(update={"commits": tuple(commits)})

    def _with_baseline(self, night: Night, builds: Builds) -> Night:
        """The night with a baseline that builds: where its own no longer does, the oldest commit that it measures."""
        try:
            builds.install(night.baseline_commit)
        except BuildFailedError as error:
            told = f"the baseline commit {night.baseline_commit[:10]} no longer builds ({error})"
        else:
            return night
        if night.measured:
            told += f"; {night.measured[0][:10]} takes its place, and slow changes are looked for from it on"
        logger.warning(told)
        update = {
            "baseline_commit": night.measured[0] if night.measured else night.baseline_commit,
            "notes": (*night.notes, told),
        }
        night = night.model_copy(update=update)
        self.history.write(night)
        return night

    def _measure(self, runner: Runner, night: Night, tasks: Sequence[Task]) -> None:
        alternate.measure(tasks, runner, self.history.units(night.id)[0], self.history.keep)

    def _learn(self, night: Night) -> None:
        """Let comparisons of folders know what processes of one build differ by on this machine."""
        try:
            Floors().learn(night.id, self.history.units(night.id)[0], night.baseline_commit)
        except OSError as error:
            logger.warning(f"the noise of this machine is not kept: {error}")

    def _statuses(self, night: Night) -> Night:
        """What became of each commit, and which measured one it is compared with."""
        units = self.history.units(night.id)[0]
        commits, before = [], None
        for commit in night.commits:
            commits.append(_after(commit, units).model_copy(update={"parent": before}))
            if commits[-1].status == "measured":
                before = commit.hash
        return night.model_copy(update={"commits": tuple(commits)})

    def _machine(self, night: Night) -> Machine | None:
        records = (record for unit in self.history.units(night.id)[0] for record in unit.records)
        return next((record.machine for record in records), None)

    def _children(self, night: Night) -> Path:
        return self.work / f"night-{night.id}"


def _after(commit: NightCommit, units: Sequence[Unit]) -> NightCommit:
    """A commit's status once its units are in: it is measured if one of them is good."""
    own = [unit for unit in units if unit.commit == commit.hash and unit.role == "commit"]
    if commit.status != "measured" or any(unit.status == "ok" for unit in own):
        return commit
    last = own[-1].reason if own else "nothing ran"
    return commit.model_copy(update={"status": "crashed", "reason": last})
