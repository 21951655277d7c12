"""Stored profiles of installed builds: read, compared, and thinned by a rule.

A store is a folder ``COMMIT/PROCESS/CASE``. A process is in it with its account, ``process.json``, once it has ended,
and never in part. Processes of one session ran in turn, so the drift of the machine is no part of what they differ by.
"""

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median

from pydantic import ValidationError

from tda.cases import Case, taken_for
from tda.history.nights import History, Unit
from tda.profiler.difference import PhaseChange, ProfileChange, difference, phase_differences
from tda.profiler.records import Profile
from tda.profiler.store import MEMORY, RECORD, TRACE, read_profile
from tda.records import FAKE
from tda.results import write_whole

PROFILES_FOLDER = "profiles"
"""Folder of a history that is a store."""
ACCOUNT = "process.json"

LARGE = (TRACE, MEMORY)
"""Files that are deleted when a profile grows old; the record and its tables stay."""
IGNORED = (
    f"# A history that is a branch keeps the tables alone: traces would stay in it for ever.\n{TRACE}\n{MEMORY}\n.*/\n"
)


# What is read.


@dataclass(frozen=True)
class StoredProfile:
    """A profile in a store.

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
class ProfileComparison:
    """Profiles of one case on two commits and one machine.

    Attributes
    ----------
    before, after : tuple of StoredProfile
        One for each process.
    paired : bool
        Whether the processes ran in turn.
    """

    before: tuple[StoredProfile, ...]
    after: tuple[StoredProfile, ...]
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
    """What some stores hold.

    Attributes
    ----------
    kept : tuple of StoredProfile
        In the order in which their processes began.
    failed : tuple of Unit
        Processes that gave nothing, with the reason.
    problems : tuple of str
        What could not be read.
    """

    kept: tuple[StoredProfile, ...] = ()
    failed: tuple[Unit, ...] = ()
    problems: tuple[str, ...] = ()

    @cached_property
    def by_commit(self) -> dict[str, list[StoredProfile]]:
        """Profiles of each commit."""
        found: dict[str, list[StoredProfile]] = {}
        for kept in self.kept:
            found.setdefault(kept.unit.commit, []).append(kept)
        return found

    def compare(self, old: str, new: str) -> list[ProfileComparison]:
        """Every case that two commits share on one machine; processes that ran in turn alone, where there are any."""
        before, found = self._by_case(old), []
        for place, held in self._by_case(new).items():
            for inputs, after in held.items():
                known = before.get(place, {})
                same = known.get(taken_for(inputs, known))
                found += [_compared(same, after)] if same is not None else []
        return found

    def _by_case(self, commit: str) -> dict[tuple[str, str], dict[str, list[StoredProfile]]]:
        """By machine and case, then by inputs."""
        found: dict[tuple[str, str], dict[str, list[StoredProfile]]] = {}
        for kept in self.by_commit.get(commit, ()):
            place = (kept.profile.machine.fingerprint, kept.case.key)
            found.setdefault(place, {}).setdefault(kept.profile.inputs.data, []).append(kept)
        return found


def _compared(before: Sequence[StoredProfile], after: Sequence[StoredProfile]) -> ProfileComparison:
    shared = {kept.unit.night for kept in before} & {kept.unit.night for kept in after}
    old, new = (tuple(kept for kept in side if not shared or kept.unit.night in shared) for side in (before, after))
    return ProfileComparison(old, new, paired=bool(shared))


# What is kept.


class ProfileStore:
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
                    kept.append(StoredProfile(unit, record.parent, profile))
        return Profiles(tuple(kept), tuple(unit for unit, _ in found if unit.status != "ok"), tuple(problems))

    def place(self, unit: Unit) -> Path:
        """Folder of a process."""
        return self.folder / unit.commit / f"{unit.night}-{unit.block}"

    def part(self, session: str, commit: str, block: int) -> Path:
        """Folder in which a process works before it is kept."""
        return self.folder / commit / f".{session}-{block}"

    def keep(self, unit: Unit) -> None:
        """Put a process that has ended into its place, whole."""
        place = self.place(unit)
        part = place.with_name(f".{place.name}")
        if not (self.folder / ".gitignore").is_file():
            write_whole(self.folder / ".gitignore", IGNORED)
        write_whole(part / ACCOUNT, unit.model_dump_json(indent=1) + "\n")
        shutil.rmtree(place, ignore_errors=True)  # a process that failed
        part.rename(place)

    def prune(self, newest: int) -> list[str]:
        """Delete traces: the commits profiled last keep theirs, and so do both commits of every alarm of the history.

        Parameters
        ----------
        newest : int
            How many commits keep their traces.

        Returns
        -------
        list of str
            The commits whose traces are gone.
        """
        last = {unit.commit: unit.started for unit in self.units()[0]}
        alarms = alarmed(History(self.folder.parent))
        pruned = []
        for commit in sorted(last, key=lambda commit: last[commit])[:-newest]:
            old = [path for name in LARGE for path in (self.folder / commit).glob(f"*/*/{name}")]
            if old and commit not in alarms:
                for path in old:
                    path.unlink()
                pruned.append(commit)
        return pruned


def read_stores(folders: Iterable[Path]) -> Profiles:
    """What several stores hold, together; a folder that is not there holds nothing."""
    read = [ProfileStore(folder).read() for folder in folders]
    kept = sorted((kept for one in read for kept in one.kept), key=lambda kept: kept.unit.started)
    failed = tuple(unit for one in read for unit in one.failed)
    return Profiles(tuple(kept), failed, tuple(problem for one in read for problem in one.problems))


def alarmed(history: History) -> set[str]:
    """Commits at both ends of every alarm that a night raised: they keep their traces."""
    found = (finding for night in history.nights()[0] for finding in night.findings if finding.verdict == "alarm")
    return {commit for finding in found for commit in (finding.good, finding.commit)}
