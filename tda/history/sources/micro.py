"""Rows of files of pytest-benchmark."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from tda.cases import Case
from tda.history.rows import HistoryReader, HistoryRow, case_columns, machine_columns, metric_columns
from tda.records import FAKE, Machine, Measurement


class _Facts(BaseModel):
    metric: str
    case: Case | None = None
    execution: str | None = None


BATCHES = 10
"""Groups of consecutive rounds of a micro-benchmark."""


class _Stats(BaseModel):
    data: tuple[FiniteFloat, ...] = Field(min_length=1, description="seconds, one per round")


class _Benchmark(BaseModel):
    name: str
    extra_info: _Facts
    stats: _Stats


class _MachineInfo(BaseModel):
    tda: Machine


class _CommitInfo(BaseModel):
    id: str | None
    dirty: bool | None
    time: str | None = None


class _MicroFile(BaseModel):
    """What ``benchmarks/micro`` leaves in a file of pytest-benchmark, as far as it is read."""

    machine_info: _MachineInfo
    commit_info: _CommitInfo
    datetime: str
    benchmarks: tuple[_Benchmark, ...]


def micro_rows(reading: HistoryReader, paths: Iterable[Path]) -> Iterator[HistoryRow]:
    """Rows of files; of one benchmark, machine and commit the newest counts."""
    rows: dict[tuple[object, ...], HistoryRow] = {}
    for file in sorted(_micro_files(reading, paths), key=lambda file: file.datetime):
        machine, commit = file.machine_info.tda, file.commit_info
        shared: HistoryRow = {"source": "micro", "control": False} | machine_columns(machine)
        shared |= reading.commit(commit.id, commit.dirty, commit.time or file.datetime)
        for benchmark in file.benchmarks:
            place = (machine.fingerprint, commit.id, commit.dirty, benchmark.name)
            rows[place] = shared | _timed(benchmark)
    yield from rows.values()


def _micro_files(reading: HistoryReader, paths: Iterable[Path]) -> Iterator[_MicroFile]:
    for path in paths:
        try:
            file = _MicroFile.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reading.skip(path, error)
            continue
        if FAKE in (file.machine_info.tda.gpu or ""):
            reading.skip(path, "its GPU is a simulated device")
            continue
        yield file


def _timed(benchmark: _Benchmark) -> HistoryRow:
    facts = benchmark.extra_info
    case = {"case": benchmark.name.removeprefix("test_")}
    if facts.case is not None:
        case = case_columns(facts.case, facts.execution)
    samples = tuple(1000 * seconds for seconds in benchmark.stats.data)
    batches = min(BATCHES, len(samples))
    groups = tuple(index * batches // len(samples) for index in range(len(samples)))
    return case | metric_columns(facts.metric, Measurement(unit="ms", better="lower", samples=samples, groups=groups))
