"""Run a plan: every model once, its cases interleaved in rounds, records appended as they come."""

import functools
import gc
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from tda import device as facts
from tda import kernels
from tda.bench.measure import Timing, as_scores, peak_memory, time_case
from tda.bench.outcome import absent, doubts, speed
from tda.bench.plan import Plan, Subject, plan_of
from tda.bench.prepare import Prepared, Texts, prepare
from tda.bench.store import Place, Store
from tda.bench.window import GPU_MEASUREMENTS, NO_WINDOW, gpu_use
from tda.contracts import Method
from tda.engine.score import Scores, score
from tda.methods import method as build_method
from tda.metrics import METRICS
from tda.names import Dtype, Execution, Preset
from tda.quality import Document, Evaluator, recall, rows_of
from tda.records import SELECTION_FROM, SPEED, Case, Measurement, Record, Status
from tda.thresholds import Thresholds

OTHER_KIND = "another kind"


@dataclass(frozen=True)
class Cell:
    """A case with what it takes to run it; `control` is the second dense run of a round."""

    case: Case
    method: Method
    thresholds: Thresholds | None
    control: bool = False

    @property
    def other_kind(self) -> bool:
        """Whether its selections come from another document's prompt."""
        return self.case.options.get(SELECTION_FROM) == OTHER_KIND


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


Taken = tuple[Cell, Timing, Span]


@dataclass
class Bench:
    """A plan being run into a folder.

    Attributes
    ----------
    plan : Plan
        What to measure.
    out : Path
        Results folder; an interrupted run's records there are kept and completed.
    texts : Texts
        JSONL files instead of the built-in streams.
    console : Console
        Where progress and notices go.
    trust_remote_code : bool
        As for `tda.load_model`.
    """

    plan: Plan
    out: Path
    texts: Texts = field(default_factory=Texts)
    console: Console = field(default_factory=lambda: Console(stderr=True))
    trust_remote_code: bool = False

    def run(self) -> list[Record]:
        """Measure what is not measured yet; return the folder's merged records.

        Raises
        ------
        ValueError
            If the folder holds results of another commit or machine, or a model, method or text is wrong.
        OSError
            If the folder cannot be written.
        """
        say = self.console.print
        if notice := kernels.notice(self.plan.device):
            say(f"[yellow]{escape(notice)}")
        store = Store(self.out, facts.machine(self.plan.device), facts.commit(), lambda text: say(f"[yellow]{text}"))
        died = store.left_running()
        if died is not None:
            reason = "the process died while it ran this case (killed, or out of memory)"
            store.keep([_record(self.plan, died, "crash", Span.since(time.monotonic()), reason=reason)])
            say(f"[yellow]an earlier run died in {died.case.method} on {died.case.model}; noted")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            for subject in self.plan.subjects:
                _SubjectRun(self, store, subject, progress).run()
                gc.unfreeze()
                gc.collect()
        return store.merged()


def run_bench(
    out: Path | str,
    *,
    preset: Preset = "default",
    model: Sequence[str] = (),
    method: Sequence[str] = (),
    sparsity: Sequence[float] = (),
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    batch: int | None = None,
    rounds: int | None = None,
    documents: int | None = None,
    calibration_documents: int | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    execution: Execution | None = None,
    seed: int | None = None,
) -> list[Record]:
    """Measure a matrix as ``tda bench`` does, without its page: what suites call, on older commits too.

    Parameters
    ----------
    out : Path or str
        Results folder; an interrupted run's records there are kept and completed.
    preset : str
        The matrix; what else is given changes it, with the names and meaning of the command's options.

    Returns
    -------
    list of Record
        The folder's records, the rounds of each case joined.

    Raises
    ------
    ValueError
        If the folder holds results of another commit or machine, or an option is wrong.
    OSError
        If the folder cannot be written.
    """
    plan = plan_of(
        preset,
        model,
        method=tuple(method),
        sparsity=tuple(sparsity),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        rounds=rounds,
        documents=documents,
        calibration_documents=calibration_documents,
        dtype=dtype,
        device=device,
        execution=execution,
        seed=seed,
    )
    return Bench(plan, Path(out), console=Console(stderr=True, quiet=True)).run()


