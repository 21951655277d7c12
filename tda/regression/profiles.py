"""Profiles of installed builds: taken in alternating processes, kept on a shelf, compared, and thinned by a rule.

A shelf is a folder ``COMMIT/PROCESS/CASE``. A process lies on it with its account, ``process.json``, once it has ended,
and never in part. Processes of one session ran in turn, so the drift of the machine is no part of what they differ by.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean, median

from pydantic import ValidationError

from tda.cases import Case, taken_for
from tda.config import BenchConfig
from tda.process import COMPLAINT, call
from tda.profiler.difference import PhaseChange, ProfileChange, difference, phase_differences
from tda.profiler.records import Profile
from tda.profiler.store import MEMORY, RECORD, TRACE, read_profile
from tda.records import FAKE
from tda.regression.alternate import Grid, Task, design, measure
from tda.regression.builds import Build
from tda.regression.units import History, Unit
from tda.regression.wording import short
from tda.results import write_whole

SHELF = "profiles"
"""Folder of a history that is a shelf."""
ACCOUNT = "process.json"
CALL = "run_profile"
LARGE = (TRACE, MEMORY)
"""Files that are deleted when a profile grows old; the record and its tables stay."""
IGNORED = (
    f"# A history that is a branch keeps the tables alone: traces would stay in it for ever.\n{TRACE}\n{MEMORY}\n.*/\n"
)


# What is read.


@dataclass(frozen=True)
class Kept:
    """A profile on a shelf.

    Attributes
    ----------
    unit : Unit
        The process that took it; `unit.night` names its session.
    folder : Path
        Where its tables and, while they are kept, its trace lie.
    profile : Profile
        Its record.
    """

    unit: Unit
    folder: Path
    profile: Profile

    @property
    def case(self) -> Case:
        """Its case."""
        return self.profile.case

    @property
    def trace(self) -> Path | None:
        """Its trace; None when that was thinned."""
        path = self.folder / TRACE
        return path if path.is_file() else None


@dataclass(frozen=True)
class Compared:
    """Profiles of one case on two commits and one machine.

    Attributes
    ----------
    before, after : tuple of Kept
        One for each process.
    paired : bool
        Whether the processes ran in turn.
    """

    before: tuple[Kept, ...]
    after: tuple[Kept, ...]
    paired: bool

    @property
    def case(self) -> Case:
        """The case."""
        return self.after[0].case

    @property
    def machine(self) -> str:
        """Fingerprint of the machine."""
        return self.after[0].profile.machine.fingerprint

    @cached_property
    def changes(self) -> list[ProfileChange]:
        """Every row, what is certain first."""
        return difference(*self._sides)

    @cached_property
    def phases(self) -> list[PhaseChange]:
        """Every phase as a whole."""
        return phase_differences(*self._sides)

    @property
    def decode_ms(self) -> tuple[float, float]:
        """The timed decode step of both, which no profiler watched."""
        one, other = (fmean(median(profile.timed.decode_ms) for profile in side) for side in self._sides)
        return one, other

    @property
    def _sides(self) -> tuple[list[Profile], list[Profile]]:
        before, after = ([kept.profile for kept in side] for side in (self.before, self.after))
        return before, after


@dataclass(frozen=True)
class Profiles:
    """What some shelves hold.

    Attributes
    ----------
    kept : tuple of Kept
        In the order in which their processes began.
    failed : tuple of Unit
        Processes that gave nothing, with the reason.
    problems : tuple of str
        What could not be read.
    """

    kept: tuple[Kept, ...] = ()
    failed: tuple[Unit, ...] = ()
    problems: tuple[str, ...] = ()

    @cached_property
    def by_commit(self) -> dict[str, list[Kept]]:
        """Profiles of each commit."""
        found: dict[str, list[Kept]] = {}
        for kept in self.kept:
            found.setdefault(kept.unit.commit, []).append(kept)
        return found

    def compare(self, old: str, new: str) -> list[Compared]:
        """Every case that two commits share on one machine; processes that ran in turn alone, where there are any."""
        before, found = self._by_case(old), []
        for place, held in self._by_case(new).items():
            for inputs, after in held.items():
                known = before.get(place, {})
                same = known.get(taken_for(inputs, known))
                found += [_compared(same, after)] if same is not None else []
        return found

    def _by_case(self, commit: str) -> dict[tuple[str, str], dict[str, list[Kept]]]:
        """By machine and case, then by inputs."""
        found: dict[tuple[str, str], dict[str, list[Kept]]] = {}
        for kept in self.by_commit.get(commit, ()):
            place = (kept.profile.machine.fingerprint, kept.case.key)
            found.setdefault(place, {}).setdefault(kept.profile.inputs.data, []).append(kept)
        return found


def _compared(before: Sequence[Kept], after: Sequence[Kept]) -> Compared:
    shared = {kept.unit.night for kept in before} & {kept.unit.night for kept in after}
    old, new = (tuple(kept for kept in side if not shared or kept.unit.night in shared) for side in (before, after))
    return Compared(old, new, paired=bool(shared))


# What is kept.


class Shelf:
    """A folder of profiles by commit and process.

    Parameters
    ----------
    folder : Path
        Made when something is first kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def units(self) -> tuple[list[Unit], list[str]]:
        """Accounts of all processes in the order in which they began, and a sentence for each that cannot be read."""
        found, problems = self._accounts()
        return [unit for unit, _ in found], problems

    def _accounts(self) -> tuple[list[tuple[Unit, Path]], list[str]]:
        found, problems = [], []
        for path in sorted(self.folder.glob(f"*/*/{ACCOUNT}")):
            if path.parent.name.startswith("."):
                continue
            try:
                found.append((Unit.model_validate_json(path.read_bytes()), path.parent))
            except (OSError, ValidationError) as error:
                problems.append(f"{path} skipped: {str(error).splitlines()[0]}")
        return sorted(found, key=lambda entry: (entry[0].started, entry[0].block, entry[0].order)), problems

    def read(self, commits: Collection[str] | None = None) -> Profiles:
        """Profiles of some commits, or of all; what cannot be read, or was made on a played device, is left out."""
        found, problems = self._accounts()
        found = [entry for entry in found if commits is None or entry[0].commit in commits]
        kept = []
        for unit, place in found:
            for record in sorted(place.glob(f"*/{RECORD}")):
                try:
                    profile = read_profile(record.parent)
                except (OSError, ValueError) as error:
                    problems.append(f"{record.parent} skipped: {str(error).splitlines()[0]}")
                    continue
                if FAKE in (profile.machine.gpu or ""):
                    problems.append(f"{record.parent} skipped: it was made on a device that a test plays")
                else:
                    kept.append(Kept(unit, record.parent, profile))
        return Profiles(tuple(kept), tuple(unit for unit, _ in found if unit.status != "ok"), tuple(problems))

    def place(self, unit: Unit) -> Path:
        """Folder of a process."""
        return self.folder / unit.commit / f"{unit.night}-{unit.block}"

    def part(self, session: str, task: Task) -> Path:
        """Folder in which a process works before it is kept."""
        return self.folder / task.build.commit / f".{session}-{task.block}"

    def keep(self, unit: Unit) -> None:
        """Put a process that has ended into its place, whole."""
        place = self.place(unit)
        part = place.with_name(f".{place.name}")
        if not (self.folder / ".gitignore").is_file():
            write_whole(self.folder / ".gitignore", IGNORED)
        write_whole(part / ACCOUNT, unit.model_dump_json(indent=1) + "\n")
        shutil.rmtree(place, ignore_errors=True)  # a process that failed
        part.rename(place)

    def thin(self, newest: int, always: Collection[str] = ()) -> list[str]:
        """Delete the traces of all commits but those profiled last, and some others; the commits that had any.

        Parameters
        ----------
        newest : int
            How many commits keep their traces.
        always : collection of str
            Commits that keep them however old they are.
        """
        last = {unit.commit: unit.started for unit in self.units()[0]}
        thinned = []
        for commit in sorted(last, key=lambda commit: last[commit])[:-newest]:
            old = [path for name in LARGE for path in (self.folder / commit).glob(f"*/*/{name}")]
            if old and commit not in always:
                for path in old:
                    path.unlink()
                thinned.append(commit)
        return thinned


