"""Results as a table for pandas: every sample, and the numbers that follow from them."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tda.derived import DERIVED, Derived, Missing
from tda.records import MEASUREMENTS, Measurement, MeasurementKind
from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group, gather
from tda.web.report.table import identity

_DELTA_NLL = "delta_nll_nats"
_KINDS: Mapping[str, MeasurementKind] = {**DERIVED, _DELTA_NLL: MEASUREMENTS["nll_nats"]}
_TYPES = {**dict.fromkeys(("sample", "group"), "Int64"), **dict.fromkeys(("value", "low", "high"), "float64")}


# long: its columns are explained
def load_results(*folders: str | Path) -> pd.DataFrame:
    """Read results of `tda bench` as a table with one row per case, metric and sample.

    Rounds of a case are joined. Cases are compared with the dense case of the same machine, commit and request.

    Parameters
    ----------
    *folders : str or Path
        Results folders, or their ``results.jsonl``.

    Returns
    -------
    pandas.DataFrame
        What a row is of:

        - `case` in words, `model`, `method`, `options` (JSON), `sparsity` (requested), `achieved_sparsity` (mean over
          layers), `control` ("a_a" for the second dense run), `execution` and `backend` (what ran), `device`, `dtype`,
          `batch`, `prompt_tokens`, `new_tokens`, `seed`;
        - `machine` (fingerprint), `gpu`, `cpu`, `commit`, `dirty`, `change` and `plug_in` (the method's distribution
          where it is not built in), digests `text`, `weights` and `calibration`, `text_name`;
        - `status`, `reason` and `warnings` of the case.

        What it says:

        - `metric`, `unit` and `better` ("lower" or "higher");
        - for a measured metric `sample` (0, 1, …), `group` (round of a time, number of a document or item) and `value`;
        - for a derived one (`tda.derived.DERIVED`, and ``delta_nll_nats``) `value` and its interval, `low` to `high`;
        - `missing`, the reason where there is no value. A case that failed has one row, without a metric.

    Raises
    ------
    ValueError
        If no folder is given, or none holds a readable record.
    FileNotFoundError
        If a folder holds no results.

    Warns
    -----
    UserWarning
        For each line that is left out, e.g. since it is damaged.

    Examples
    --------
    >>> frame = tda.load_results("results/one", "results/two")  # doctest: +SKIP
    >>> frame[frame.metric == "speedup"].pivot_table("value", "sparsity", "method")  # doctest: +SKIP
    """
    if not folders:
        raise ValueError("no results folder given; load_results(FOLDER, …) needs at least one")
    groups = gather([Path(folder) for folder in folders])
    for problem in groups[0].problems:
        warnings.warn(problem, stacklevel=2)
    rows = [
        facts | row
        for group in groups
        for setting in group.settings
        for case in setting.cases
        for facts in [_facts(group, case)]
        for row in _rows(case)
    ]
    return pd.DataFrame(rows).astype(_TYPES)


def _facts(group: Group, case: ComparedCase) -> dict[str, Any]:
    record = case.record
    return {
        "case": f"{case.label} on {record.case.model}",
        **record.case.model_dump(include={"model", "method", "sparsity"}),
        **identity(group, case),
        "achieved_sparsity": case.achieved,
        "execution": record.execution,
        "backend": record.backend,
        **group.machine.model_dump(include={"gpu", "cpu"}),
        **record.inputs.model_dump(include={"change", "plug_in"}),
        "status": record.status,
        "reason": record.reason,
        "warnings": "; ".join(record.raised()),
    }


def _rows(case: ComparedCase) -> Iterator[dict[str, Any]]:
    if case.record.status != "ok":
        yield _row(None, None, missing=f"{case.record.outcome}: {case.record.reason}")
        return
    for name, measurement in case.record.measurements.items():
        samples = case.samples(name)
        if not samples:
            yield _row(name, measurement, missing=case.missing(name))
        for number, (value, group) in enumerate(zip(samples, measurement.groups, strict=False)):
            yield _row(name, measurement, sample=number, group=group, value=value)
    for name, kind in _KINDS.items():
        found = _delta_nll(case) if name == _DELTA_NLL else case.derived(name)
        if isinstance(found, Missing):
            yield _row(name, kind, missing=found.reason)
        else:
            yield _row(name, kind, value=found.value, low=found.low, high=found.high)


def _delta_nll(case: ComparedCase) -> Derived:
    return case.delta_nll or Missing("no dense score" if case.samples("nll_nats") else case.missing("nll_nats"))


def _row(metric: str | None, kind: MeasurementKind | Measurement | None, **facts: Any) -> dict[str, Any]:
    """Columns of a sample or of a number."""
    unit, better = (None, None) if kind is None else (kind.unit, kind.better)
    columns = dict.fromkeys(("sample", "group", "value", "low", "high", "missing"))
    return {"metric": metric, "unit": unit, "better": better, **columns, **facts}