class _SubjectRun:
    """One model of a plan being measured."""

    def __init__(self, bench: Bench, store: Store, subject: Subject, progress: Progress) -> None:
        self.plan = bench.plan
        self.store = store
        self.subject = subject
        self.progress = progress
        self.say = bench.console.print
        self.task = progress.add_task(f"{subject.model}: loading and calibrating", total=None)
        self.prepared: Prepared = prepare(
            bench.plan,
            subject,
            bench.texts,
            folder=bench.out / "thresholds",
            profile=self._profile(),
            say=bench.console.print,
            trust_remote_code=bench.trust_remote_code,
        )

    def run(self) -> None:
        """Measure what needs no repetition, then the timed rounds."""
        plan, subject = self.plan, self.subject
        gc.collect()
        gc.freeze()  # what is loaded stays: the collection before each measurement need not walk it
        for sentence in self.prepared.left_out:
            self.say(f"[yellow]{subject.model}: {sentence}; left out")
        cells = [Cell(plan.case(subject, built), built, thresholds) for built, thresholds in self.prepared.methods]
        timed = [cell for cell in cells if self._is_timed(cell)]
        timed += [Cell(c.case, c.method, c.thresholds, control=True) for c in timed if c.method.name == "dense"]
        first = [*cells, *self._other_kind()] if subject.quality else timed
        total = len(first) + plan.rounds * len(timed)
        what = "quality" if subject.quality else "memory"
        self.progress.update(self.task, total=total, description=f"{subject.model}: {what}")
        self._first_round(first)
        for number in range(1, plan.rounds + 1):
            self.progress.update(self.task, description=f"{subject.model}: round {number} of {plan.rounds}")
            self._round(timed, number)
        self.progress.remove_task(self.task)

    def _is_timed(self, cell: Cell) -> bool:
        wanted = cell.method.name in ("dense", *self.plan.speed_methods)  # every ratio needs dense
        return self.subject.speed and wanted and cell.method.fast and not cell.other_kind

    def _profile(self) -> dict[tuple[str, float | None], Sequence[float]] | None:
        """Achieved sparsity per layer of the model that this one is to imitate; empty for other shapes."""
        if self.subject.layer_profile is None:
            return {} if not self.subject.quality else None
        return {
            (record.case.method, record.case.sparsity): record.achieved_sparsity
            for record in self.store.merged()
            if record.case.model == self.subject.layer_profile and record.achieved_sparsity
        }

    def _other_kind(self) -> list[Cell]:
        """Griffin with the selection of another kind's prompt: what a prompt's own selection is worth."""
        kinds = {document.kind for document in self.prepared.scored}
        if len(kinds) < 2 or "griffin" not in self.plan.methods:
            return []
        built = [build_method("griffin", sparsity) for sparsity in dict.fromkeys(self.plan.sparsities)]
        extra = {SELECTION_FROM: OTHER_KIND}
        return [Cell(self.plan.case(self.subject, method, extra), method, None) for method in built]

    def _execution(self, method: Method) -> Execution:
        """The asked execution, or "auto" for a method that cannot run it."""
        asked = self.plan.execution
        return asked if asked in method.executions else "auto"

    # Round 0: what needs no repetition.

    def _first_round(self, cells: Sequence[Cell]) -> None:
        evaluator = Evaluator(self.prepared.model, self.prepared.scored)
        for cell in cells:
            place = Place(cell.case, cell.control, 0)
            if self.store.missing(place):
                self._guarded(place, functools.partial(self._first, evaluator, cell))
            self.progress.advance(self.task)

    def _first(self, evaluator: Evaluator, cell: Cell) -> None:
        started = time.monotonic()
        measurements: dict[str, Measurement] = {}
        achieved: tuple[float, ...] = ()
        if self.subject.quality:
            measurements, achieved = self._quality(evaluator, cell)
        measurements |= self._memory(cell)
        for name, measurement in absent(self._reasons(cell)).items():
            measurements.setdefault(name, measurement)
        record = _record(
            self.plan,
            Place(cell.case, cell.control, 0),
            "ok",
            Span.since(started),
            measurements=measurements,
            achieved_sparsity=achieved,
            execution="dense" if cell.method.name == "dense" else "masked" if self.subject.quality else None,
            backend="torch" if self.subject.quality else None,
        )
        self.store.keep([record])

    def _quality(self, evaluator: Evaluator, cell: Cell) -> tuple[dict[str, Measurement], tuple[float, ...]]:
        """Scores over documents, and recall; the achieved sparsity per layer."""
        scored, questions = self.prepared.scored, self.prepared.questions
        select_on = [*scored[1:], scored[0]] if cell.other_kind else None
        result = evaluator.evaluate(cell.method, cell.thresholds, select_on)
        measurements = result.measurements()
        if questions and not cell.other_kind:
            measurements |= recall(self.prepared.model, cell.method, cell.thresholds, questions)
        return measurements, result.achieved_sparsity

    def _memory(self, cell: Cell) -> dict[str, Measurement]:
        if not self._is_timed(cell):
            return {}
        batch = self.prepared.timed[: self.plan.batch]
        execution = self._execution(cell.method)
        peak, problem = peak_memory(self.prepared.model, cell.method, cell.thresholds, batch, execution)
        if peak is None:
            return absent({"peak_memory_bytes": problem or "unknown"})
        return {"peak_memory_bytes": Measurement.of("peak_memory_bytes", [peak])}

    def _reasons(self, cell: Cell) -> dict[str, str]:
        """Why a measurement that was not taken is missing."""
        subject = self.subject
        noise = f"{subject.model} has random weights: its text is noise"
        per_token = "chosen per token: no set per prompt"
        reasons = dict.fromkeys(METRICS, noise) | {"selection_digest": per_token if subject.quality else noise}
        if self._is_timed(cell):
            return reasons
        if not cell.method.fast:
            why = "no kernel skips what it leaves out: masked execution has no speed"
        else:
            why = "not timed: only its quality is measured here" if subject.quality else "not among the timed methods"
        return reasons | dict.fromkeys((*SPEED, "peak_memory_bytes"), why)

    # Timed rounds.

    def _round(self, cells: Sequence[Cell], number: int) -> None:
        """Run every case once, then append the round's records together: they are paired with its dense run.

        The order is drawn for two rounds at a time, the second the mirror of the first.
        """
        places = [Place(cell.case, cell.control, number) for cell in cells]
        if not any(self.store.missing(place) for place in places):
            self.progress.advance(self.task, len(cells))
            return
        order = list(zip(cells, places, strict=True))
        random.Random(f"{self.plan.seed}/{self.subject.model}/{(number - 1) // 2}").shuffle(order)
        if number % 2 == 0:
            order.reverse()
        timings: list[Taken] = []
        for cell, place in order:
            self._guarded(place, functools.partial(self._time, cell, number, timings))
            self.progress.advance(self.task)
        dense = next((timing for cell, timing, _ in timings if cell.method.name == "dense" and not cell.control), None)
        reference = self._reference(number) if self.subject.quality else None
        self.store.keep([self._timed_record(*taken, dense, number, reference) for taken in timings])

    def _time(self, cell: Cell, number: int, timings: list[Taken]) -> None:
        started = time.monotonic()
        timing = time_case(
            self.prepared.model,
            cell.method,
            cell.thresholds,
            self._documents(number),
            self._execution(cell.method),
            keep_logits=self.subject.quality,
        )
        timings.append((cell, timing, Span.since(started)))

    def _gpu_use(self, cell: Cell, number: int) -> dict[str, Measurement]:
        """The telemetry pass of a case, when all times of the round are taken; if it fails, those stay."""
        if self.plan.device == "cpu":
            return absent(dict.fromkeys(GPU_MEASUREMENTS, NO_WINDOW))
        try:
            with self.store.running(Place(cell.case, cell.control, number)):
                return gpu_use(
                    self.prepared.model,
                    cell.method,
                    cell.thresholds,
                    self._documents(number),
                    self._execution(cell.method),
                )
        except Exception as error:
            reason = f"the telemetry pass failed: {type(error).__name__}: {error}"
            return absent(dict.fromkeys(GPU_MEASUREMENTS, reason))

    def _documents(self, number: int) -> Sequence[Document]:
        """The documents of a timed round, one per row."""
        return self.prepared.timed[(number - 1) * self.plan.batch : number * self.plan.batch]

    def _timed_record(
        self,
        cell: Cell,
        timing: Timing,
        span: Span,
        dense: Timing | None,
        number: int,
        reference: Scores | None,
    ) -> Record:
        measurements = self._gpu_use(cell, number) | speed(timing, dense)
        first = self.plan.documents + (number - 1) * self.plan.batch
        if reference is not None:
            measurements |= self._timed_quality(timing, number, first, reference)
        if timing.digest is not None:
            measurements["selection_digest"] = Measurement.of("selection_digest", [timing.digest], [first])
        return _record(
            self.plan,
            Place(cell.case, cell.control, number),
            "ok",
            span,
            measurements=measurements,
            achieved_sparsity=timing.achieved_sparsity,
            execution=timing.execution,
            backend=timing.backend,
            flags=doubts(timing, self.plan.device, self.plan.rounds),
        )

    def _round_rows(self, number: int) -> tuple[Tensor, Tensor]:
        return rows_of(self._documents(number), next(self.prepared.model.parameters()).device)

    def _reference(self, number: int) -> Scores:
        """Dense scores of a round's documents: what every case of the round is compared with."""
        return score(self.prepared.model, build_method("dense"), *self._round_rows(number))

    def _timed_quality(self, timing: Timing, number: int, first: int, reference: Scores) -> dict[str, Measurement]:
        """Quality of the very tokens that were timed, against a dense pass over the same documents."""
        scores = as_scores(timing, self._round_rows(number)[1])
        groups = range(first, first + self.plan.batch)
        return {
            name: Measurement.of(name, metric(scores, reference).tolist(), groups) for name, metric in METRICS.items()
        }

    # Failures.

    def _guarded(self, place: Place, work: Callable[[], None]) -> None:
        """Run work for a case: its failure is a record; a death of the process leaves a marker for the next run."""
        started = time.monotonic()
        with self.store.running(place):
            try:
                work()
            except Exception as error:  # a failing case is a record, and the others go on
                status: Status = "oom" if _is_out_of_memory(error) else "error"
                reason = f"{type(error).__name__}: {error}"
                self.store.keep([_record(self.plan, place, status, Span.since(started), reason=reason)])
                self.say(f"[red]{place.case.method} on {place.case.model} failed: {reason.splitlines()[0]}")


def _record(plan: Plan, place: Place, status: Status, span: Span, **found: Any) -> Record:
    return Record(
        case=place.case,
        round=place.round,
        control=place.control,
        commit=facts.commit(),
        machine=facts.machine(plan.device),
        status=status,
        conditions={
            "threads": float(torch.get_num_threads()),
            "load_average": os.getloadavg()[0],
            "kernels": str(kernels.backend(plan.device)),
        },
        started=span.started,
        seconds=span.seconds,
        **found,
    )


def _is_out_of_memory(error: Exception) -> bool:
    words = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "out of memory" in words or "can't allocate" in words
