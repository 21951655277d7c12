"""The paper's layout: tasks by model, and within a model dense, TT, Griffin and TDA at each sparsity."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from tda.records import TaskFacts
from tda.statistics import Estimate, average
from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.report.setting import Setting
from tda.web.report.tasks import apart, unlike
from tda.web.theme.formatting import MISSING, interval, share

METHODS = ("dense", "tt", "griffin", "tda")
"""In the order of the paper's columns."""
NOT_RUN = "not yet run"
AVERAGE = "average"


@dataclass(frozen=True)
class Published:
    """What a paper states of its method's latency."""

    method: str
    model: str
    hardware: str
    source: str
    latency: str = MISSING
    speedup: str = MISSING


PUBLISHED = (
    Published("tda", "several", "A100 80GB", "First Activations Matter, 2024", latency="18–25% lower"),
    Published("griffin", "Gemma-7B", "L40", "GRIFFIN, 2024", speedup="1.29×"),
    Published("griffin", "Llama-2-13B", "L40", "GRIFFIN, 2024", speedup="1.25×"),
)


@dataclass(frozen=True)
class ScoreCell:
    """A score or why there is none; `note` says what is to be known of a score."""

    value: Estimate | None
    items: int | None = None
    note: str = ""

    @property
    def text(self) -> str:
        """As the table shows it."""
        if self.value is not None:
            return interval(self.value)
        return NOT_RUN if self.note == NOT_RUN else MISSING


@dataclass(frozen=True)
class Model:
    """A setting of a trained model, what tells it from others, and the group that it was measured in."""

    name: str
    setting: Setting
    group: Group

    @property
    def machine(self) -> str:
        """What it ran on."""
        return self.group.machine.gpu or self.group.machine.cpu

    @cached_property
    def cases(self) -> dict[str, ComparedCase]:
        """The paper's methods by label, without controls."""
        cases = (case for case in self.setting.cases if case.record.case.control is None)
        return {case.label: case for case in cases if case.method in METHODS}

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks that one of the paper's methods was scored on."""
        return list(dict.fromkeys(task for case in self.cases.values() for task in case.tasks))

    def facts(self, task: str) -> TaskFacts | None:
        """What its scores of a task are of; of dense where it was scored."""
        return next((case.record.tasks[task] for case in self.cases.values() if task in case.tasks), None)

    def cell(self, label: str, task: str) -> ScoreCell:
        """A case's score of a task; unlike questions than dense's are no cell of one row."""
        case = self.cases.get(label)
        if case is None or (task not in case.tasks and case.record.status == "ok"):
            return ScoreCell(None, note=NOT_RUN)
        value, facts = case.score(case.headline(task)), self.facts(task)
        if value is None or facts is None:
            return ScoreCell(None, note=case.score_missing(task))
        why = unlike(case.record.tasks[task], facts)
        return ScoreCell(value, value.groups) if why is None else ScoreCell(None, note=why)


