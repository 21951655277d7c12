"""One tidy table of everything that was measured: nights, folders of records, asv results, pytest-benchmark files.

A row is one metric of one case, as one source measured it on one machine with one commit. Raw samples stay in the row.
What cannot be read is named and left out.
"""

import ast
import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from tda.cases import UNTOLD, Case, Frozen, Inputs, describe, first_problem, taken_for
from tda.derived import DERIVED, Missing, derive
from tda.names import needs_extra
from tda.records import FAKE, Machine, Measurement, Record, merge, turn
from tda.regression.repository import Repository
from tda.regression.units import NIGHTS, History, Night, Unit
from tda.results import RESULTS, load, results_path
from tda.statistics import Estimate, bootstrap, by_group, is_baseline, perplexity, typical

COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("source", "machine", "machine_label", "commit"), "object"),
    "date": "datetime64[us, UTC]",
    **dict.fromkeys(("subject", "dirty", "change", "night"), "object"),
    "block": "Int64",
    **dict.fromkeys(("role", "stage", "grid", "model", "method"), "object"),
    "sparsity": "float64",
    **dict.fromkeys(("case", "name", "case_key", "series", "setting", "dtype", "device", "execution"), "object"),
    **dict.fromkeys(("batch", "prompt_tokens", "new_tokens"), "Int64"),
    "control": "bool",
    **dict.fromkeys(("metric", "unit", "better", "samples", "groups"), "object"),
    **dict.fromkeys(("value", "low", "high"), "float64"),
    "missing": "object",
}
"""Columns and their types. What is unknown is None in an object column, <NA> in a whole number, NaN in a float."""
ASV, BENCH, MICRO = "asv", "bench", "micro"
"""Folders of a history beside its nights."""

Row = dict[str, Any]
"""One row. `case` stays a `Case`, and `series` its `Inputs`, until all rows are known: words must tell them apart."""


@dataclass(frozen=True)
class Table:
    """What a history holds.

    Attributes
    ----------
    frame : pandas.DataFrame
        One row per source, machine, commit, night, block, case and metric, with the columns `COLUMNS`:

        - `source` is "nightly", "bench", "asv" or "micro"; `machine` a fingerprint, equal for numbers that may be
          compared; `machine_label` says it in words.
        - `commit` is the full hash, `date` its moment in UTC (the moment of measuring where nothing tells the
          commit's), `dirty` whether there was uncommitted change, and `change` the digest of it, where it is told.
        - `case` is what people call it, such as "griffin 0.5 on shape:25m", and `name` the same without the model;
          `series` is equal for what is compared across commits: equal grid, `case_key` (`tda.cases.Case.key`) and
          inputs. `setting` tells grid, seed or text where one model and size was measured with several; `execution` is
          what really ran.
        - `samples` are all raw samples, `groups` the round or document of each. `value` is the geometric mean of the
          groups' medians for what is timed or sized, their mean for quality, NaN for a hash; `low` and `high` bound its
          95% interval over groups, NaN where there are too few. What is derived from a case and dense
          (`tda.derived.DERIVED`) has no samples, and no row where it does not follow.
        - `missing` is the reason where there are no samples. A case or a process that failed has one such row, without
          a metric.
    problems : tuple of str
        One sentence for everything that was left out, and why.
    """

    frame: pd.DataFrame
    problems: tuple[str, ...] = ()


def load_history(folder: Path, repo: Path | None = None) -> Table:
    """Read all that a history holds: ``nights/``, ``asv/``, ``micro/*.json`` and every results file below ``bench/``.

    Parameters
    ----------
    folder : Path
        The history; parts that are not there are empty.
    repo : Path, optional
        A git checkout that tells dates and subjects of commits, where no night does.

    Raises
    ------
    ValueError
        If `repo` is no git checkout.
    """
    reading = _Reading.of(repo)
    if not folder.is_dir():
        reading.problems.append(f"no history at {folder}")
    asv = _read_asv(reading, folder / ASV)
    nights = _read_nights(reading, History(folder))
    rows = itertools.chain(
        _unit_rows(reading, folder, nights),
        _record_rows(reading, sorted((folder / BENCH).rglob(RESULTS))),
        _asv_rows(reading, asv),
        _micro_rows(reading, sorted((folder / MICRO).glob("*.json"))),
    )
    return reading.table(rows)


