"""A plan in groups, each for one machine: what belongs together, what it needs, and about how long it takes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tda.bench.costs import expected_rounds, items_of
from tda.bench.outlook import Outlook, gigabytes, outlook, rounded
from tda.bench.plan import Plan, Subject
from tda.bench.scoring import SCORED_TOGETHER
from tda.cases import Case, digest_of
from tda.records import Record

PARTS = ("documents", "tasks", "timed")
"""Parts of a case's time, as `tda.bench.outlook.Seconds` has them."""


@dataclass(frozen=True)
class SweepGroup:
    """Models of a plan that are measured together, on one machine: a model, and the shapes that imitate its layers.

    Attributes
    ----------
    name : str
        Unique in the sweep: the first subject's model.
    plan : Plan
        The sweep's plan with this group's subjects alone.
    timed : bool
        Whether any subject has timed rounds: then it needs a machine, or a GPU, of its own.
    memory_bytes : int or None
        Host memory that its process needs at most, about; None where it is not known.
    weight_bytes : int or None
        To load, all its models together; None where it is not known.
    hours : float or None
        About how long it takes, at most its budget; None where it is not known.
    basis : str
        What the hours follow from: "past records", "byte model", "byte model and past records" or "unknown".
    cells : int
        Cases to measure, controls included.
    gpu_bytes : int or None
        GPU memory that its process needs at most, about; None where it is not known, or no GPU is used.
    """

    name: str
    plan: Plan
    timed: bool
    memory_bytes: int | None
    weight_bytes: int | None
    hours: float | None
    basis: str
    cells: int
    gpu_bytes: int | None = None


def groups_of(plan: Plan, past: Sequence[Record] = ()) -> list[SweepGroup]:
    """The groups of a plan, in its order.

    Parameters
    ----------
    plan : Plan
        What is measured.
    past : sequence of Record
        Lines of earlier results, of any machine with the plan's kind of device. Where they tell of a case, or of one
        that differs in its seed, execution or layers only, its time follows from them, in proportion to rounds,
        documents and items. Else it follows from the byte model, corrected by the factor by which the model's other
        cases took longer than that. Loading and calibrating always follow from the byte model: no record tells them.
    """
    known = _Past(past)
    return [_group(replace(plan, subjects=subjects), known) for subjects in together(plan.subjects)]


def plan_rows(groups: Sequence[SweepGroup]) -> list[dict[str, str | float | None]]:
    """A table's row for each group."""
    on_gpu = any(group.gpu_bytes is not None for group in groups)
    return [
        {
            "group": group.name,
            "models": ", ".join(subject.model for subject in group.plan.subjects),
            "cells": group.cells,
            "weights (GB)": gigabytes(group.weight_bytes),
            "memory (GB)": gigabytes(group.memory_bytes),
            **({"GPU memory (GB)": gigabytes(group.gpu_bytes)} if on_gpu else {}),
            "hours": rounded(group.hours),
            "basis": group.basis,
            "timed": "yes" if group.timed else "no",
        }
        for group in groups
    ]


def total_hours(groups: Iterable[SweepGroup]) -> float:
    """Hours of all groups one after another; those of unknown hours are not in it."""
    return sum(group.hours for group in groups if group.hours is not None)


def bound(groups: Sequence[SweepGroup], workers: int) -> float:
    """Hours before which so many workers cannot end: those of the longest group, or of all, shared evenly."""
    return max([total_hours(groups) / workers, *(group.hours for group in groups if group.hours is not None)])


def together(subjects: Sequence[Subject]) -> list[tuple[Subject, ...]]:
    """Subjects by the model whose layers they imitate, this one first."""
    leads = {subject.model: subject.layer_sparsity_from for subject in subjects}
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        name, seen = subject.model, set[str]()
        while (lead := leads[name]) in leads and lead is not None and lead not in seen:
            seen.add(name)
            name = lead
        groups.setdefault(name, []).append(subject)
    return [tuple(sorted(group, key=lambda one: one.model != name)) for name, group in groups.items()]


