"""A folder of results of one commit, the lines of each machine apart."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tda.changes.series import Key, round_values
from tda.history.repository import short
from tda.records import FAKE, Machine, Record, merge
from tda.results import load, results_path

Identity = tuple[str, str]
"""Key of a case, and of what it was measured on."""


@dataclass(frozen=True)
class CommitResults:
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
    def read(cls, path: Path) -> "CommitResults":
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
    def read_machines(cls, path: Path) -> list["CommitResults"]:
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