def read_shelves(folders: Iterable[Path]) -> Profiles:
    """What several shelves hold, together; a folder that is not there holds nothing."""
    read = [Shelf(folder).read() for folder in folders]
    kept = sorted((kept for one in read for kept in one.kept), key=lambda kept: kept.unit.started)
    failed = tuple(unit for one in read for unit in one.failed)
    return Profiles(tuple(kept), failed, tuple(problem for one in read for problem in one.problems))


def alarmed(history: History) -> set[str]:
    """Commits at both ends of every alarm that a night raised: they keep their traces."""
    found = (finding for night in history.nights()[0] for finding in night.findings if finding.verdict == "alarm")
    return {commit for finding in found for commit in (finding.good, finding.commit)}


# How it gets there.


@dataclass(frozen=True)
class Question:
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
    """Runs tasks as processes that profile into their parts of a shelf."""

    shelf: Shelf
    session: str
    timeout_s: float

    def run(self, task: Task) -> Unit:
        part = self.shelf.part(self.session, task)
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


def capture(
    shelf: Shelf, question: Question, builds: Sequence[Build], machine: str, say: Callable[[str], None]
) -> list[Unit]:
    """Profile builds in alternating processes, as far as they are not on the shelf yet.

    Parameters
    ----------
    shelf : Shelf
        Where to.
    question : Question
        What is profiled.
    builds : sequence of Build
        In the order of history. One that cannot profile, being too old, is told of and left out.
    machine : str
        Fingerprint of this machine.
    say : callable
        Told in a sentence what is going on.

    Returns
    -------
    list of Unit
        The processes, earlier ones included.
    """
    session = question.session([build.commit for build in builds], machine)
    done = [unit for unit in shelf.units()[0] if unit.night == session and unit.status == "ok"]
    tasks = list(design([(build, "commit") for build in builds], Grid(question.name, question.options), "first",
                        question.processes))  # fmt: skip
    for task in tasks:
        if task.block == 1 and not _can_profile(task.build):
            unit = _too_old(session, task)
            say(f"{short(unit.commit)}: {unit.reason}")
            shelf.keep(unit)
    able = [task for task in tasks if _can_profile(task.build)]
    return measure(able, _Profiler(shelf, session, question.timeout_s), done, shelf.keep, say)


def _can_profile(build: Build) -> bool:
    """Whether the build's façade offers the call, found out without starting it."""
    return CALL in (build.site / "tda" / "__init__.py").read_text()


def _too_old(session: str, task: Task) -> Unit:
    return Unit(
        night=session, commit=task.build.commit, grid=task.grid.name, block=task.block, order=task.order,
        status="error", reason=f"it has no tda.{CALL}: it is older than profiles", seconds=0.0,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