def from_units(history: History, repo: Path | None = None) -> Table:
    """Read the processes of all nights; `repo` and errors as for `load_history`.

    A process that failed has one row, without a case. Records of another commit than its process was built from are
    left out and named.
    """
    reading = _Reading.of(repo)
    nights = _read_nights(reading, history)
    return reading.table(_unit_rows(reading, history.folder, nights))


def from_records(paths: Iterable[Path], repo: Path | None = None) -> Table:
    """Read results folders or files; `repo` and errors as for `load_history`.

    The rounds of a case are joined per machine, commit and state of its tree. A line that stands in two files counts
    once; where two lines tell differently of one round, the last counts, and a sentence says so.
    """
    reading = _Reading.of(repo)
    return reading.table(_record_rows(reading, paths))


def from_asv(folder: Path, repo: Path | None = None) -> Table:
    """Read a folder of asv results, which needs asv (the extra "nightly"); `repo` and errors as for `load_history`.

    asv knows no fingerprint of ours: `machine` is one made of all facts that a results file keeps of its machine and
    environment, with "asv:" before it, and `machine_label` is asv's name of the machine. It records no GPU, driver or
    torch, so they belong into that name. A benchmark is called ``GRID.CLASS.track_METRIC``; its case comes from the
    parameters ``model``, ``method`` and ``sparsity``, and sizes are unknown. What asv skipped has no row. Results of
    another version of their benchmark are left out and named.
    """
    reading = _Reading.of(repo)
    return reading.table(_asv_rows(reading, _read_asv(reading, folder)))


def from_micro(paths: Iterable[Path], repo: Path | None = None) -> Table:
    """Read files of ``--benchmark-json``: one row per benchmark, its time; `repo` and errors as for `load_history`.

    Every round of a benchmark is a sample. A benchmark's rounds are short, many and follow each other at once, so ten
    batches of them are the groups: one slow round moves no median, and neighbours are not taken for independent. All of
    them ran in one process: the interval says nothing of what differs between processes. Where two files hold one
    benchmark of a machine and commit, the later one counts.
    """
    reading = _Reading.of(repo)
    return reading.table(_micro_rows(reading, paths))


class _CommitFacts(NamedTuple):
    date: datetime | None
    subject: str | None


@dataclass
class _Reading:
    """What is known of commits while sources are read, and what went wrong."""

    commits: dict[str, _CommitFacts] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, repo: Path | None) -> "_Reading":
        reading = cls()
        if repo is not None:
            for told in Repository(repo).all_facts():
                reading.learn(told.hash, _moment(told.date), told.subject)
        return reading

    def learn(self, commit: str, date: datetime | None, subject: str | None) -> None:
        if date is not None:
            self.commits[commit] = _CommitFacts(date, subject)

    def skip(self, path: Path, error: Exception | str) -> None:
        self.problems.append(f"{path} skipped: {error if isinstance(error, str) else _first_line(error)}")

    def commit(self, commit: str | None, dirty: bool | None, otherwise: str | None) -> Row:
        """Columns of a commit; `otherwise` is the moment that stands for an unknown date."""
        facts = self.commits.get(commit or "") or _CommitFacts(_moment(otherwise), None)
        return {"commit": commit, "dirty": dirty, "date": facts.date, "subject": facts.subject}

    def without_fakes(self, path: Path, records: Sequence[Record]) -> list[Record]:
        """Records whose GPU, if any, is a real one."""
        good = [record for record in records if FAKE not in (record.machine.gpu or "")]
        if len(good) < len(records):
            self.problems.append(f"{path}: {len(records) - len(good)} records refused, whose GPU is a stand-in")
        return good

    def table(self, rows: Iterable[Row]) -> Table:
        held = [dict.fromkeys(COLUMNS) | row for row in rows]
        _label(held)
        frame = pd.DataFrame(held, columns=list(COLUMNS), dtype="object")
        return Table(frame.astype(dict(COLUMNS)), tuple(self.problems))


