"""The cells of a matrix: a case with what runs it, what it is worth when time is short, and its records."""

import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from pydantic import ValidationError

from tda import device as facts
from tda import kernels
from tda.bench.budget import middle
from tda.bench.plan import Plan
from tda.bench.store import RecordPlace
from tda.cases import Case, Inputs, first_problem
from tda.contracts import Method
from tda.records import Record, Status

PROCESS = uuid.uuid4().hex[:8]
"""Name of this process in its records: rounds of several say more than rounds of one."""


@dataclass(frozen=True)
class PlannedCase:
    """A case with what it takes to run it, and what it is taken on."""

    case: Case
    inputs: Inputs
    method: Method

    @property
    def series(self) -> tuple[str, str]:
        """As of a record: what tells it from the other cells."""
        return self.case.key, self.inputs.key

    def place(self, number: int) -> RecordPlace:
        """Where its record of a round belongs."""
        return RecordPlace(self.case, self.inputs, number)


@dataclass(frozen=True)
class Span:
    """When something ran, and how long."""

    started: str
    seconds: float

    @classmethod
    def since(cls, begin: float) -> "Span":
        """From a moment of the monotonic clock until now."""
        seconds = time.monotonic() - begin
        started = datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="seconds")
        return cls(started, round(seconds, 3))


def by_worth(plan: Plan, cells: Iterable[PlannedCase]) -> list[PlannedCase]:
    """Cells in the order in which they are dropped last."""
    return sorted(cells, key=lambda cell: _worth(plan, cell))


def essential(plan: Plan, cells: Sequence[PlannedCase]) -> int:
    """How many cells in order of worth are measured even where little time is left: dense and methods at the middle."""
    return sum(1 for cell in cells if _worth(plan, cell) <= (1, 0.0))


def _worth(plan: Plan, cell: PlannedCase) -> tuple[int, float]:
    """Dense, the methods at the middle sparsity, dense's control, int8, the methods at other ones, then controls."""
    if cell.method.name == "dense":
        return (1, 0.005) if cell.case.control else (0, 0.0)
    away = 0.01 if cell.case.sparsity is None else abs(cell.case.sparsity - middle(plan.sparsities))
    return (1 if cell.method.name in plan.speed_methods and not cell.case.control else 2), away


def new_record(
    plan: Plan, place: RecordPlace, status: Status, span: Span, *, generation: str | None = None, **found: Any
) -> Record:
    """A record of now, on this machine, of this commit; `generation` says how the model's own generate was run.

    One whose numbers cannot be true is a failure with the reason.
    """
    shared: dict[str, Any] = {
        "case": place.case,
        "inputs": place.inputs,
        "round": place.round,
        "commit": facts.commit(),
        "machine": facts.machine(plan.device),
        "conditions": {
            "process": PROCESS,
            "threads": float(torch.get_num_threads()),
            "load_average": os.getloadavg()[0],
            "precision": plan.precision,
            "kernels": str(kernels.backend(plan.device)),
            **({} if generation is None else {"generation": generation}),
        },
        "started": span.started,
        "seconds": span.seconds,
    }
    try:
        return Record(status=status, **shared, **found)
    except ValidationError as error:
        return Record(status="error", reason=first_problem(error), **shared)
