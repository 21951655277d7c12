"""Rows of the processes of nights."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tda.history.nights import NIGHTS, History, Night, Unit
from tda.history.rows import HistoryReader, HistoryRow, failure_columns, machine_columns, moment_of
from tda.history.sources.records import rows_of
from tda.records import Record


def read_nights(reading: HistoryReader, history: History) -> dict[str, Night]:
    """Read the records of all nights by name; dates and subjects of their commits are learnt."""
    nights, problems = history.nights()
    reading.problems += problems
    for commit in (commit for night in nights for commit in night.commits):
        reading.learn(commit.hash, moment_of(commit.date), commit.subject)
    return {night.id: night for night in nights}


def unit_rows(reading: HistoryReader, folder: Path, nights: Mapping[str, Night]) -> Iterator[HistoryRow]:
    """Rows of the processes of all nights of a folder; one that failed has a row without a case."""
    for path in sorted((folder / NIGHTS).glob("*.jsonl")):
        try:
            units, problems = History(folder).units(path.stem)
        except OSError as error:
            reading.skip(path, error)
            continue
        if not units and not problems:
            reading.skip(path, "it is empty")
        reading.problems += problems
        for unit in units:
            place: HistoryRow = {"source": "nightly", "night": unit.night}
            place |= {name: getattr(unit, name) for name in ("block", "role", "stage", "grid")}
            yield from rows_of(
                reading, reading.without_fakes(path, _own_records(reading, path, unit)), place, unit.commit
            )
            if unit.status != "ok":
                yield _failed_unit(reading, unit, place, nights.get(unit.night))


def _own_records(reading: HistoryReader, path: Path, unit: Unit) -> list[Record]:
    own = [record for record in unit.records if record.commit.hash in (unit.commit, None)]
    foreign = len(unit.records) - len(own)
    if foreign:
        reading.problems.append(f"{path}: {foreign} records of another commit skipped in a process of {unit.commit}")
    return own


def _failed_unit(reading: HistoryReader, unit: Unit, place: HistoryRow, night: Night | None) -> HistoryRow:
    machine = machine_columns(night.machine) if night is not None and night.machine is not None else {}
    commit = reading.commit(unit.commit, None, unit.started)
    return place | machine | commit | {"case": None, "control": False} | failure_columns(unit.status, unit.reason)
