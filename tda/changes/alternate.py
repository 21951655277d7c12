"""Run installed builds in alternating processes: one fresh process for each build, grid and block.

In a block every build runs once; odd blocks go forward, even ones backward, so that neighbours in history are
neighbours in time and a linear drift of the machine cancels.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tda.changes.builds import Build
from tda.config import BenchConfig
from tda.history.nights import Role, Stage, Unit
from tda.process import ProcessResult, call
from tda.records import Record, merge
from tda.results import RESULTS, Loaded, load
from tda.schedule import mirrored

logger = logging.getLogger(__name__)

GIVE_UP = 2
"""A commit whose processes failed this often is not tried again."""


@dataclass(frozen=True)
class BenchmarkGrid:
    """What one process measures.

    Attributes
    ----------
    name : str
        Name in units and tables.
    options : BenchConfig
        What is asked of `tda.run_bench`.
    repeated : bool
        Whether it runs once in every block (speed), or once for a commit (quality, which repeats exactly).
    """

    name: str
    options: BenchConfig
    repeated: bool = True


@dataclass(frozen=True)
class Task:
    """A unit to be measured."""

    build: Build
    role: Role
    grid: BenchmarkGrid
    stage: Stage
    block: int
    order: int

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        """As `Unit.place`."""
        return self.build.commit, self.role, self.grid.name, self.stage, self.block

    def unit(self, night: str, ended: ProcessResult, records: Sequence[Record] = ()) -> Unit:
        """What it is once its process has ended."""
        return Unit(
            night=night,
            commit=self.build.commit,
            role=self.role,
            grid=self.grid.name,
            stage=self.stage,
            block=self.block,
            order=self.order,
            records=tuple(records),
            **ended._asdict(),
        )


class Runs(Protocol):
    """Runs tasks."""

    def run(self, task: Task) -> Unit:
        """Run one; whatever goes wrong in it is the unit's status and reason."""
        ...


@dataclass(frozen=True)
class Runner:
    """Runs tasks as processes that bench.

    Attributes
    ----------
    night : str
        Name of the night in its units.
    work : Path
        Folder for the children's results; thresholds stay there from block to block.
    timeout_s : float
        After this a process is ended, and its unit says so.
    """

    night: str
    work: Path
    timeout_s: float = 900.0

    def run(self, task: Task) -> Unit:
        """Measure one unit; whatever goes wrong in the process is the unit's status and reason."""
        out = self.work / f"{task.build.site.name}-{task.grid.name}"
        out.mkdir(parents=True, exist_ok=True)
        for left in (RESULTS, "running.json"):  # of a process that was killed
            (out / left).unlink(missing_ok=True)
        ended = call(task.build.site, "run_bench", out, task.grid.options, self.timeout_s)
        found = load(out) if (out / RESULTS).is_file() else Loaded([], [])
        if ended.status == "ok" and (found.problems or not found.records):
            ended = ended._replace(status="error", reason="; ".join(found.problems) or "it measured nothing")
        return task.unit(self.night, ended, merge(found.records))


def block(builds: Sequence[tuple[Build, Role]], grid: BenchmarkGrid, stage: Stage, number: int) -> list[Task]:
    """Tasks of one block, in the order in which they run."""
    ordered = enumerate(mirrored(builds, number))
    return [Task(build, role, grid, stage, number, place) for place, (build, role) in ordered]


def design(builds: Sequence[tuple[Build, Role]], grid: BenchmarkGrid, stage: Stage, blocks: int) -> Iterator[Task]:
    """All tasks of a grid: `blocks` blocks if it is repeated, else each build once."""
    for number in range(1, (blocks if grid.repeated else 1) + 1):
        yield from block(builds, grid, stage, number)


def measure(
    tasks: Sequence[Task],
    runner: Runs,
    done: Sequence[Unit],
    keep: Callable[[Unit], None],
) -> list[Unit]:
    """Run the tasks that are not done yet; each unit is kept the moment its process has ended.

    A commit whose processes failed `GIVE_UP` times, earlier runs included, is left alone.

    Parameters
    ----------
    done : sequence of Unit
        Units of an earlier, interrupted run.
    keep : callable
        Told each new unit.

    Returns
    -------
    list of Unit
        The units of the tasks, earlier ones included; a task that was left out has none.
    """
    held = {unit.place: unit for unit in done}
    failures = Counter(unit.commit for unit in held.values() if unit.status != "ok")
    for number, task in enumerate(tasks, start=1):
        commit = task.build.commit
        if task.place in held or failures[commit] >= GIVE_UP:
            continue
        logger.info(f"{number}/{len(tasks)} {task.stage} {task.grid.name}, block {task.block}: {commit[:10]}")
        unit = held[task.place] = runner.run(task)
        keep(unit)
        if unit.status != "ok":
            failures[commit] += 1
            logger.warning(f"{commit[:10]}: {unit.status}: {unit.reason}")
    return [held[task.place] for task in tasks if task.place in held]


def clear(work: Path) -> None:
    """Delete what children left."""
    shutil.rmtree(work, ignore_errors=True)