def _moment(text: str | None) -> datetime | None:
    """A moment in UTC; None where the text is no ISO date."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_problem(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().split("\n")[0] or type(error).__name__


# Parts of a row that several sources share.

_SIZES = ("dtype", "device", "batch", "prompt_tokens", "new_tokens")


def _machine(machine: Machine) -> Row:
    words = f"{machine.gpu or machine.cpu}, {machine.cores_told}, torch {machine.torch}"
    return {"machine": machine.fingerprint, "machine_label": words}


def _case(case: Case, execution: str | None, inputs: Inputs = Inputs()) -> Row:  # noqa: B008
    """Columns of a case; `execution` is what really ran, where that is known."""
    named = {name: getattr(case, name) for name in ("model", "method", "sparsity", *_SIZES)}
    return named | {"case": case, "series": inputs, "execution": execution}


def _label(rows: Iterable[Row]) -> None:
    """Put words in the place of cases and inputs, told from others of one request; what is no case is its own name."""
    measured = []
    for row in rows:
        if isinstance(row["case"], Case):
            measured.append(row)
        else:
            row |= dict.fromkeys(("name", "case_key", "series"), row["case"])
    keys: dict[_Request, dict[Case, str]] = defaultdict(dict)
    inputs: dict[tuple[_Request, str, Case], dict[str, Inputs]] = defaultdict(dict)
    for row in measured:
        keys[_request(row)].setdefault(row["case"], row["case"].key)
        inputs[_request(row), row["grid"], row["case"]][row["series"].data] = row["series"]
    names = {
        (request, case): [describe(case, cases, model=model) for model in (True, False)]
        for request, cases in keys.items()
        for case in cases
    }
    settings: dict[_Request, tuple[set[str], ...]] = defaultdict(lambda: (set(), set(), set()))
    for row in measured:
        request, case = _request(row), row["case"]
        known, key = inputs[request, row["grid"], case], keys[request][case]
        own = known[taken_for(row["series"].data, known)]
        several = len({one.calibration for one in known.values()} - {None}) > 1
        told = own.calibrated if several else ""
        row |= dict(zip(("case", "name"), (name + told for name in names[request, case]), strict=True))
        row |= {"case_key": key, "series": f"{row['grid'] or ''}/{key}/{own.data}"}
        row["setting"] = (f"grid {row['grid']}", f"seed {case.seed}", str(own))
        for seen, word in zip(settings[request], row["setting"], strict=True):
            seen.add(word)
    for row in measured:
        words = zip(row["setting"], settings[_request(row)], strict=True)
        row["setting"] = ", ".join(word for word, seen in words if len(seen - {UNTOLD}) > 1)


_Request = tuple[Any, ...]


def _request(row: Row) -> _Request:
    """What was asked of a model, as the pages call it before settings are told apart."""
    return tuple(row[name] for name in ("source", "model", *_SIZES))


def _nothing(outcome: str, reason: str | None) -> Row:
    """Columns of what gave no numbers."""
    return {"samples": (), "groups": (), "missing": f"{outcome}: {reason or 'no reason given'}"}


def _metric(name: str, measurement: Measurement) -> Row:
    """Columns of a metric."""
    samples = measurement.samples
    return {
        "metric": name,
        "unit": measurement.unit,
        "better": measurement.better,
        "samples": samples,
        "groups": measurement.groups or tuple(range(len(samples))),
        "missing": measurement.missing,
    } | _bounds(_estimate(name, measurement))


def _bounds(estimate: Estimate | None) -> Row:
    """Value and the bounds of its interval; None for what has none."""
    return {part: getattr(estimate, part, None) for part in ("value", "low", "high")}


def _estimate(name: str, measurement: Measurement) -> Estimate | None:
    values = list(by_group(measurement).values())
    if not values or measurement.unit == "hash" or not np.isfinite(values).all():
        return None
    if name == "perplexity":
        return perplexity(values)
    return bootstrap(values) if measurement.unit in ("nats/token", "share") else typical(values)


# Nights.


def _read_nights(reading: _Reading, history: History) -> dict[str, Night]:
    nights, problems = history.nights()
    reading.problems += problems
    for commit in (commit for night in nights for commit in night.commits):
        reading.learn(commit.hash, _moment(commit.date), commit.subject)
    return {night.id: night for night in nights}


def _unit_rows(reading: _Reading, folder: Path, nights: Mapping[str, Night]) -> Iterator[Row]:
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
            place: Row = {"source": "nightly", "night": unit.night}
            place |= {name: getattr(unit, name) for name in ("block", "role", "stage", "grid")}
            yield from _rows_of(
                reading, reading.without_fakes(path, _own_records(reading, path, unit)), place, unit.commit
            )
            if unit.status != "ok":
                yield _failed_unit(reading, unit, place, nights.get(unit.night))


def _own_records(reading: _Reading, path: Path, unit: Unit) -> list[Record]:
    own = [record for record in unit.records if record.commit.hash in (unit.commit, None)]
    foreign = len(unit.records) - len(own)
    if foreign:
        reading.problems.append(f"{path}: {foreign} records of another commit left out of a process of {unit.commit}")
    return own


def _failed_unit(reading: _Reading, unit: Unit, place: Row, night: Night | None) -> Row:
    machine = _machine(night.machine) if night is not None and night.machine is not None else {}
    commit = reading.commit(unit.commit, None, unit.started)
    return place | machine | commit | {"case": None, "control": False} | _nothing(unit.status, unit.reason)


# Records.


def _record_rows(reading: _Reading, paths: Iterable[Path]) -> Iterator[Row]:
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
        yield from _rows_of(reading, records, {"source": "bench"}, records[0].commit.hash)


def _read_records(reading: _Reading, path: Path) -> list[Record]:
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


def _rows_of(reading: _Reading, records: Sequence[Record], place: Row, commit: str | None) -> Iterator[Row]:
    """One row per measurement of each record, and per number that follows from it; one alone where it failed."""
    dense = {one.setting: one for one in records if one.status == "ok" and is_baseline(one)}
    for record in records:
        shared = place | _machine(record.machine) | reading.commit(commit, record.commit.dirty, record.started)
        shared |= _case(record.case, record.execution or record.case.execution, record.inputs)
        shared |= {"control": record.case.control == "a_a", "change": record.inputs.change}
        if record.status != "ok":
            yield shared | _nothing(record.outcome, record.reason)
            continue
        for name, measurement in record.measurements.items():
            yield shared | _metric(name, measurement)
        baseline = dense.get(record.setting)
        if record.samples("decode_ms") and baseline is not None:
            yield from (shared | row for row in _derived_rows(record, baseline))


def _derived_rows(record: Record, dense: Record) -> Iterator[Row]:
    for name, kind in DERIVED.items():
        found = derive(name, record, dense)
        if not isinstance(found, Missing):
            told = {"metric": name, "unit": kind.unit, "better": kind.better, "samples": (), "groups": ()}
            yield told | _bounds(found)


# asv.

_MALFORMED = (OSError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""What asv's own reader raises on files that are no results of it, beside its UserError."""
_ASV_UNITS = {"bytes": "B", "seconds": "s"}
"""Ours for asv's own words."""


