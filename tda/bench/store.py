"""A results folder being filled: what an earlier run left, and records appended as they come."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tda.cases import Case, Inputs
from tda.records import Commit, LeftOut, Machine, Record, json_schema, merge
from tda.results import LEFT_OUT, append, load, results_path, write_whole

SCHEMA = "results.schema.json"
"""JSON schema of a line of the results, written beside them."""
ATTEMPTS = 2
"""A case that failed this often in a round is left out of later runs."""


@dataclass(frozen=True)
class Place:
    """Where a record belongs: a case, what it is taken on, and the round."""

    case: Case
    inputs: Inputs
    round: int


class Store:
    """Records of one folder, of one commit on one machine.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    machine, commit
        What runs now; records of another one are not mixed with it.
    say : callable
        Told, in a sentence, what an earlier run left.

    Raises
    ------
    ValueError
        If the folder holds results of another commit or machine.
    OSError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path, machine: Machine, commit: Commit, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._records: list[Record] = []
        self._asked: set[tuple[str, str]] = set()
        folder.mkdir(parents=True, exist_ok=True)
        append(folder, [])
        write_whole(folder / SCHEMA, json.dumps(json_schema(), indent=1) + "\n")
        found = load(folder)
        for problem in found.problems:
            say(f"{problem}; what it held is measured again")
        for record in found.records:
            for what, then, now in (
                ("commit", {"hash": record.commit.hash}, {"hash": commit.hash}),
                ("machine", vars(record.machine), vars(machine)),
            ):
                if then != now:
                    raise ValueError(
                        f"{results_path(folder)} holds results of another {what} ({_difference(then, now)}); "
                        "give another --out, or delete it"
                    )
        self._records += found.records
        self._earlier = len(self._records)

    @property
    def _marker(self) -> Path:
        return self.folder / "running.json"

    def keep(self, records: Sequence[Record]) -> None:
        """Append records to the file."""
        append(self.folder, records)
        self._records += records

    def merged(self, *, asked: bool = False) -> list[Record]:
        """What the folder holds, or of it what this run asks for, the rounds of each case joined."""
        return merge(record for record in self._records if not asked or record.series in self._asked)

    def missing(self, place: Place) -> bool:
        """Whether a place still has to be filled: it has no good record, and has not failed too often."""
        series = (place.case.key, place.inputs.key)
        self._asked.add(series)
        there = [record for record in self._records if _is_at(record, place)]
        if len(there) >= ATTEMPTS or self._crashed(series):
            return False
        return not any(record.status == "ok" for record in there)

    def _crashed(self, series: tuple[str, str]) -> bool:
        """Whether a series ended a process in which nothing else ran."""
        return any(record.series == series and record.status == "crash" for record in self._records)

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

    def hopeless(self, series: tuple[str, str]) -> bool:
        """Whether a series has failed in rounds enough, of this run or of all, and succeeded in none, or crashed."""
        if self._crashed(series):
            return True

        def failed(records: Sequence[Record]) -> int:
            return sum(1 for record in records if record.round and record.series == series and record.status != "ok")

        if any(record.round and record.series == series and record.status == "ok" for record in self._records):
            return False
        return failed(self._records[self._earlier :]) >= ATTEMPTS or failed(self._records) >= 2 * ATTEMPTS

    def found(self, place: Place) -> Record | None:
        """The last good record of a place."""
        good = (record for record in reversed(self._records) if record.status == "ok")
        return next((record for record in good if _is_at(record, place)), None)

    def note_left_out(self, items: Sequence[LeftOut]) -> None:
        """Write beside the results what there was no time for."""
        write_whole(self.folder / LEFT_OUT, "".join(item.model_dump_json() + "\n" for item in items))

    @contextlib.contextmanager
    def running(self, place: Place) -> Iterator[None]:
        """Leave a marker while a case runs, so that the next run knows if the process died in it."""
        parts = {"case": place.case.model_dump(mode="json"), "inputs": place.inputs.model_dump(mode="json")}
        write_whole(self._marker, json.dumps({**parts, "round": place.round}))
        try:
            yield
        finally:
            self._marker.unlink(missing_ok=True)

    def left_running(self) -> Place | None:
        """The case in which an earlier process died, told once."""
        if not self._marker.is_file():
            return None
        text = self._marker.read_bytes()
        self._marker.unlink()
        try:
            left = json.loads(text)
            return Place(Case.model_validate(left["case"]), Inputs.model_validate(left["inputs"]), left["round"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def _is_at(record: Record, place: Place) -> bool:
    """Whether a record fills a place; what its text is called does not matter."""
    if (record.case, record.round) != (place.case, place.round) or record.case.key != place.case.key:
        return False  # an option of true equals one of 1, and is not the same
    return record.inputs.key == place.inputs.key


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {then[name]!r} there, {now[name]!r} here" for name in then if then[name] != now[name])
