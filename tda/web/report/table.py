"""The table of all cases: one definition for page, terminal and CSV."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import pandas as pd

from tda.derived import NOT_FINITE, UNLIKE, Missing
from tda.records import Record
from tda.statistics import Estimate
from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.report.setting import settings
from tda.web.theme.formatting import MISSING, interval, number

Value = float | str | Estimate | None


@dataclass(frozen=True)
class Column:
    """A column: its name in the CSV, its heading, and how a case's value is found.

    Attributes
    ----------
    name : str
        Name in the CSV; an interval adds ``<name>_low`` and ``<name>_high``.
    heading : str
        Heading with unit.
    value : callable
        Value of a case; None where it is missing.
    missing : callable
        Why it is missing.
    numeric : bool
        Whether values are numbers, set to the right and sorted by value.
    signed : bool
        Whether a plus sign is written.
    scale : float
        What a plain number is divided by before it is shown; the CSV keeps base units.
    ratio : bool
        Whether values follow from the times of dense too, so that what speaks against them stands beside them.
    text : callable
        How the text of a value is completed for a case.
    """

    name: str
    heading: str
    value: Callable[[ComparedCase], Value]
    missing: Callable[[ComparedCase], str]
    numeric: bool = True
    signed: bool = False
    scale: float = 1.0
    ratio: bool = False
    text: Callable[[ComparedCase, str], str] = lambda case, text: text

    def cell(self, case: ComparedCase) -> "Cell":
        """The value of a case as it is shown; a ratio that cannot be trusted says so."""
        cell = self._plain_cell(case)
        if cell.text != MISSING:
            cell = replace(cell, text=self.text(case, cell.text))
        if not self.ratio or not case.warnings or case.is_dense or cell.sort is None:
            return cell
        return replace(cell, text=f"{cell.text}, not trusted", tooltip="; ".join(case.warnings))

    def _plain_cell(self, case: ComparedCase) -> "Cell":
        value = self.value(case)
        if value is None:
            return Cell(MISSING, None, self.missing(case), self.numeric)
        if isinstance(value, str):
            return Cell(value, None, "", self.numeric)
        if not isfinite(value.value if isinstance(value, Estimate) else value):
            return Cell(MISSING, None, NOT_FINITE, self.numeric)
        if isinstance(value, Estimate):
            return Cell(interval(value, signed=self.signed), value.value, "", self.numeric)
        return Cell(number(value / self.scale, signed=self.signed), value, "", self.numeric)


@dataclass(frozen=True)
class Cell:
    """Text, the number that it is sorted by, and a tooltip: why the value is missing or not trusted."""

    text: str
    sort: float | None
    tooltip: str
    numeric: bool


def _measured(name: str, heading: str, *, scale: float = 1.0) -> Column:
    return Column(name, heading, lambda case: case.median(name), lambda case: case.missing(name), scale=scale)


def _derived(name: str, heading: str, *, signed: bool = False, ratio: bool = False) -> Column:
    def why(case: ComparedCase) -> str:
        found = case.derived(name)
        return found.reason if isinstance(found, Missing) else ""

    return Column(name, heading, lambda case: case.estimate(name), why, signed=signed, ratio=ratio)


def _level(name: str, heading: str) -> Column:
    return Column(name, heading, lambda case: case.level(name), lambda case: case.missing(name))


def _percentile(percent: int) -> Column:
    return Column(
        f"decode_ms_p{percent}",
        f"decode p{percent} (ms)",
        lambda case: case.percentile("decode_ms", percent),
        lambda case: case.missing("decode_ms"),
    )


def _averaged(name: str, heading: str) -> Column:
    return Column(name, heading, lambda case: case.mean(name), lambda case: case.missing(name))


def _words(name: str, heading: str, value: Callable[[ComparedCase], str | None], missing: str = "") -> Column:
    return Column(name, heading, value, lambda case: missing or f"{case.record.outcome}: {case.record.reason}", False)


def _ratio_missing(name: str) -> Callable[[ComparedCase], str]:
    def why(case: ComparedCase) -> str:
        return case.missing(name) if case.dense is not None else "no dense run of this setting succeeded"

    return why


def _ran(case: ComparedCase) -> str | None:
    parts = [part for part in (case.record.execution, case.record.backend) if part]
    return " · ".join(parts) or None


def _status(case: ComparedCase) -> str:
    scored = len(case.groups("nll_nats"))
    part = f", {scored} of {case.documents} documents" if 0 < scored < case.documents / 2 else ""
    if case.record.status == "ok" and "decode_ms" not in case.record.measurements:
        part += ", not timed"
    return case.record.outcome + part + (f": {case.record.reason}" if case.record.reason else "")


COLUMNS: tuple[Column, ...] = (
    _words("method", "method", lambda case: case.series),
    _words("model", "model", lambda case: case.record.case.model),
    Column(
        "sparsity",
        "asked sparsity",
        lambda case: case.record.case.sparsity,
        lambda case: "it has an error level instead" if "cett" in case.record.case.options else "nothing is left out",
    ),
    Column("achieved_sparsity", "achieved", lambda case: case.achieved, lambda case: "not recorded"),
    _words("ran", "ran as", _ran),
    _measured("prefill_ms", "prefill (ms)"),
    _derived("prefill_overhead_ms", "over dense prefill (ms)", signed=True),
    _level("statistic_ms", "statistic (ms)"),
    _measured("ttft_ms", "TTFT (ms)"),
    _level("selection_ms", "selection (ms)"),
    _percentile(50),
    _percentile(95),
    _percentile(99),
    Column("speedup", "speed-up (×)", lambda case: case.speedup, _ratio_missing("decode_ms"), ratio=True),
    _derived("roofline_speedup", "roofline speed-up (×)"),
    _derived("speedup_efficiency", "efficiency", ratio=True),
    _derived("mbu", "MBU"),
    _derived("break_even_tokens", "break-even (tokens)", ratio=True),
    _measured("generation_ms", "generation (ms)"),
    Column(
        "generation_speedup",
        "generation speed-up (×)",
        lambda case: case.faster("generation_ms"),
        _ratio_missing("generation_ms"),
        ratio=True,
    ),
    _measured("weight_bytes_per_token", "weights per token (MB)", scale=1e6),
    _measured("peak_memory_bytes", "peak memory (MB)", scale=1e6),
    Column("perplexity", "perplexity", lambda case: case.perplexity, lambda case: case.missing("perplexity")),
    Column("delta_nll_nats", "ΔNLL (nats/token)", lambda case: case.delta_nll, _ratio_missing("nll_nats"), signed=True),
    _averaged("kl_to_dense_nats", "KL (nats/token)"),
    _averaged("top1_disagreement", "top-1 disagreement"),
)
OPTIONAL: tuple[Column, ...] = (
    _averaged("task_recall_accuracy", "recall"),
    _averaged("task_recall_nll", "recall NLL (nats/token)"),
    _measured("gpu_utilization_percent", "GPU busy (%)"),
    _measured("gpu_memory_bytes", "GPU memory (MB)", scale=1e6),
    _measured("power_w", "power (W)"),
    _measured("energy_j_per_token", "energy per token (J)"),
    _measured("attach_ms", "attach (ms)"),
    _measured("choice_ms", "choice (ms)"),
    _measured("gather_ms", "gather (ms)"),
    _words("unlike_kernels", UNLIKE, lambda case: case.unlike_kernels, "dense ran on kernels of the same kind"),
)
"""Columns that are shown only where some case has a value."""
LAST: tuple[Column, ...] = (
    _words("flags", "flags", lambda case: "; ".join(case.record.raised()) or None, "no flag raised"),
    _words("status", "status", _status),
)
TERMINAL = ("model", "method", "sparsity", "achieved_sparsity", "ran", "decode_ms_p50", "speedup", "roofline_speedup",
            "break_even_tokens", "delta_nll_nats", "kl_to_dense_nats", "status")  # fmt: skip
"""Columns that fit a terminal."""


def score_column(task: str, name: str, heading: str = "") -> Column:
    """A score of a task with its interval over items."""
    heading = heading or f"{name.removeprefix(f'task_{task}_')} of {task}"
    return Column(name, heading, lambda case: case.score(name), lambda case: _score_missing(case, task, name))


def _score_missing(case: ComparedCase, task: str, name: str) -> str:
    return case.missing(name) if name in case.tasks.get(task, ()) else case.score_missing(task)


def difference_column(task: str, heading: str) -> Column:
    """A task's headline score less dense's, at the level that holds for all comparisons of the setting."""

    def why(case: ComparedCase) -> str:
        found = case.task_difference(task)
        return found.reason if isinstance(found, Missing) else ""

    def value(case: ComparedCase) -> Estimate | None:
        found = case.task_difference(task)
        return None if isinstance(found, Missing) else found

    return Column(f"task_{task}_to_dense", heading, value, why, signed=True)


def _task_columns(cases: Sequence[ComparedCase]) -> list[Column]:
    """Every score of every task, and what stands for a task beside dense."""
    found: list[Column] = []
    for task in dict.fromkeys(task for case in cases for task in case.tasks):
        names = dict.fromkeys(name for case in cases for name in case.tasks.get(task, ()))
        found += [score_column(task, name) for name in names]
        found.append(difference_column(task, f"{task}, difference to dense, holds for all comparisons"))
    if found:
        heading = "comparisons that differences to dense hold for"
        found.append(Column("task_comparisons", heading, _comparisons, lambda case: "", text=_whole))
    return found


def _comparisons(case: ComparedCase) -> float:
    return float(case.comparisons)


def _whole(case: ComparedCase, text: str) -> str:
    return f"{case.comparisons}"


def columns(cases: Iterable[ComparedCase]) -> list[Column]:
    """The columns of a table of these cases."""
    held = list(cases)
    optional = (column for column in OPTIONAL if any(column.value(case) for case in held))
    return [*COLUMNS, *optional, *_task_columns(held), *LAST]


def named(*names: str) -> list[Column]:
    """Columns by their names, for another table."""
    known = {column.name: column for column in (*COLUMNS, *OPTIONAL, *LAST)}
    return [known[name] for name in names]


def summary_rows(records: Iterable[Record], names: Sequence[str] = TERMINAL) -> list[dict[str, str]]:
    """Summarise records as rows of text, one per case, e.g. for a table in a terminal.

    Parameters
    ----------
    records : iterable of Record
        Lines of one machine and commit, merged or not.
    names : sequence of str
        Names of the columns, as in ``table.csv``.

    Returns
    -------
    list of dict
        Heading to text; a missing value is ``"–"``.

    Raises
    ------
    ValueError
        If a column is not known.
    """
    found = settings(records)
    tasks = _task_columns([case for setting in found for case in setting.cases])
    known = {column.name: column for column in (*COLUMNS, *OPTIONAL, *tasks, *LAST)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown columns {', '.join(unknown)}; known: {', '.join(known)}")
    return [
        {known[name].heading: known[name].cell(case).text if name != "model" else title for name in names}
        for setting, title in ((setting, setting.name_among(found)) for setting in found)
        for case in setting.cases
    ]


def frame(groups: Sequence[Group]) -> pd.DataFrame:
    """The table of all groups with plain numbers in base units; missing numbers are empty."""
    cases = [(group, case) for group in groups for setting in group.settings for case in setting.cases]
    tasks = _task_columns([case for _, case in cases])
    return pd.DataFrame([_row(group, case, [*COLUMNS, *OPTIONAL, *tasks, *LAST]) for group, case in cases])


def identity(group: Group, case: ComparedCase) -> dict[str, Any]:
    """What tells a case from others, but its model and method: machine, commit, request and inputs."""
    request = case.record.case
    return {
        "machine": group.machine.fingerprint,
        "commit": group.commit.hash,
        "dirty": group.commit.dirty,
        **request.model_dump(include={"device", "dtype", "batch", "prompt_tokens", "new_tokens", "seed"}),
        "options": json.dumps(request.options, sort_keys=True),
        "control": request.control,
        **case.record.inputs.model_dump(include={"text_name", "text", "weights", "calibration"}),
    }


def _row(group: Group, case: ComparedCase, columns: Iterable[Column]) -> dict[str, Any]:
    row: dict[str, Any] = {
        **identity(group, case),
        "rounds": len(case.groups("decode_ms")),
        "documents": len(case.groups("nll_nats")),
    }
    for column in columns:
        value = column.value(case)
        if isinstance(value, Estimate):
            row |= {column.name: value.value, f"{column.name}_low": value.low, f"{column.name}_high": value.high}
        else:
            row[column.name] = value
    return row
