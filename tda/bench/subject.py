"""One model of a plan being measured: quality, memory, then timed rounds, as far as the time goes."""

import functools
import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from tda import device as facts
from tda.bench.budget import FIRST_LOOKS, Deadline, OutOfTimeError, duration
from tda.bench.cells import PlannedCase, Span, by_worth, essential, new_record
from tda.bench.plan import Plan, Subject
from tda.bench.prepare import expected_seconds, prepare
from tda.bench.progress import Steps
from tda.bench.rounds import Rounds
from tda.bench.scoring import Scoring
from tda.bench.stage import StageContext
from tda.bench.store import RecordPlace, Store
from tda.cases import Control, Inputs, MethodSpec
from tda.engine.plain import notice
from tda.finite import NotFiniteError
from tda.records import LeftOut

logger = logging.getLogger(__name__)


# long: its parameters are explained
def measure_model(
    plan: Plan,
    subject: Subject,
    store: Store,
    progress: Steps,
    deadline: Deadline,
    command: str,
) -> list[LeftOut]:
    """Measure one model of a plan, as far as there is time; return what there was no time for.

    Parameters
    ----------
    plan, subject
        What is measured.
    store : Store
        Where records go.
    progress : Steps
        Told of every step.
    deadline : Deadline
        When this model's measuring is to have ended.
    command : str
        What measures that which there was no time for.

    Raises
    ------
    ValueError
        As `prepare`; a model that is not finite, and of several models one that cannot be prepared, is a failed record
        instead.
    """
    if (late := _no_time(plan, subject, deadline)) is not None:
        return [LeftOut(model=subject.model, what="everything", reason=late, command=command)]
    progress.stage(f"{subject.model}: loading and calibrating", 0)
    started = time.monotonic()
    try:
        prepared = prepare(
            plan,
            subject,
            folder=store.folder / "thresholds",
            profile=_profile(subject, store),
            deadline=deadline,
        )
    except OutOfTimeError:
        reason = "calibration takes longer than there is time"
        return [LeftOut(model=subject.model, what="everything", reason=reason, command=command)]
    except Exception as error:  # one bad model of several is a record, and the others go on
        if len(plan.subjects) == 1 and not isinstance(error, NotFiniteError):
            raise
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        dense = RecordPlace(plan.case(subject, next(plan.build())), Inputs(change=facts.commit().change), 0)
        store.keep([new_record(plan, dense, "error", Span.since(started), reason=reason)])
        logger.error(f"{subject.model} is not measured: {reason}")
        return []
    stage = StageContext(plan, subject, prepared, store, progress, command)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collection before each measurement need not walk it
    try:
        for sentence in prepared.left_out:
            logger.warning(f"{subject.model}: {sentence}; left out")
        if told := notice(prepared.model):
            logger.warning(f"{subject.model}: {told}")
        _run(stage, deadline)
    finally:
        gc.unfreeze()
    return stage.left_out


def _no_time(plan: Plan, subject: Subject, deadline: Deadline) -> str | None:
    """Why a model is not even loaded; None where there is time."""
    if not deadline.is_set:
        return None
    if deadline.left <= 0:
        return "no time"
    needed = expected_seconds(plan, subject)
    return f"loading and calibrating take about {duration(needed)}" if needed > deadline.left else None


def _run(stage: StageContext, deadline: Deadline) -> None:
    """Measure what needs no repetition, then the timed rounds."""
    rounds = Rounds(stage, deadline)
    try:
        dense_s = rounds.pace() if deadline.is_set and stage.subject.speed else 0.0
    except NotFiniteError:
        dense_s = 0.0  # every case that meets it again is a record that tells of it
    cells = by_worth(stage.plan, _cells(stage))
    if told := stage.store.reused((cell.case, cell.inputs) for cell in cells):
        logger.info(f"{stage.subject.model}: {told}")
    timed = [cell for cell in cells if stage.is_timed(cell)]
    if stage.scores_documents:
        Scoring(stage, deadline).run(cells, deadline.part(1 / 3) if timed else deadline)
        _remembered(stage, [cell for cell in timed if cell.case.control], deadline)
    else:
        timed = _remembered(stage, timed, deadline)
    if stage.prepared.tasks:
        from tda.bench.tasks import Tasks  # imports lm-eval

        Tasks(stage, deadline.part(1 / 2) if timed else deadline).run(cells)
    if timed:
        rounds.run(timed, dense_s)


def _cells(stage: StageContext) -> list[PlannedCase]:
    """Every case, with dense's control where it is timed, and the controls of quality."""
    plan, subject = stage.plan, stage.subject
    cells = [PlannedCase(plan.case(subject, built), inputs, built) for built, inputs in stage.prepared.methods]
    controls = [_control(cell, "a_a") for cell in cells if cell.method.name == "dense" and stage.is_timed(cell)]
    if stage.scores_documents and len({document.kind for document in stage.prepared.scored}) > 1:
        controls += [_control(cell, "cross_domain") for cell in cells if cell.method.name == "griffin"]
    return [*cells, *controls]


def _control(cell: PlannedCase, control: Control) -> PlannedCase:
    """A cell's second run, or with the selection of another kind's prompt: what a prompt's own selection is worth."""
    return replace(cell, case=cell.case.model_copy(update={"control": control}))


def _profile(subject: Subject, store: Store) -> dict[MethodSpec, Sequence[float]] | None:
    """Achieved sparsity per layer of the model that this one is to imitate; empty for other shapes."""
    if subject.layer_sparsity_from is None:
        return {} if not subject.quality else None
    return {
        record.case.spec: record.achieved_sparsity
        for record in store.merged(requested=True)
        if record.case.model == subject.layer_sparsity_from and record.achieved_sparsity
    }


def _remembered(stage: StageContext, cells: Sequence[PlannedCase], deadline: Deadline) -> list[PlannedCase]:
    """Peak memory of a first request of each cell, as far as there is time; the cells that are to be timed."""
    stage.progress.stage(f"{stage.subject.model}: memory", len(cells))
    kept, looks = essential(stage.plan, cells), deadline.part(FIRST_LOOKS)
    for number, cell in enumerate(cells):
        if looks.left <= 0:
            stage.leave_out(cells[number : max(number, kept)], "memory", "no time")
            stage.leave_out(cells[max(number, kept) :], "memory and speed", "no time for a first pass")
            return list(cells[: max(number, kept)])
        if stage.store.missing(cell.place(0)):
            stage.guarded(cell.place(0), functools.partial(_remember, stage, cell))
        stage.progress.advance()
    return list(cells)


def _remember(stage: StageContext, cell: PlannedCase) -> None:
    started = time.monotonic()
    stage.keep_first(cell, started, stage.memory(cell), ())
