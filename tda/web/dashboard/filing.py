"""From rows of the tidy table to blocks, with what is relative to dense."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tda.records import SPEED, Measurement
from tda.statistics import Estimate, bootstrap, typical
from tda.web.dashboard.blocks import (
    DELTA,
    KINDS,
    PAIRING,
    RATIO,
    SOURCES,
    CaseFacts,
    MetricRun,
    SettingHistory,
    Stop,
    is_quality,
    paired,
)
from tda.web.report.measured import NO_SPEED


def blocks_of(rows: Iterable[Any], order: Sequence[str]) -> tuple[SettingHistory, ...]:
    """All blocks: by source, what was measured last first.

    Parameters
    ----------
    rows : iterable
        Rows of the tidy table, None where something is unknown.
    order : sequence of str
        All commits in the order of history.
    """
    held: dict[tuple[str, str, str], SettingHistory] = {}
    for row in rows:
        # The second install of the baseline commit and the second dense run of a round measure noise, not the commit.
        if not row.commit or row.case is None or row.control or row.role == "control":
            continue
        key = (row.source, row.machine, _setting(row))
        block = held.setdefault(key, SettingHistory(row.source, row.machine, row.machine_label, key[2]))
        _file(block, row)
    places = {commit: place for place, commit in enumerate(order)}
    for block in held.values():
        block.stops.sort(key=lambda stop: (places[stop.commit], stop.dirty, stop.change))
        block.cases = dict(sorted(block.cases.items(), key=lambda entry: entry[1].order))
        _derive(block)
    ranks = list(SOURCES)
    return tuple(sorted(held.values(), key=lambda block: (ranks.index(block.source), -places[block.stops[-1].commit])))


def _file(block: SettingHistory, row: Any) -> None:
    stop = Stop(row.commit, bool(row.dirty), row.change or "")
    facts = CaseFacts(row.series, row.grid, row.case_key, row.case, row.name, row.method or "", row.sparsity)
    block.cases.setdefault(row.series, facts)
    block.on_gpu |= str(row.device or "").startswith("cuda")
    if stop not in block.stops:
        block.stops.append(stop)
    if row.metric is None:
        block.failures[row.series, stop] = row.missing
        return
    block.add(row.series, row.metric, stop, _run(row))


def _run(row: Any) -> MetricRun:
    process = (row.night, row.grid, row.stage, row.block)
    if row.metric in SPEED and (row.execution == "masked" or row.method == "oracle"):
        return MetricRun(process, Measurement.absent(row.metric, NO_SPEED), None)
    samples, groups = tuple(map(float, row.samples)), tuple(map(int, row.groups))
    missing = None if samples else row.missing or "not measured"
    measurement = Measurement(unit=row.unit, better=row.better, samples=samples, groups=groups, missing=missing)
    known = row.value is not None
    return MetricRun(process, measurement, Estimate(row.value, row.low, row.high, len(set(groups))) if known else None)


def _setting(row: Any) -> str:
    """Model and sizes in words, as far as they are known."""
    parts = [str(part) for part in (row.device, row.dtype) if part]
    for name, value in (("batch", row.batch), ("prompt", row.prompt_tokens), ("new tokens", row.new_tokens)):
        if value is not None:
            parts.append(f"batch {value}" if name == "batch" else f"{value} {name}")
    return " · ".join(part for part in (row.model, ", ".join(parts), row.setting) if part)


def _derive(block: SettingHistory) -> None:
    """Add decode time and NLL relative to dense, where no source gave them."""
    for stop in block.stops:
        dense = next((case for case, facts in block.cases.items() if facts.method == "dense"
                      and (block.runs(case, "decode_ms", stop) or _likelihoods(block, case, stop))), None)  # fmt: skip
        for case in block.cases:
            if dense is None or case == dense:
                continue
            if block.source in PAIRING and not block.runs(case, RATIO, stop):
                sides = (block.runs(case, "decode_ms", stop), block.runs(dense, "decode_ms", stop))
                _compare(block, case, RATIO, stop, *sides, lambda a, b: a / b if b else math.nan)
            sides = (_likelihoods(block, case, stop), _likelihoods(block, dense, stop))
            _compare(block, case, DELTA, stop, *sides, lambda a, b: a - b)


def _likelihoods(block: SettingHistory, case: str, stop: Stop) -> list[MetricRun]:
    """NLL by document; the logarithm of perplexity where that alone is there."""
    found = block.runs(case, "nll_nats", stop)
    return found or [
        MetricRun(
            run.process, Measurement.of("nll_nats", np.log(run.measurement.samples), run.measurement.groups), None
        )
        for run in block.runs(case, "perplexity", stop)
        if run.measurement.samples
    ]


def _compare(
    block: SettingHistory,
    case: str,
    metric: str,
    stop: Stop,
    runs: Sequence[MetricRun],
    dense: Sequence[MetricRun],
    operation: Callable[[float, float], float],
) -> None:
    """File a metric that is paired with dense of the same process."""
    kind, beside = KINDS[metric], {run.process: run for run in dense}
    for run in runs:
        both = paired(run, beside[run.process]) if run.process in beside else {}
        if both:
            values = [operation(*pair) for pair in both.values()]
            measurement = Measurement(unit=kind.unit, better=kind.better, samples=tuple(values), groups=tuple(both))
            known = np.isfinite(values).all()
            estimate = (bootstrap if is_quality(metric) else typical)(values) if known else None
            block.add(case, metric, stop, MetricRun(run.process, measurement, estimate))
