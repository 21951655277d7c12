"""Tasks of lm-evaluation-harness: scores beside dense's, with latency, memory and energy of the same cases."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tda.derived import Missing
from tda.records import TaskFacts
from tda.statistics import MARGIN
from tda.web.report.comparison import ComparedCase
from tda.web.report.curves import Point, draw_curves, label_points
from tda.web.report.gather import Group
from tda.web.report.scores import multiplicity
from tda.web.report.sections import Block, Content, Plot, Table, section
from tda.web.report.setting import Setting
from tda.web.report.table import Column, difference_column, named, score_column
from tda.web.report.tasks import unlike
from tda.web.theme.figures import INK, label_axes, legend, new_axes, plain_ticks
from tda.web.theme.formatting import interval, listed, number, share, shortened

LEAD = (
    "A score is a mean over a task's items ± its standard error, with a 95% interval in brackets (Wilson's where an "
    "item is right or wrong). A difference to dense is paired over the same items (Tango's interval, or t). “As good "
    f"as dense” means that its interval lies within ±{MARGIN:g} (0.01 of a fraction); “better” and “worse” that it "
    "holds no zero. “–” is missing: hover over it or tap it for the reason."
)

MOST_LETTERS = 36
"""Of a task's name beside a figure's axes."""


@section("tasks", 25, "Tasks")
def tasks_section(group: Group) -> Content | None:
    """One table per setting that was scored on tasks, and a figure per task."""
    blocks = tuple(_block(setting) for setting in group.settings if setting.tasks)
    return Content(LEAD, blocks, "tasks.html", {"answers": bool(group.answers)}) if blocks else None


def _block(setting: Setting) -> Block:
    cases = [case for case in setting.cases if case.tasks or not case.is_control]
    columns = _columns(setting)
    rows = [(case.record.status, [column.cell(case) for column in columns]) for case in cases]
    drawings = [_Drawing.of(setting, task) for task in setting.tasks]
    plots = tuple(_figure(setting, one, place) for place, one in enumerate(drawings, start=1) if one.cases)
    table = Table("Tasks", columns, rows)
    return Block(setting.title, multiplicity(setting), plots, table=table, remarks=_nothing_drawn(drawings))


# The table.


def _columns(setting: Setting) -> list[Column]:
    found = [Column("case", "case", lambda case: case.label, lambda case: "", numeric=False)]
    for task in setting.tasks:
        found += _task_columns(setting, task)
    latency = Column("decode_ms", "decode latency (ms/token)", lambda case: case.decode_ms, _no_latency, text=_resident)
    energy = [column for column in named("energy_j_per_token") if any(column.value(case) for case in setting.cases)]
    return [*found, *named("delta_nll_nats"), latency, *named("speedup", "peak_memory_bytes"), *energy]


def _no_latency(case: ComparedCase) -> str:
    return case.missing("decode_ms")


def _resident(case: ComparedCase, text: str) -> str:
    return f"{text}, cache-resident" if case.cache_resident else text


def _task_columns(setting: Setting, task: str) -> list[Column]:
    name = next(filter(None, (case.headline(task) for case in setting.cases)), None)
    if name is None:
        return []
    score = f"{task}: {name.removeprefix(f'task_{task}_')}"

    def with_error(case: ComparedCase, text: str) -> str:
        error, estimate = case.score_error(name), case.score(name)
        if error is None or estimate is None:
            return text
        bare = number(estimate.value)
        return f"{bare} ± {number(error, 2)}{interval(estimate).removeprefix(bare)}"

    column = score_column(task, name, score)
    is_share = any(case.is_share(name) for case in setting.cases)
    margin = f"margin ±{MARGIN:g}" if is_share else "no margin"
    return [
        Column(column.name, score, column.value, column.missing, text=with_error),
        difference_column(task, f"{task}: difference to dense"),
        Column(
            f"task_{task}_verdict",
            f"{task}: verdict ({margin})",
            lambda case: None if isinstance(found := case.task_verdict(task), Missing) else found,
            lambda case: found.reason if isinstance(found := case.task_verdict(task), Missing) else "",
            numeric=False,
        ),
        Column(
            f"task_{task}_sparse_share",
            f"{task}: tokens computed sparsely (fraction)",
            lambda case: case.record.tasks[task].sparse_share if task in case.tasks else None,
            lambda case: case.score_missing(task),
        ),
    ]


# The figures.


@dataclass(frozen=True)
class _Drawing:
    """The cases that have a place in the figure of a task, and why others have none."""

    task: str
    name: str
    cases: tuple[ComparedCase, ...]
    left_out: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, setting: Setting, task: str) -> "_Drawing":
        cases = [case for case in setting.cases if not case.is_control]
        name = next(filter(None, (case.headline(task) for case in cases)), "")
        facts = next((case.record.tasks[task] for case in cases if task in case.tasks), None)  # dense's come first
        reasons = [(case, _not_drawn(case, task, name, facts)) for case in cases]
        kept = tuple(case for case, reason in reasons if reason is None)
        return cls(task, name, kept, tuple((case.label, reason) for case, reason in reasons if reason is not None))

    @property
    def reasons(self) -> str:
        """Who is left out and why; of the details of one kind the first stands for all."""
        kinds: dict[str, tuple[list[str], str]] = {}
        for label, reason in self.left_out:
            kinds.setdefault(reason.split(":")[0], ([], reason))[0].append(label)
        return "; ".join(f"{listed(labels)} ({reason})" for labels, reason in kinds.values())


def _not_drawn(case: ComparedCase, task: str, name: str, facts: TaskFacts | None) -> str | None:
    """Why a case has no place in the figure of a task; None where it has."""
    if facts is None or not case.samples(name):
        return f"no score: {case.score_missing(task)}"
    if case.decode_ms is None:
        return f"no latency: {case.missing('decode_ms')}"
    return case.cache_resident or unlike(case.record.tasks[task], facts)


def _nothing_drawn(drawings: Iterable[_Drawing]) -> tuple[str, ...]:
    """A sentence for tasks that have no figure, one for all with the same reasons."""
    held: dict[str, list[str]] = {}
    for drawing in drawings:
        if not drawing.cases:
            held.setdefault(drawing.reasons, []).append(drawing.task)
    return tuple(
        f"No figure of {listed(tasks)} against decode latency, since nothing can be drawn: {reasons}."
        for reasons, tasks in held.items()
    )


def _figure(setting: Setting, drawing: _Drawing, place: int) -> Plot:
    """Score against decode latency, an interval on both axes."""
    task, score = drawing.task, drawing.name.removeprefix(f"task_{drawing.task}_")
    points = [_point(case, drawing.name) for case in drawing.cases]
    short = shortened(task, MOST_LETTERS)
    figure, axes = new_axes(f"{short} against decode latency", height=4.3)
    handles = draw_curves(axes, points)
    label_axes(axes, f"Decode latency of {setting.model} (ms per token)", f"{score} of {short}")
    axes.margins(x=0.12, y=0.12)
    plain_ticks(axes, "x")
    plain_ticks(axes, "y")
    dense = next((point.y.value for point in points if point.method == "dense"), None)
    if dense is not None:
        axes.axhline(dense, color=INK, linewidth=0.8, linestyle="--", zorder=1.5)
    legend(figure, handles)
    label_points(figure, axes, points, dense)
    doubtful = [case.label for case in drawing.cases if case.warnings and not case.is_dense]
    caption = f"{score} of {task} against decode latency of {setting.model}: intervals over items and over rounds, "
    caption += "dense dashed; labels are asked sparsity."
    caption += f" Grey, since it cannot be trusted (see the flags): {listed(doubtful)}." if doubtful else ""
    caption += f" Not drawn: {drawing.reasons}." if drawing.left_out else ""
    return Plot(f"task-{place}", figure, caption)


def _point(case: ComparedCase, name: str) -> Point:
    latency, score = case.decode_ms, case.score(name)
    assert latency is not None
    assert score is not None
    text = "" if case.is_dense or case.sparsity is None else share(case.sparsity)
    kind: Any = {"trusted": not case.warnings, "variant": case.variant}
    return Point(case.series, case.method, case.from_other_kind, latency, score, text, **kind)