@dataclass(frozen=True)
class Paper:
    """Everything that the paper's tables hold: models of all machines and commits."""

    models: tuple[Model, ...]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "Paper | None":
        """None where fewer than two trained models were scored on one task."""
        held = [(setting, group) for group in groups for setting in group.settings if _is_scored(setting)]
        known = Counter(setting.model for setting, _ in held)
        models = []
        for setting, group in held:
            name = setting.name_among([other for other, its in held if its is group])
            apart = f" (group {group.number})" if known[setting.model] > 1 and len(groups) > 1 else ""
            models.append(Model(name + apart, setting, group))
        models = [model for model in models if model.tasks]
        shared = ({model.setting.model for model in models if task in model.tasks} for task in _tasks(models))
        return cls(tuple(models)) if any(len(names) > 1 for names in shared) else None

    @cached_property
    def labels(self) -> list[str]:
        """Methods in the paper's order, each at every sparsity that some method was run at."""
        held = [case for model in self.models for case in model.cases.values()]
        sparsities = {case.record.case.sparsity for case in held if case.method != "dense"}
        requested = sorted(sparsity for sparsity in sparsities if sparsity is not None)
        found: list[str] = []
        for method in METHODS:
            own = sorted((case for case in held if case.method == method), key=lambda case: case.sparsity or 0.0)
            plain = ["dense"] if method == "dense" else [f"{method} {share(sparsity)}" for sparsity in requested]
            found += dict.fromkeys([*plain, *(case.label for case in own)])
        return found

    @property
    def tasks(self) -> list[str]:
        """The rows."""
        return _tasks(self.models)

    def score(self, task: str) -> str:
        """The name of a row's score."""
        names = (case.headline(task) for model in self.models for case in model.cases.values())
        return next((name.removeprefix(f"task_{task}_") for name in names if name is not None), "")

    def average(self, model: Model, label: str) -> ScoreCell:
        """Mean over the rows, which all must be there: part of them is another mean."""
        cells = [model.cell(label, task) for task in self.tasks]
        values = [cell.value for cell in cells if cell.value is not None]
        if len(values) < len(cells):
            return ScoreCell(None, note=NOT_RUN if not values else "not all tasks were scored")
        if not all(self.is_share(task) for task in self.tasks):
            return ScoreCell(None, note="scores of unlike units have no mean")
        return ScoreCell(average(values))

    def is_share(self, task: str) -> bool:
        """Whether the score of a row lies within 0 and 1."""
        found = ((case, case.headline(task)) for model in self.models for case in model.cases.values())
        return all(case.is_share(name) for case, name in found if name is not None)

    def rows(self) -> list[tuple[str, list[ScoreCell]]]:
        """Task with score, and a cell for each model and label; the average last."""
        columns = [(model, label) for model in self.models for label in self.labels]
        rows = [
            (f"{task} ({self.score(task)})", [model.cell(label, task) for model, label in columns])
            for task in self.tasks
        ]
        return [*rows, (AVERAGE, [self.average(model, label) for model, label in columns])]

    def remarks(self) -> list[str]:
        """Rows whose models were not asked alike."""
        found = []
        for task in self.tasks:
            held = [(model.name, facts) for model in self.models if (facts := model.facts(task)) is not None]
            (first, known), *others = held
            notes = [f"{name}: {'; '.join(words)}" for name, facts in others if (words := apart(facts, known, first))]
            found += [f"{task} was not asked alike of all models ({'; '.join(notes)})."] if notes else []
        return found

    def latency(self) -> list[tuple[str, ...]]:
        """Published latencies, then ours: source, method, model, hardware, generation twice, decode."""
        rows: list[tuple[str, ...]] = [
            (f"published ({one.source})", one.method, one.model, one.hardware, one.latency, one.speedup, MISSING)
            for one in PUBLISHED
        ]
        for model in self.models:
            for label in self.labels:
                if label.split()[0] in ("tda", "griffin"):
                    case = model.cases.get(label)
                    resident = " (cache-resident)" if case is not None and case.cache_resident else ""
                    rows.append(("ours", label, model.name + resident, model.machine, *_times(case)))
        return rows


def _is_scored(setting: Setting) -> bool:
    """Whether a trained model was scored on tasks."""
    return bool(setting.tasks) and setting.cases[0].record.inputs.weights is not None


def _tasks(models: Iterable[Model]) -> list[str]:
    return list(dict.fromkeys(task for model in models for task in model.tasks))


def _times(case: ComparedCase | None) -> tuple[str, str, str]:
    """By how much generation takes less time, and the speed-ups of generation and decode."""
    faster = case.faster("generation_ms") if case is not None else None
    decode = case.speedup if case is not None else None
    return (
        NOT_RUN if faster is None else _lower(faster),
        NOT_RUN if faster is None else interval(faster, unit="×"),
        NOT_RUN if decode is None else interval(decode, unit="×"),
    )


def _lower(faster: Estimate) -> str:
    """Part of the time that is saved, or where it is more than dense's, by how much."""
    sign, word = (1, "lower") if faster.value >= 1 else (-1, "higher")
    text = f"{100 * sign * (1 - 1 / faster.value):.0f}% {word}"
    if faster.low is None or faster.high is None:
        return text
    low, high = sorted(100 * sign * (1 - 1 / bound) for bound in (faster.low, faster.high))
    return f"{text} [{low:.0f}, {high:.0f}]"


def paper_frame(groups: Sequence[Group]) -> pd.DataFrame | None:
    """Every cell as a row with plain numbers; None where there are no tables as the paper's."""
    paper = Paper.of(groups)
    if paper is None:
        return None
    rows = []
    for model in paper.models:
        for label in paper.labels:
            cells = [(task, paper.score(task), model.cell(label, task)) for task in paper.tasks]
            for task, score, cell in [*cells, (AVERAGE, "", paper.average(model, label))]:
                value = cell.value or Estimate(float("nan"), None, None, 0)
                rows.append({
                    "machine": model.group.machine.fingerprint,
                    "commit": model.group.commit.hash,
                    "task": task,
                    "score": score,
                    "model": model.name,
                    "method": label,
                    "value": value.value,
                    "low": value.low,
                    "high": value.high,
                    "items": cell.items,
                    "note": cell.note,
                })  # fmt: skip
    return pd.DataFrame(rows).astype({"items": "Int64"})
