"""Rows of the table of a history: parts that several sources share, and what is known while they are read."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from tda.cases import UNTOLD, Case, Inputs, describe, first_problem, taken_for
from tda.history.repository import Repository
from tda.records import FAKE, Machine, Measurement, Record
from tda.statistics import Estimate, bootstrap, by_group, perplexity, typical

HistoryRow = dict[str, Any]
"""One row. `case` stays a `Case`, and `series` its `Inputs`, until all rows are known: words must tell them apart."""


class DatedCommit(NamedTuple):
    """When a commit was made, in UTC, and the first line of its message; None where nothing tells."""

    date: datetime | None
    subject: str | None


@dataclass
class HistoryReader:
    """What is known of commits while sources are read, and what went wrong."""

    commits: dict[str, DatedCommit] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, repo: Path | None) -> "HistoryReader":
        """Begin; `repo` is a checkout that tells dates and subjects.

        Raises
        ------
        ValueError
            If it is no git checkout.
        """
        reading = cls()
        if repo is not None:
            for told in Repository(repo).all_facts():
                reading.learn(told.hash, moment_of(told.date), told.subject)
        return reading

    def learn(self, commit: str, date: datetime | None, subject: str | None) -> None:
        """Keep date and subject of a commit, where there is a date."""
        if date is not None:
            self.commits[commit] = DatedCommit(date, subject)

    def skip(self, path: Path, error: Exception | str) -> None:
        """Note that a file was left out, and why."""
        self.problems.append(f"{path} skipped: {error if isinstance(error, str) else first_line(error)}")

    def commit(self, commit: str | None, dirty: bool | None, otherwise: str | None) -> HistoryRow:
        """Columns of a commit; `otherwise` is the moment that stands for an unknown date."""
        facts = self.commits.get(commit or "") or DatedCommit(moment_of(otherwise), None)
        return {"commit": commit, "dirty": dirty, "date": facts.date, "subject": facts.subject}

    def without_fakes(self, path: Path, records: Sequence[Record]) -> list[Record]:
        """Records whose GPU, if any, is a real one."""
        good = [record for record in records if FAKE not in (record.machine.gpu or "")]
        if len(good) < len(records):
            self.problems.append(f"{path}: {len(records) - len(good)} records refused, whose GPU is a simulated device")
        return good


def moment_of(text: str | None) -> datetime | None:
    """A moment in UTC; None where the text is no ISO date."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def first_line(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, ValidationError):
        return first_problem(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().split("\n")[0] or type(error).__name__


SIZES = ("dtype", "device", "batch", "prompt_tokens", "new_tokens")


def machine_columns(machine: Machine) -> HistoryRow:
    """Columns of a machine."""
    words = f"{machine.gpu or machine.cpu}, {machine.cores_told}, torch {machine.torch}"
    return {"machine": machine.fingerprint, "machine_label": words}


def case_columns(case: Case, execution: str | None, inputs: Inputs = Inputs()) -> HistoryRow:  # noqa: B008
    """Columns of a case; `execution` is what really ran, where that is known."""
    named = {name: getattr(case, name) for name in ("model", "method", "sparsity", *SIZES)}
    return named | {"case": case, "series": inputs, "execution": execution}


def label(rows: Iterable[HistoryRow]) -> None:
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


def _request(row: HistoryRow) -> _Request:
    """What was asked of a model, as the pages call it before settings are told apart."""
    return tuple(row[name] for name in ("source", "model", *SIZES))


def failure_columns(outcome: str, reason: str | None) -> HistoryRow:
    """Columns of what gave no numbers."""
    return {"samples": (), "groups": (), "missing": f"{outcome}: {reason or 'no reason given'}"}


def metric_columns(name: str, measurement: Measurement) -> HistoryRow:
    """Columns of a metric."""
    samples = measurement.samples
    return {
        "metric": name,
        "unit": measurement.unit,
        "better": measurement.better,
        "samples": samples,
        "groups": measurement.groups or tuple(range(len(samples))),
        "missing": measurement.missing,
    } | bounds(_estimate(name, measurement))


def bounds(estimate: Estimate | None) -> HistoryRow:
    """Value and the bounds of its interval; None for what has none."""
    return {part: getattr(estimate, part, None) for part in ("value", "low", "high")}


def _estimate(name: str, measurement: Measurement) -> Estimate | None:
    values = list(by_group(measurement).values())
    if not values or measurement.unit == "hash" or not np.isfinite(values).all():
        return None
    if name == "perplexity":
        return perplexity(values)
    return bootstrap(values) if measurement.unit in ("nats/token", "share") else typical(values)
