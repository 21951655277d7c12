"""Rows of folders of records."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tda.derived import DERIVED, Missing, derive
from tda.history.rows import (
    HistoryReader,
    HistoryRow,
    bounds,
    case_columns,
    failure_columns,
    machine_columns,
    metric_columns,
)
from tda.records import Record, merge, turn
from tda.results import load, results_path
from tda.statistics import is_baseline


def record_rows(reading: HistoryReader, paths: Iterable[Path]) -> Iterator[HistoryRow]:
    """Rows of results folders or files; the rounds of a case are joined."""
    held: dict[tuple[object, ...], dict[tuple[object, ...], tuple[Path, Record]]] = defaultdict(dict)
    repeated = 0
    for path in paths:
        for record in _read_records(reading, path):
            rounds = held[record.machine.fingerprint, record.commit.hash, record.commit.dirty, record.inputs.change]
            place = (*record.series, *turn(record))
            origin, before = rounds.get(place, (path, None))
            if before is not None and path != origin and before != record and before.status == record.status == "ok":
                repeated += 1
            if before is None or before.status != "ok" or record.status == "ok":
                rounds[place] = path, record
    if repeated:
        told = f"{repeated} records repeat a case and round of the same machine and commit; of each the last counts"
        reading.problems.append(told)
    for records in (merge(record for _, record in rounds.values()) for rounds in held.values()):
        yield from rows_of(reading, records, {"source": "bench"}, records[0].commit.hash)


def _read_records(reading: HistoryReader, path: Path) -> list[Record]:
    file = results_path(path)
    try:
        loaded = load(path)
    except OSError as error:
        reading.skip(file, error)
        return []
    if not loaded.records and not loaded.problems:
        reading.skip(file, "it is empty")
    reading.problems += loaded.problems
    return reading.without_fakes(file, loaded.records)


def rows_of(
    reading: HistoryReader, records: Sequence[Record], place: HistoryRow, commit: str | None
) -> Iterator[HistoryRow]:
    """One row per measurement of each record, and per number that follows from it; one alone where it failed."""
    dense = {one.setting: one for one in records if one.status == "ok" and is_baseline(one)}
    for record in records:
        shared = place | machine_columns(record.machine) | reading.commit(commit, record.commit.dirty, record.started)
        shared |= case_columns(record.case, record.execution or record.case.execution, record.inputs)
        shared |= {"control": record.case.control == "a_a", "change": record.inputs.change}
        if record.status != "ok":
            yield shared | failure_columns(record.outcome, record.reason)
            continue
        for name, measurement in record.measurements.items():
            yield shared | metric_columns(name, measurement)
        baseline = dense.get(record.setting)
        if record.samples("decode_ms") and baseline is not None:
            yield from (shared | row for row in _derived_rows(record, baseline))


def _derived_rows(record: Record, dense: Record) -> Iterator[HistoryRow]:
    for name, kind in DERIVED.items():
        found = derive(name, record, dense)
        if not isinstance(found, Missing):
            told = {"metric": name, "unit": kind.unit, "better": kind.better, "samples": (), "groups": ()}
            yield told | bounds(found)