class _AsvResult(Frozen):
    """A benchmark of one commit with one choice of its parameters; `machine` and `machine_label` as in the table."""

    machine: str
    machine_label: str
    commit: str
    date: datetime
    dirty: bool | None
    grid: str | None
    case: Case | str
    metric: str
    measurement: Measurement


def _read_asv(reading: _Reading, folder: Path) -> list[_AsvResult]:
    paths = sorted(set(folder.glob("*/*.json")) - set(folder.glob("*/machine.json")))
    if not paths:
        return []
    try:
        from asv.benchmarks import Benchmarks
        from asv.config import Config
        from asv.util import UserError
    except ImportError:
        reading.skip(folder, needs_extra("reading asv results needs", "nightly"))
        return []
    config = Config()
    config.results_dir = str(folder)
    results: list[_AsvResult] = []
    try:
        benchmarks = Benchmarks.load(config)
    except (UserError, *_MALFORMED) as error:
        reading.skip(folder, error)
        return []
    for path in paths:
        try:
            results += _asv_results(reading, path, benchmarks)
        except (UserError, *_MALFORMED) as error:
            reading.skip(path, error)
    for result in results:
        if result.commit not in reading.commits:
            reading.learn(result.commit, result.date, None)
    return results


def _asv_results(reading: _Reading, path: Path, benchmarks: Any) -> list[_AsvResult]:
    from asv.results import Results

    file = Results.load(str(path), machine_name=path.parent.name)
    facts = file.params
    if FAKE in facts["machine"].upper():
        reading.skip(path, "its GPU is a stand-in")
        return []
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    common = {
        "machine": f"asv:{digest}",
        "machine_label": facts["machine"],
        "commit": file.commit_hash,
        "date": datetime.fromtimestamp(file.date / 1000, UTC),
        "dirty": None if file.env_name.startswith("existing") else False,
    }
    fresh = sorted(file.get_result_keys(benchmarks))
    stale = len(file.get_all_result_keys()) - len(fresh)
    if stale:
        reading.problems.append(f"{path}: {stale} results left out, whose benchmark is gone or has another version")
    return [_AsvResult(**common, **cell) for name in fresh for cell in _asv_cells(file, name, benchmarks[name])]


