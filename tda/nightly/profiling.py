"""Profiles of installed builds: taken in alternating processes and put into a store."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tda.changes.alternate import BenchmarkGrid, Task, design, measure
from tda.changes.builds import Build, BuildFailedError, Builds
from tda.config import BenchConfig
from tda.device import machine
from tda.history.nights import Unit
from tda.history.profiles import ProfileStore
from tda.history.repository import Repository, short
from tda.nightly.config import ProfilesConfig
from tda.process import COMPLAINT, call
from tda.profiler.store import RECORD

logger = logging.getLogger(__name__)

CALL = "run_profile"
NAME = "cases"


@dataclass(frozen=True)
class ProfileRequest:
    """What is profiled, the same of every build.

    Attributes
    ----------
    name : str
        First word of the names of its sessions.
    options : BenchConfig
        What is asked of `tda.run_profile`.
    processes : int
        Fresh processes of each build.
    timeout_s : float
        After this a process is ended.
    """

    name: str
    options: BenchConfig
    processes: int = 1
    timeout_s: float = 900.0

    def session(self, commits: Sequence[str], machine: str) -> str:
        """Name that is equal for equal questions about equal commits on one machine, so that none is paid twice."""
        text = json.dumps([list(commits), self.options.options(), machine], sort_keys=True)
        ends = dict.fromkeys(map(short, (commits[0], commits[-1])))
        return "-".join((self.name, *ends, hashlib.sha256(text.encode()).hexdigest()[:8]))


@dataclass(frozen=True)
class _Profiler:
    """Runs tasks as processes that profile into their parts of a store."""

    store: ProfileStore
    session: str
    timeout_s: float

    def run(self, task: Task) -> Unit:
        part = self.store.part(self.session, task.build.commit, task.block)
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir(parents=True)
        ended = call(task.build.site, CALL, part, task.grid.options, self.timeout_s)
        if ended.status == "ok" and not any(part.glob(f"*/{RECORD}")):
            ended = ended._replace(status="error", reason="it profiled nothing")
        if ended.status == "ok":
            (part / COMPLAINT).unlink()
        else:
            shutil.rmtree(part)
        return task.unit(self.session, ended)


def capture(store: ProfileStore, request: ProfileRequest, builds: Sequence[Build], machine: str) -> list[Unit]:
    """Profile builds in alternating processes, as far as they are not in the store yet.

    Parameters
    ----------
    store : ProfileStore
        Where to.
    request : ProfileRequest
        What is profiled.
    builds : sequence of Build
        In the order of history. One that cannot profile, being too old, is told of and left out.
    machine : str
        Fingerprint of this machine.

    Returns
    -------
    list of Unit
        The processes, earlier ones included.
    """
    session = request.session([build.commit for build in builds], machine)
    done = [unit for unit in store.units()[0] if unit.night == session and unit.status == "ok"]
    tasks = list(design([(build, "commit") for build in builds], BenchmarkGrid(request.name, request.options), "first",
                        request.processes))  # fmt: skip
    for task in tasks:
        if task.block == 1 and not _can_profile(task.build):
            unit = _too_old(session, task)
            logger.warning(f"{short(unit.commit)}: {unit.reason}")
            store.keep(unit)
    able = [task for task in tasks if _can_profile(task.build)]
    return measure(able, _Profiler(store, session, request.timeout_s), done, store.keep)


def _can_profile(build: Build) -> bool:
    """Whether the build's façade offers the call, found out without starting it."""
    package = build.site / "tda" / "__init__.py"
    return not package.is_file() or CALL in package.read_text()  # else the installed tda profiles it


def _too_old(session: str, task: Task) -> Unit:
    return Unit(
        night=session, commit=task.build.commit, grid=task.grid.name, block=task.block, order=task.order,
        status="error", reason=f"it has no tda.{CALL}: it is older than profiles", seconds=0.0,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def profile_commits(
    repository: Repository,
    names: Sequence[str],
    settings: ProfilesConfig,
    store: ProfileStore,
    builds: Path,
    processes: int | None,
) -> bool:
    """Install commits and profile them, then prune the store.

    Parameters
    ----------
    repository : Repository
        Where commits come from.
    names : sequence of str
        Commits, branches or tags.
    settings : ProfilesConfig
        What is profiled.
    store : ProfileStore
        Where to.
    builds : Path
        Folder of installed builds.
    processes : int or None
        Processes of each commit; else as the settings say, and 1 where there is one commit.

    Returns
    -------
    bool
        Whether every commit was built, and every process ended well.
    """
    commits = list(dict.fromkeys(repository.resolve(name) for name in names))
    count = processes or (settings.processes if len(commits) > 1 else 1)
    request = ProfileRequest(NAME, settings.options, count, settings.timeout_s)
    installed = []
    for commit in commits:
        try:
            installed.append(Builds(repository, builds).install(commit))
        except BuildFailedError as error:
            logger.warning(f"{short(commit)} does not build: {error}")
    here = machine(settings.options.device or "cpu").fingerprint
    units = capture(store, request, installed, here) if installed else []
    for commit in store.prune(settings.keep_traces):
        logger.info(f"{short(commit)} is old: its traces are deleted, its tables stay")
    return len(installed) == len(commits) and all(unit.status == "ok" for unit in units)