def _group(plan: Plan, past: "_Past") -> SweepGroup:
    models = outlook(plan)
    seconds, bases = [], set[str]()
    for subject, model in zip(plan.subjects, models, strict=True):
        found, basis = _seconds(plan, subject, model, past)
        seconds.append(found)
        bases.add(basis)
    known = [one for one in seconds if one is not None]
    hours = sum(known) / 3600 if len(known) == len(seconds) else None
    if hours is not None and plan.budget_s is not None:
        hours = min(hours, plan.budget_s / 3600)
    feet = [model.footprint for model in models if model.footprint is not None]
    weights = [model.weight_bytes for model in models if model.weight_bytes is not None]
    is_known = len(feet) == len(models)
    on_gpu = [foot.gpu_bytes for foot in feet if foot.gpu_bytes is not None]
    return SweepGroup(
        name=plan.subjects[0].model,
        plan=plan,
        timed=any(subject.speed for subject in plan.subjects),
        memory_bytes=max(foot.host_bytes for foot in feet) if is_known else None,
        weight_bytes=sum(weights) if is_known else None,
        hours=hours,
        basis=_joined(bases),
        cells=sum(len(model.cases) for model in models),
        gpu_bytes=max(on_gpu) if is_known and on_gpu else None,
    )


def _joined(bases: set[str]) -> str:
    """One word for the bases of several models."""
    if "unknown" in bases:
        return "unknown"
    return bases.pop() if len(bases) == 1 else "byte model and past records"


def _seconds(plan: Plan, subject: Subject, model: Outlook, past: "_Past") -> tuple[float | None, str]:
    """Seconds of one model, and what they follow from."""
    if model.prepare_s is None:
        return None, "unknown"
    total, sources = model.prepare_s, set[str]()
    for part in PARTS:
        modelled = [getattr(one, part) for one in model.seconds]
        both = zip(model.cases, modelled, strict=True)
        told = [past.seconds(plan, subject, case, part) if one else None for case, one in both]
        pairs = [(one, found) for one, found in zip(modelled, told, strict=True) if found is not None]
        slower = sum(found for _, found in pairs) / sum(one for one, _ in pairs) if pairs else 1.0
        for one, found in zip(modelled, told, strict=True):
            total += one * slower if found is None else found
            sources |= {"byte model" if found is None else "past records"} if one else set()
    return total, _joined(sources or {"byte model"})


class _Past:
    """What earlier records tell of a case's time."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._same: dict[str, list[Record]] = {}
        self._alike: dict[str, list[Record]] = {}
        for record in records:
            if record.status == "ok":
                self._same.setdefault(record.case.key, []).append(record)
                self._alike.setdefault(_alike(record.case), []).append(record)

    def seconds(self, plan: Plan, subject: Subject, case: Case, part: str) -> float | None:
        """Seconds of a part of a case in this plan; None where no record tells."""
        for records in (self._same.get(case.key, ()), self._alike.get(_alike(case), ())):
            if part == "documents":
                found = _documents_s(plan.documents if subject.quality and case.control != "a_a" else 0, records)
            else:
                found = (_tasks_s if part == "tasks" else _timed_s)(plan, records)
            if found is not None:
                return found
        return None


def _alike(case: Case) -> str:
    """Equal for cases that take about as long on one kind of device."""
    told = case.model_dump(mode="json", exclude={"seed", "execution", "layer_sparsity_from"})
    return digest_of(told | {"device": case.device.partition(":")[0]})


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _timed_s(plan: Plan, records: Sequence[Record]) -> float | None:
    """By the mean of its rounds."""
    one = _mean([record.seconds for record in records if record.round])
    return None if one is None else one * expected_rounds(plan)


def _documents_s(documents: int, records: Sequence[Record]) -> float | None:
    """By lines of round 0. The first batch of documents is not in their time: it is a first look at every case."""
    first = [record for record in records if record.round == 0 and not record.tasks]
    if not documents:
        return _mean([one.seconds for one in first if one.samples("attach_ms") and not one.samples("nll_nats")])
    scored = [(one.seconds, len(one.samples("nll_nats")) - SCORED_TOGETHER) for one in first]
    return _mean([seconds / later * documents for seconds, later in scored if later > 0])


def _tasks_s(plan: Plan, records: Sequence[Record]) -> float | None:
    """By lines of its tasks, in proportion to items; None where one of them is not told."""
    rates: Mapping[str, list[float]] = {ask.name: [] for ask in plan.tasks}
    for record in records:
        for name, facts in record.tasks.items():
            if name in rates and facts.failure is None and len(record.tasks) == 1 and facts.items:
                rates[name].append(record.seconds / facts.items)
    total = 0.0
    for ask in plan.tasks:
        rate, items = _mean(rates[ask.name]), items_of(ask)
        if rate is None or items is None:
            return None
        total += rate * items
    return total