def _asv_cells(file: Any, name: str, benchmark: Mapping[str, Any]) -> Iterator[Row]:
    """What each choice of a benchmark's parameters gave; NaN is asv's word for a choice that is no cell."""
    choices = file.get_result_params(name)
    columns = file.get_result_value(name, choices), file.get_result_samples(name, choices)
    *path, metric = name.split(".")
    for choice, value, samples in zip(itertools.product(*choices), *columns, strict=True):
        if value is not None and np.isnan(value):
            continue
        given = dict(zip(benchmark["param_names"], map(_literal, choice), strict=True))
        yield {
            "grid": path[0] if len(path) > 1 else None,
            "case": _asv_case(".".join(path) or name, given),
            "metric": metric.removeprefix("track_"),
            "measurement": Measurement(
                unit=_ASV_UNITS.get(benchmark["unit"], benchmark["unit"]),
                better="lower",
                samples=() if value is None else tuple(samples or [value]),
                missing="failed, or this machine cannot give it: asv keeps no reason" if value is None else None,
            ),
        }


def _literal(text: str) -> Any:
    """A parameter's value: asv writes its repr."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _asv_case(name: str, given: Mapping[str, Any]) -> Case | str:
    """The case of a benchmark over models and methods (its sizes are not known), or the name of another benchmark."""
    if {"model", "method", "sparsity"} <= given.keys():
        return Case(**{key: given[key] for key in ("model", "method", "sparsity")}, prompt_tokens=1, new_tokens=2)
    told = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"{name} ({told})" if told else name


def _asv_rows(reading: _Reading, results: Iterable[_AsvResult]) -> Iterator[Row]:
    for result in results:
        case = {"case": result.case}
        if isinstance(result.case, Case):
            case = _case(result.case, None) | dict.fromkeys(_SIZES)
        named = {name: getattr(result, name) for name in ("machine", "machine_label", "grid")}
        yield (
            {"source": "asv", "control": False}
            | named
            | reading.commit(result.commit, result.dirty, None)
            | case
            | _metric(result.metric, result.measurement)
        )


# pytest-benchmark.


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


def _micro_rows(reading: _Reading, paths: Iterable[Path]) -> Iterator[Row]:
    rows: dict[tuple[object, ...], Row] = {}
    for file in sorted(_micro_files(reading, paths), key=lambda file: file.datetime):
        machine, commit = file.machine_info.tda, file.commit_info
        shared: Row = {"source": "micro", "control": False} | _machine(machine)
        shared |= reading.commit(commit.id, commit.dirty, commit.time or file.datetime)
        for benchmark in file.benchmarks:
            place = (machine.fingerprint, commit.id, commit.dirty, benchmark.name)
            rows[place] = shared | _timed(benchmark)
    yield from rows.values()


def _micro_files(reading: _Reading, paths: Iterable[Path]) -> Iterator[_MicroFile]:
    for path in paths:
        try:
            file = _MicroFile.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reading.skip(path, error)
            continue
        if FAKE in (file.machine_info.tda.gpu or ""):
            reading.skip(path, "its GPU is a stand-in")
            continue
        yield file


def _timed(benchmark: _Benchmark) -> Row:
    facts = benchmark.extra_info
    case = {"case": benchmark.name.removeprefix("test_")}
    if facts.case is not None:
        case = _case(facts.case, facts.execution)
    samples = tuple(1000 * seconds for seconds in benchmark.stats.data)
    batches = min(BATCHES, len(samples))
    groups = tuple(index * batches // len(samples) for index in range(len(samples)))
    return case | _metric(facts.metric, Measurement(unit="ms", better="lower", samples=samples, groups=groups))
