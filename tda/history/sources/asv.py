"""Rows of asv results, which are read with asv (the extra "nightly")."""

import ast
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tda.cases import Case, Frozen
from tda.history.rows import SIZES, HistoryReader, HistoryRow, case_columns, metric_columns
from tda.names import needs_extra
from tda.records import FAKE, Measurement

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


def read_asv(reading: HistoryReader, folder: Path) -> list[_AsvResult]:
    """Read the results of a folder of asv; dates of their commits are learnt."""
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


def _asv_results(reading: HistoryReader, path: Path, benchmarks: Any) -> list[_AsvResult]:
    from asv.results import Results

    file = Results.load(str(path), machine_name=path.parent.name)
    facts = file.params
    if FAKE in facts["machine"].upper():
        reading.skip(path, "its GPU is a simulated device")
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
        reading.problems.append(f"{path}: {stale} results skipped, whose benchmark is gone or has another version")
    return [_AsvResult(**common, **cell) for name in fresh for cell in _asv_cells(file, name, benchmarks[name])]


def _asv_cells(file: Any, name: str, benchmark: Mapping[str, Any]) -> Iterator[HistoryRow]:
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


def asv_rows(reading: HistoryReader, results: Iterable[_AsvResult]) -> Iterator[HistoryRow]:
    """Rows of results."""
    for result in results:
        case = {"case": result.case}
        if isinstance(result.case, Case):
            case = case_columns(result.case, None) | dict.fromkeys(SIZES)
        named = {name: getattr(result, name) for name in ("machine", "machine_label", "grid")}
        yield (
            {"source": "asv", "control": False}
            | named
            | reading.commit(result.commit, result.dirty, None)
            | case
            | metric_columns(result.metric, result.measurement)
        )
