"""Run installed builds in alternating processes: one fresh process for each build, grid and block.

In a block every build runs once; odd blocks go forward, even ones backward, so that neighbours in history are
neighbours in time and a linear drift of the machine cancels.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from tda.config import BenchConfig
from tda.records import Record, merge
from tda.regression.builds import Build, last_words
from tda.regression.units import Role, Stage, Unit, UnitStatus
from tda.results import RESULTS, Loaded, load

GIVE_UP = 2
"""A commit whose processes failed this often is not tried again."""
COMPLAINT = "stderr.txt"
"""What a process complained of."""
CHILD = """
import inspect, json, os, sys, threading
from pathlib import Path
order = json.loads(sys.argv[1])
# The parent holds our standard input: when it dies, however it dies, we end too, and disturb no later measurement.
threading.Thread(target=lambda: (os.read(0, 1), os._exit(70)), daemon=True).start()
import tda
if not Path(tda.__file__).is_relative_to(order["site"]):
    sys.exit(f"measured the wrong build: {tda.__file__}")
call = getattr(tda, order["call"], None)
if call is None:
    sys.exit(f"this commit has no tda.{order['call']}: it is older than the suite")
options, older = order["options"], {"models": "model", "methods": "method", "sparsities": "sparsity"}
if "model" in inspect.signature(call).parameters:
    options = {older.get(name, name): value for name, value in options.items()}
    told = [spec.partition(":sparsity=") for spec in options.get("method", ())]
    if any(":" in name or "," in value for name, _, value in told):
        sys.exit("this commit is older than options of methods: " + ", ".join(options["method"]))
    if told:
        options["method"] = list(dict.fromkeys(name for name, _, _ in told))
    if any(value for _, _, value in told):
        options["sparsity"] = list(dict.fromkeys(float(value) for _, _, value in told if value))
call(order["out"], **options)
sys.stdout.flush()
os._exit(0)
"""
"""What a process runs: the public call of the build that is on its path, and nothing of the parent's own code."""


@dataclass(frozen=True)
class Grid:
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
    grid: Grid
    stage: Stage
    block: int
    order: int

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        """As `Unit.place`."""
        return self.build.commit, self.role, self.grid.name, self.stage, self.block

    def unit(self, night: str, ended: "Ended", records: Sequence[Record] = ()) -> Unit:
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


class Ended(NamedTuple):
    """How a process ended.

    Attributes
    ----------
    status : str
        As a unit's.
    reason : str or None
        Why, if it did not end well.
    started : str
        When it began.
    seconds : float
        How long it took.
    """

    status: UnitStatus
    reason: str | None
    started: str
    seconds: float


def call(build: Build, name: str, out: Path, options: BenchConfig, timeout_s: float) -> Ended:
    """Have a build make a public call, ``tda.NAME(out, **options)``, in a process of its own.

    A build of before version 0.2 calls models, methods and sparsities by one name each, and knows no methods' options.

    What the process complained of stays in ``stderr.txt`` in the folder `out`, which must be there.
    """
    site = str(build.site.resolve())
    order = {"site": site, "call": name, "out": str(out.resolve()), "options": options.options()}
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(order)]
    return finish(command, out, {**os.environ, "PYTHONPATH": site}, timeout_s)


def finish(command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float) -> Ended:
    """Run a command in a folder to its end, or to the end of its time.

    It holds a pipe from us as its standard input, so it can tell when we die. What it complained of stays in
    ``stderr.txt`` in the folder.
    """
    started, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    complaint = folder / COMPLAINT
    with open(complaint, "wb") as errors:
        status, reason = _wait(command, timeout_s, errors, folder, environment)
    if status in ("error", "crash"):
        said = last_words(complaint.read_text(errors="replace"), lines=1) or "it said nothing"
        reason = f"{reason}: {said}"
    return Ended(status, reason, started, round(time.monotonic() - begin, 2))


def _wait(
    command: Sequence[str], timeout_s: float, errors: IO[bytes], folder: Path, environment: Mapping[str, str]
) -> tuple[UnitStatus, str | None]:
    """Run a command to its end, or to the end of its time; it never outlives us."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, cwd=folder, env=environment
    ) as process:
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return "timeout", f"no end after {timeout_s:.0f} s"
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return "ok", None
    return "crash" if process.returncode < 0 else "error", f"exit code {process.returncode}"


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
        ended = call(task.build, "run_bench", out, task.grid.options, self.timeout_s)
        found = load(out) if (out / RESULTS).is_file() else Loaded([], [])
        if ended.status == "ok" and (found.problems or not found.records):
            ended = ended._replace(status="error", reason="; ".join(found.problems) or "it measured nothing")
        return task.unit(self.night, ended, merge(found.records))


def block(builds: Sequence[tuple[Build, Role]], grid: Grid, stage: Stage, number: int) -> list[Task]:
    """Tasks of one block, in the order in which they run."""
    ordered = list(builds) if number % 2 else list(reversed(builds))
    return [Task(build, role, grid, stage, number, place) for place, (build, role) in enumerate(ordered)]


def design(builds: Sequence[tuple[Build, Role]], grid: Grid, stage: Stage, blocks: int) -> Iterator[Task]:
    """All tasks of a grid: `blocks` blocks if it is repeated, else each build once."""
    for number in range(1, (blocks if grid.repeated else 1) + 1):
        yield from block(builds, grid, stage, number)


def measure(
    tasks: Sequence[Task],
    runner: Runs,
    done: Sequence[Unit],
    keep: Callable[[Unit], None],
    say: Callable[[str], None],
) -> list[Unit]:
    """Run the tasks that are not done yet; each unit is kept the moment its process has ended.

    A commit whose processes failed `GIVE_UP` times, earlier runs included, is left alone.

    Parameters
    ----------
    done : sequence of Unit
        Units of an earlier, interrupted run.
    keep, say
        Told each new unit; told in a sentence what is going on.

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
        say(f"{number}/{len(tasks)} {task.stage} {task.grid.name}, block {task.block}: {commit[:10]}")
        unit = held[task.place] = runner.run(task)
        keep(unit)
        if unit.status != "ok":
            failures[commit] += 1
            say(f"{commit[:10]}: {unit.status}: {unit.reason}")
    return [held[task.place] for task in tasks if task.place in held]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a working folder: two measurements at once would disturb each other's numbers.

    Raises
    ------
    ValueError
        If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another measurement is running in {folder}") from None
        yield


def clear(work: Path) -> None:
    """Delete what children left."""
    shutil.rmtree(work, ignore_errors=True)
