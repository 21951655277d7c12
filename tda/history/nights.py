"""What a night leaves behind: units, one for each process that measured a build, and the night's own record.

A `Unit` is a line of ``HISTORY/nights/NIGHT.jsonl``, appended when its process has ended; a `Night` is the file
``NIGHT.json`` beside it, written whole. A night that was killed goes on with what its units say is done.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, ValidationError

from tda.cases import Case, Frozen
from tda.history.findings import Finding, Split, former_label
from tda.process import ProcessStatus
from tda.records import Machine, Record
from tda.results import append_lines, read_lines, write_whole

Role = Literal["commit", "control"]
Stage = Literal["first", "confirm"]
CommitStatus = Literal["measured", "build failed", "crashed", "skipped"]
NIGHTS = "nights"


class Unit(Frozen):
    """One process: one grid, measured with one installed build.

    `role` "control" is the second install of the baseline commit: what it differs from the first by is noise.
    `order` is the place within the block. `records` are merged over the process's rounds, raw samples included.
    """

    night: str
    commit: str
    role: Role = "commit"
    grid: str
    stage: Stage = "first"
    block: int = Field(ge=1)
    order: int = Field(ge=0)
    status: ProcessStatus
    reason: str | None = None
    records: tuple[Record, ...] = ()
    started: str
    seconds: float

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        """What makes a unit the one of its kind: a finished place is never measured again."""
        return self.commit, self.role, self.grid, self.stage, self.block


class NightCommit(Frozen):
    """A commit of a night, in history order, and what became of it."""

    hash: str
    parent: str | None = Field(default=None, description="the measured commit that it is compared with")
    date: str
    subject: str
    status: CommitStatus
    reason: str | None = None


class Seen(Frozen):
    """What a night could see of one series: a change as large as `floor`, relative; null where it cannot tell."""

    case: Case
    grid: str
    split: Split
    relative: bool
    floor: float | None


class Night(Frozen):
    """The record of one night."""

    id: str
    started: str
    finished: str | None = None
    machine: Machine | None = Field(default=None, description="as the first good unit tells; null before one ended")
    baseline_commit: str = Field(
        validation_alias=AliasChoices("baseline_commit", "anchor"), serialization_alias="anchor"
    )
    commits: tuple[NightCommit, ...] = ()
    findings: tuple[Finding, ...] = ()
    seen: tuple[Seen, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="what a reader must know of this night")

    @property
    def measured(self) -> list[str]:
        """Hashes of the commits that it measures, oldest first."""
        return [commit.hash for commit in self.commits if commit.status == "measured"]


class History:
    """A folder of nights.

    Parameters
    ----------
    folder : Path
        Made when something is first written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def nights(self) -> tuple[list[Night], list[str]]:
        """The records, oldest first, and a sentence for each file or finding that could not be read."""
        found: list[Night] = []
        problems: list[str] = []
        for path in sorted((self.folder / NIGHTS).glob("*.json")):
            try:
                told = json.loads(path.read_bytes())
                if isinstance(told, dict):
                    told["findings"] = list(self._with_cases(path, told.get("findings", ()), problems))
                found.append(Night.model_validate(told))
            except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
                problems.append(f"{path} skipped: {str(error).splitlines()[0]}")
        return sorted(found, key=lambda night: night.id), problems

    def _with_cases(self, path: Path, findings: Iterable[Any], problems: list[str]) -> Iterator[Any]:
        """Findings of a night; labels, which they held before, stand for the cases that its units have."""
        for finding in findings:
            labels = {case for case in finding["cases"] if isinstance(case, str)}
            known = self._labelled(path.stem, labels)
            lost = ", ".join(sorted(map(repr, labels - known.keys())))
            if lost:
                told = f"a finding is skipped, because no process of the nightly run has {lost}: {finding['sentence']}"
                problems.append(f"{path}: {told}")
            else:
                yield finding | {"cases": [known[c] if isinstance(c, str) else c for c in finding["cases"]]}

    def _labelled(self, night: str, labels: set[str]) -> dict[str, Case]:
        """Cases of a night's units by their former labels, until all of some labels are known."""
        known: dict[str, Case] = {}
        path = self._units_path(night)
        for line in path.read_bytes().splitlines() if labels and path.is_file() else ():
            if labels <= known.keys():
                break
            with contextlib.suppress(ValidationError):
                cases = [record.case for record in Unit.model_validate_json(line).records]
                known |= {former_label(case): case for case in cases if case.control != "a_a"}
        return known

    def units(self, night: str) -> tuple[list[Unit], list[str]]:
        """Finished units of a night in the order in which they ended; the last of each place counts."""
        path = self._units_path(night)
        if not path.is_file():
            return [], []
        units, problems = read_lines(path, Unit)
        return list({unit.place: unit for unit in units}.values()), problems

    def keep(self, unit: Unit) -> None:
        """Append a unit and fsync."""
        path = self._units_path(unit.night)
        path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(path, [unit.model_dump_json()])

    def write(self, night: Night) -> None:
        """Write a night's record, whole."""
        write_whole(self.folder / NIGHTS / f"{night.id}.json", night.model_dump_json(indent=1, by_alias=True) + "\n")

    def thin(self, keep: int) -> None:
        """Delete the raw units of all nights but the newest `keep`; their records and findings stay."""
        for night in self.nights()[0][:-keep]:
            self._units_path(night.id).unlink(missing_ok=True)

    def _units_path(self, night: str) -> Path:
        return self.folder / NIGHTS / f"{night}.jsonl"
