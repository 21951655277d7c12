"""What a run knows of its cells, and the results folder that it fills: records appended as they come."""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tda.cases import Case, Inputs
from tda.records import NOT_ITS_FAULT, Commit, FailureKind, LeftOut, Machine, Record, TaskFacts, json_schema, merge
from tda.results import LEFT_OUT, append, load, results_path, write_whole

logger = logging.getLogger(__name__)

SCHEMA = "results.schema.json"
"""JSON schema of a line of the results, written beside them."""
ATTEMPTS = 2
"""A case that failed this often in a round is left out of later runs."""
INNOCENT_ATTEMPTS = 5
"""The same where what ended it says nothing of the case: a kill from outside, or a machine that was lost."""


@dataclass(frozen=True)
class RecordPlace:
    """Where a record belongs: a case, what it is taken on, and the round."""

    case: Case
    inputs: Inputs
    round: int


class Sink(Protocol):
    """Where a run puts its records, and tells which case is running."""

    def keep(self, records: Sequence[Record]) -> None:
        """Take records that belong together."""

    def running(self, place: RecordPlace | None) -> None:
        """Take note of what runs now; None where that has ended."""


class Folder:
    """A results folder on disk.

    Parameters
    ----------
    path : Path
        Made if it is missing.

    Attributes
    ----------
    path : Path
        The folder.
    records : list of Record
        What it holds, in the order of the file.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        append(path, [])
        write_whole(path / SCHEMA, json.dumps(json_schema(), indent=1) + "\n")
        found = load(path)
        for problem in found.problems:
            logger.warning(f"{problem}; what it held is measured again")
        self.records = list(found.records)

    def check_commit(self, commit: Commit) -> None:
        """Raise ValueError if the folder holds results of another commit."""
        for record in self.records:
            self._refuse("commit", {"hash": record.commit.hash}, {"hash": commit.hash})

    def check_machine(self, machine: Machine) -> None:
        """Raise ValueError if the folder holds results of another machine."""
        for record in self.records:
            self._refuse("machine", vars(record.machine), vars(machine))

    def _refuse(self, what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if then != now:
            raise ValueError(
                f"{results_path(self.path)} holds results of another {what} ({_difference(then, now)}); "
                "give another --out, or delete it"
            )

    def keep(self, records: Sequence[Record]) -> None:
        """Append records to the file."""
        append(self.path, records)
        self.records += records

    def note_left_out(self, items: Sequence[LeftOut]) -> None:
        """Write beside the results what there was no time for."""
        write_whole(self.path / LEFT_OUT, "".join(item.model_dump_json() + "\n" for item in items))

    @property
    def _marker(self) -> Path:
        return self.path / "running.json"

    def running(self, place: RecordPlace | None) -> None:
        """Leave a marker while a case runs, so that the next run knows if the process died in it."""
        if place is None:
            self._marker.unlink(missing_ok=True)
            return
        parts = {"case": place.case.model_dump(mode="json"), "inputs": place.inputs.model_dump(mode="json")}
        write_whole(self._marker, json.dumps({**parts, "round": place.round}))

    def left_running(self) -> RecordPlace | None:
        """The case in which an earlier process died, told once."""
        if not self._marker.is_file():
            return None
        text = self._marker.read_bytes()
        self._marker.unlink()
        try:
            left = json.loads(text)
            return RecordPlace(Case.model_validate(left["case"]), Inputs.model_validate(left["inputs"]), left["round"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


class Store:
    """Records of one commit on one machine, and which of a run's places are still to be filled.

    Parameters
    ----------
    folder : Path
        The results folder: thresholds, answers and items of tasks lie there too.
    records : sequence of Record
        What earlier runs left.
    sink : Sink
        Where new ones go.
    requested : iterable of series
        Series that the run asked for before, of other models.
    """

    def __init__(
        self, folder: Path, records: Sequence[Record], sink: Sink, requested: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.folder = folder
        self._records = list(records)
        self._earlier = len(self._records)
        self._sink = sink
        self.requested: set[tuple[str, str]] = set(requested)

    def keep(self, records: Sequence[Record]) -> None:
        """Hand records on, and know them from now on."""
        self._sink.keep(records)
        self._records += records

    def merged(self, *, requested: bool = False) -> list[Record]:
        """What is known, or of it what this run asks for, the rounds of each case joined."""
        return merge(record for record in self._records if not requested or record.series in self.requested)

    def missing(self, place: RecordPlace) -> bool:
        """Whether a place still has to be filled: it has no good record, and has not failed too often."""
        self.requested.add((place.case.key, place.inputs.key))
        return self.found(place) is None and not self.given_up(place)

    def _ends_processes(self, series: tuple[str, str]) -> bool:
        """Whether a series ended the processes that it ran in, in any round, as often as is let pass."""
        own = [one for one in self._records if one.series == series and one.status in ("crash", "timeout")]
        return sum(map(_is_its_fault, own)) >= ATTEMPTS

    def given_up(self, place: RecordPlace) -> bool:
        """Whether a place has failed too often, or its series has ended too many processes."""
        failed = [record for record in self._records if _fills(record, place) and record.status != "ok"]
        return _too_often(failed) or self._ends_processes((place.case.key, place.inputs.key))

    def reused(self, cells: Iterable[tuple[Case, Inputs]]) -> str | None:
        """How many results of an earlier run stand for cells of this one, and why others do not; None without any."""
        now = {case.key: inputs for case, inputs in cells}
        earlier = [one for one in self._records[: self._earlier] if one.status == "ok" and one.case.key in now]
        others = [one for one in earlier if one.inputs.key != now[one.case.key].key]
        if not earlier:
            return None
        why = dict.fromkeys(word for one in others for word in one.inputs.unlike(now[one.case.key]))
        told = f"{len(earlier) - len(others)} results of an earlier run are reused"
        return told + (f"; {len(others)} are not, and stay beside those of now: {', '.join(why)}" if others else "")

    def tasks(self, place: RecordPlace) -> dict[str, TaskFacts]:
        """Facts of the tasks that a place has scores of, or a failure; the last of each."""
        good = (record for record in self._records if record.status == "ok" and _is_at(record, place))
        return {name: facts for record in good for name, facts in record.tasks.items()}

    def hopeless(self, series: tuple[str, str]) -> bool:
        """Whether a series has failed in rounds enough, of this run or of all, without a success; or ends processes."""
        if self._ends_processes(series):
            return True

        def failed(records: Sequence[Record]) -> int:
            own = (record for record in records if record.round and record.series == series and record.status != "ok")
            return sum(map(_is_its_fault, own))

        if any(record.round and record.series == series and record.status == "ok" for record in self._records):
            return False
        return failed(self._records[self._earlier :]) >= ATTEMPTS or failed(self._records) >= 2 * ATTEMPTS

    def found(self, place: RecordPlace) -> Record | None:
        """The last good record of a place."""
        good = (record for record in reversed(self._records) if record.status == "ok")
        return next((record for record in good if _fills(record, place)), None)

    @contextlib.contextmanager
    def running(self, place: RecordPlace) -> Iterator[None]:
        """Let it be known which case runs inside: whoever looks after the process is told, or the next run is."""
        self._sink.running(place)
        try:
            yield
        finally:
            self._sink.running(None)


def _is_its_fault(failure: Record) -> bool:
    """Whether a failure says something of the case."""
    return failure.failure is None or failure.failure.kind not in NOT_ITS_FAULT


def _too_often(failures: Sequence[Record]) -> bool:
    """Whether a place is given up after these failures."""
    return too_often([None if record.failure is None else record.failure.kind for record in failures])


def too_often(kinds: Sequence[FailureKind | None]) -> bool:
    """Whether something is given up that failed in these ways; of None no more is known than that it failed."""
    innocent = sum(kind in NOT_ITS_FAULT for kind in kinds)
    return len(kinds) - innocent >= ATTEMPTS or innocent >= INNOCENT_ATTEMPTS


def _is_at(record: Record, place: RecordPlace) -> bool:
    """Whether a record belongs to a place; what its text is called does not matter."""
    if (record.case, record.round) != (place.case, place.round) or record.case.key != place.case.key:
        return False  # an option of true equals one of 1, and is not the same
    return record.inputs.key == place.inputs.key


def _fills(record: Record, place: RecordPlace) -> bool:
    """Whether a record is what a place waits for; a line of tasks stands beside that."""
    return _is_at(record, place) and not record.tasks


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {then[name]!r} there, {now[name]!r} here" for name in then if then[name] != now[name])
