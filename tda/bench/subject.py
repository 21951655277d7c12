"""One model of a plan being measured: quality, memory, then timed rounds, as far as the time goes."""

import functools
import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tda.bench.budget import FIRST_LOOKS, LEAST_DOCUMENTS, MARGIN, Deadline, take
from tda.bench.cells import OTHER_KIND, Cell, Span, by_worth, essential, new_record
from tda.bench.measure import Timing, as_scores, peak_memory, time_case
from tda.bench.outcome import absent, doubts, speed
from tda.bench.plan import Plan, Subject
from tda.bench.prepare import Prepared, Texts, prepare
from tda.bench.progress import Progress
from tda.bench.store import Place, Store
from tda.bench.window import GPU_MEASUREMENTS, NO_WINDOW, gpu_use
from tda.contracts import Method
from tda.engine.score import Scores, score
from tda.limits import Stream
from tda.methods import method as build_method
from tda.metrics import METRICS
from tda.names import Execution
from tda.quality import Document, Evaluation, Evaluator, recall, rows_of
from tda.records import SELECTION_FROM, SPEED, LeftOut, Measurement, Record, Status
from tda.statistics import MIN_GROUPS, is_baseline, speedup
from tda.thresholds import Thresholds

SCORED_TOGETHER = 8
"""Documents of a batch of quality."""

Took = tuple[Cell, Timing, Span]


class SubjectRun:
    """One model of a plan being measured.

    Parameters
    ----------
    plan, subject
        What is measured.
    texts : Texts
        JSONL files instead of the built-in streams.
    folder : Path
        The results folder.
    store : Store
        Where records go.
    progress : Progress
        Told of every step.
    say : callable
        Told, in a sentence, what a user should know.
    deadline : Deadline
        When this model's measuring is to have ended.
    command : str
        What measures that which the deadline left out.
    trust_remote_code : bool
        As for `tda.load_model`.

    Attributes
    ----------
    left_out : list of LeftOut
        What the deadline left no time for.
    """

    def __init__(
        self,
        plan: Plan,
        subject: Subject,
        texts: Texts,
        folder: Path,
        store: Store,
        progress: Progress,
        say: Callable[[str], None],
        deadline: Deadline,
        command: str,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self.plan = plan
        self.subject = subject
        self.store = store
        self.progress = progress
        self.say = say
        self.deadline = deadline
        self._command = command
        self.left_out: list[LeftOut] = []
        progress.stage(f"{subject.model}: loading and calibrating", 0)
        self.prepared: Prepared = prepare(
            plan,
            subject,
            texts,
            folder=folder / "thresholds",
            profile=self._profile(),
            say=say,
            trust_remote_code=trust_remote_code,
        )
        self._stream: Stream | None = None

    def run(self) -> None:
        """Measure what needs no repetition, then the timed rounds."""
        plan, subject = self.plan, self.subject
        gc.collect()
        gc.freeze()  # what is loaded stays: the collection before each measurement need not walk it
        for sentence in self.prepared.left_out:
            self.say(f"[yellow]{subject.model}: {sentence}; left out")
        dense_s = None
        if self.deadline.is_set and subject.speed:
            dense_s = self._rehearse()
        cells = by_worth(plan, self._cells())
        timed = [cell for cell in cells if self._is_timed(cell)]
        if subject.quality:
            self._scored(cells, self.deadline.part(1 / 3) if timed else self.deadline)
        else:
            timed = self._memorised(timed)
        if timed:
            self._timed(timed, dense_s)

    def _cells(self) -> list[Cell]:
        """Every case, with dense's control where it is timed, and the controls of quality."""
        cells = [
            Cell(self.plan.case(self.subject, built), built, thresholds) for built, thresholds in self.prepared.methods
        ]
        controls = [
            replace(cell, control=True) for cell in cells if cell.method.name == "dense" and self._is_timed(cell)
        ]
        return [*cells, *controls, *(self._other_kind() if self.subject.quality else [])]

    # What is left out.

    def _leave_out(self, cells: Sequence[Cell], what: str, reason: str) -> None:
        if cells:
            named = ", ".join(dict.fromkeys(cell.name for cell in cells))
            self._note(f"{what} of {named}", reason)

    def _note(self, what: str, reason: str) -> None:
        self.left_out.append(LeftOut(model=self.subject.model, what=what, reason=reason, command=self._command))

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

    # Quality.

    def _scored(self, cells: Sequence[Cell], deadline: Deadline) -> None:
        """Score cells on as many documents as fit: all alike, so that they can be compared."""
        model, documents = self.subject.model, self.prepared.scored
        cells = [cell for cell in cells if not cell.control and self._lacks_quality(cell)]
        evaluator = Evaluator(self.prepared.model, documents, batch=SCORED_TOGETHER)
        begun: dict[tuple[str, bool], Evaluation] = {}
        costs: list[float] = []
        self.progress.stage(f"{model}: quality, the first {min(SCORED_TOGETHER, len(documents))} documents", len(cells))
        kept, looks = essential(self.plan, cells), deadline.part(0.5)
        for number, cell in enumerate(cells):
            if looks.left <= 0 and number >= kept:
                self._leave_out(cells[number:], "quality", "no time for a first look")
                break
            started = time.monotonic()
            begun[cell.series] = Evaluation()
            self._guarded(
                Place(cell.case, cell.control, 0),
                functools.partial(
                    evaluator.add, begun[cell.series], 0, cell.method, cell.thresholds, self._source(cell)
                ),
            )
            costs.append(time.monotonic() - started)
            self.progress.advance()
        least = min(-(-LEAST_DOCUMENTS // SCORED_TOGETHER), len(evaluator.batches))
        seconds = deadline.left * MARGIN + sum(costs)
        factor = self._recall_factor(costs[0]) if costs else 1.0
        taken = take([cost * factor for cost in costs], kept, least, seconds)
        batches = min(taken.times, len(evaluator.batches)) if deadline.is_set else len(evaluator.batches)
        chosen = [cell for cell in cells[: taken.cases] if begun[cell.series].documents]
        self._leave_out(cells[taken.cases : len(costs)], "quality", "no time")
        count = min(batches * SCORED_TOGETHER, len(documents))
        if count < len(documents):
            self._note(f"quality on documents beyond {count} of {len(documents)}", "no time")
        if deadline.is_set:
            self.say(f"{model}: quality of {len(chosen)} of {len(cells)} cases on {count} documents fits")
        self.progress.stage(f"{model}: quality", len(chosen))
        for number, cell in enumerate(chosen):
            if deadline.left <= 0 and number >= kept:
                self._leave_out(chosen[number:], "quality", "it took longer than the first look promised")
                break
            finish = functools.partial(self._finish, evaluator, batches, begun[cell.series], cell)
            self._guarded(Place(cell.case, cell.control, 0), finish)
            self.progress.advance()

    def _lacks_quality(self, cell: Cell) -> bool:
        """Whether a cell has no quality yet; without a deadline, whether it has it on fewer documents than asked."""
        place = Place(cell.case, cell.control, 0)
        found = self.store.found(place)
        if found is None or self.deadline.is_set:
            return self.store.missing(place)
        return len(found.samples("nll_nats")) < len(self.prepared.scored)

    def _recall_factor(self, dense_s: float) -> float:
        """What recall makes of the cost of a batch of documents, measured on dense."""
        questions = self.prepared.questions[:SCORED_TOGETHER]
        if not questions or not self.deadline.is_set:
            return 1.0
        started = time.monotonic()
        recall(self.prepared.model, build_method("dense"), None, questions)
        return 1.0 + (time.monotonic() - started) / max(dense_s, 1e-3)

    def _source(self, cell: Cell) -> Sequence[Document] | None:
        """Documents that a control's selections are taken from."""
        scored = self.prepared.scored
        return [*scored[1:], scored[0]] if cell.other_kind else None

    def _finish(self, evaluator: Evaluator, batches: int, result: Evaluation, cell: Cell) -> None:
        """Score the rest of the documents, ask for recall, and keep a record."""
        started = time.monotonic()
        for number in range(1, batches):
            evaluator.add(result, number, cell.method, cell.thresholds, self._source(cell))
        measurements = result.measurements()
        questions = self.prepared.questions[: batches * SCORED_TOGETHER]
        if questions and not cell.other_kind:
            measurements |= recall(self.prepared.model, cell.method, cell.thresholds, questions)
        measurements |= self._memory(cell) if self._is_timed(cell) else {}
        ran = "dense" if cell.method.name == "dense" else "masked"
        self._keep_first(cell, started, measurements, result.achieved_sparsity, execution=ran, backend="torch")

    # Memory.

    def _memorised(self, cells: Sequence[Cell]) -> list[Cell]:
        """Peak memory of a first request of each cell, as far as there is time; the cells that got it."""
        self.progress.stage(f"{self.subject.model}: memory", len(cells))
        kept, looks = essential(self.plan, cells), self.deadline.part(FIRST_LOOKS)
        for number, cell in enumerate(cells):
            if looks.left <= 0 and number >= kept:
                self._leave_out(cells[number:], "memory and speed", "no time for a first pass")
                return list(cells[:number])
            place = Place(cell.case, cell.control, 0)
            if self.store.missing(place):
                self._guarded(place, functools.partial(self._remember, cell))
            self.progress.advance()
        return list(cells)

    def _remember(self, cell: Cell) -> None:
        started = time.monotonic()
        self._keep_first(cell, started, self._memory(cell), ())

    def _memory(self, cell: Cell) -> dict[str, Measurement]:
        batch = self.prepared.timed[: self.plan.batch]
        execution = self._execution(cell.method)
        peak, problem = peak_memory(self.prepared.model, cell.method, cell.thresholds, batch, execution)
        if peak is None:
            return absent({"peak_memory_bytes": problem or "unknown"})
        return {"peak_memory_bytes": Measurement.of("peak_memory_bytes", [peak])}

    def _keep_first(
        self,
        cell: Cell,
        started: float,
        measurements: dict[str, Measurement],
        achieved: tuple[float, ...],
        **ran: str,
    ) -> None:
        """Keep the record of round 0."""
        for name, measurement in absent(self._reasons(cell)).items():
            measurements.setdefault(name, measurement)
        place = Place(cell.case, cell.control, 0)
        self.store.keep(
            [
                new_record(
                    self.plan,
                    place,
                    "ok",
                    Span.since(started),
                    measurements=measurements,
                    achieved_sparsity=achieved,
                    **ran,
                )
            ]
        )

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

    def _rehearse(self) -> float:
        """Seconds that a round of dense takes, measured once; a shape whose cases do not fit gets fewer new tokens."""
        self.progress.stage(f"{self.subject.model}: one round of dense", 0)
        dense = next(built for built, _ in self.prepared.methods if built.name == "dense")
        started = time.monotonic()
        timing = self._measure(dense, None, self._documents(1))
        seconds = time.monotonic() - started
        if self.subject.quality:
            return seconds
        step_s = sum(timing.decode_ms) / len(timing.decode_ms) / 1000
        before = after = self.subject.new_tokens
        cases = len(self.plan.speed_methods) + 2
        while after >= 16 and seconds * cases * MIN_GROUPS > self.deadline.left * MARGIN:
            seconds -= step_s * after  # half of the steps, timed and generated
            after //= 2
        if after < before:
            self._note(f"new tokens beyond {after} of {before}", "no time")
            self.subject = replace(self.subject, new_tokens=after)
            self.prepared.timed = [
                replace(document, continuation=document.continuation[:after]) for document in self.prepared.timed
            ]
        return seconds

    def _timed(self, cells: Sequence[Cell], dense_s: float | None) -> None:
        """Rounds of the cells, until each has been measured as often as asked, or exactly enough, or time is up."""
        model, active = self.subject.model, list(cells)
        costs = {cell.series: dense_s or 0.0 for cell in cells}
        for number in itertools.count(1):
            active = [cell for cell in active if not self._is_narrow(cell)]
            if number > self._last_round(active):
                return
            wanted = max(MIN_GROUPS - number + 1, 1)
            seconds = self.deadline.left * MARGIN
            taken = take([costs[cell.series] for cell in active], essential(self.plan, active), wanted, seconds)
            if number > MIN_GROUPS and taken.cases < len(active):
                return
            self._leave_out(active[taken.cases :], f"rounds from {number} on", "no time")
            active = active[: taken.cases]
            if not active:
                return
            rounds = min(taken.times + number - 1, self.plan.most_rounds) if self.deadline.is_set else self.plan.rounds
            if number == 1:
                self.progress.stage(f"{model}: round 1", rounds * len(active))
            if self.deadline.is_set and number == 1:
                self.say(f"{model}: {rounds} rounds of {len(active)} of {len(cells)} cases fit")
            self.progress.name(f"{model}: round {number}")
            took = self._round(active, number, rounds)
            if not took and self.deadline.is_set and self.deadline.left <= 0:
                return
            costs |= {cell.series: span.seconds for cell, _, span in took}

    def _last_round(self, active: Sequence[Cell]) -> int:
        """The number of the last round: dense alone needs no more than what was asked."""
        return self.plan.most_rounds if any(cell.method.name != "dense" for cell in active) else self.plan.rounds

    def _is_narrow(self, cell: Cell) -> bool:
        """Whether the interval of a cell's speed-up is as narrow as asked, so that it needs no more rounds."""
        if self.plan.precision is None or cell.method.name == "dense":
            return False
        records = {record.series: record for record in self.store.merged()}
        alike = (record for record in records.values() if record.case.setting == cell.case.setting)
        dense, own = next(filter(is_baseline, alike), None), records.get(cell.series)
        ratio = speedup(own, dense) if own is not None and dense is not None else None
        if ratio is None or ratio.low is None or ratio.high is None:
            return False
        return math.sqrt(ratio.high / ratio.low) - 1 <= self.plan.precision

    def _round(self, cells: Sequence[Cell], number: int, rounds: int) -> list[Took]:
        """Run every case once, then append the round's records together: they are paired with its dense run.

        `rounds` is how many there will be, as far as is known now. The order is drawn for two rounds at a time, the
        second the mirror of the first.
        """
        places = [Place(cell.case, cell.control, number) for cell in cells]
        if not any(self.store.missing(place) for place in places):
            self.progress.advance(len(cells))
            return []
        order = list(zip(cells, places, strict=True))
        random.Random(f"{self.plan.seed}/{self.subject.model}/{(number - 1) // 2}").shuffle(order)
        if number % 2 == 0:
            order.reverse()
        took: list[Took] = []
        for done, (cell, place) in enumerate(order):
            if self.deadline.left <= 0:
                self._leave_out(
                    [late for late, _ in order[done:]], f"round {number}", "the others took longer than before"
                )
                break
            self._guarded(place, functools.partial(self._time, cell, number, took))
            self.progress.advance()
        reference = self._reference(number) if self._scores_round(number) else None
        self.store.keep([self._timed_record(*taken, number, rounds, reference) for taken in took])
        return took

    def _scores_round(self, number: int) -> bool:
        """Whether a round's tokens are scored too: those of its first pass over the documents."""
        return self.subject.quality and number <= self.plan.rounds

    def _time(self, cell: Cell, number: int, took: list[Took]) -> None:
        started = time.monotonic()
        timing = self._measure(
            cell.method, cell.thresholds, self._documents(number), keep_logits=self._scores_round(number)
        )
        took.append((cell, timing, Span.since(started)))

    def _measure(
        self,
        method: Method,
        thresholds: Thresholds | None,
        documents: Sequence[Document],
        *,
        keep_logits: bool = False,
    ) -> Timing:
        model = self.prepared.model
        if self._stream is None:
            self._stream = Stream(next(model.parameters()).device)
        execution = self._execution(method)
        return time_case(model, method, thresholds, documents, execution, keep_logits=keep_logits, stream=self._stream)

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
        """The documents of a timed round, one per row; beyond the asked rounds they begin anew."""
        first = (number - 1) % self.plan.rounds * self.plan.batch
        return self.prepared.timed[first : first + self.plan.batch]

    def _timed_record(
        self,
        cell: Cell,
        timing: Timing,
        span: Span,
        number: int,
        rounds: int,
        reference: Scores | None,
    ) -> Record:
        measurements = self._gpu_use(cell, number) | speed(timing)
        first = self.plan.documents + (number - 1) * self.plan.batch
        if reference is not None:
            measurements |= self._timed_quality(timing, number, first, reference)
        if timing.digest is not None and number <= self.plan.rounds:
            measurements["selection_digest"] = Measurement.of("selection_digest", [timing.digest], [first])
        return new_record(
            self.plan,
            Place(cell.case, cell.control, number),
            "ok",
            span,
            measurements=measurements,
            achieved_sparsity=timing.achieved_sparsity,
            execution=timing.execution,
            backend=timing.backend,
            flags=doubts(timing, self.plan.device, rounds),
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
                self.store.keep([new_record(self.plan, place, status, Span.since(started), reason=reason)])
                self.say(f"[red]{place.case.method} on {place.case.model} failed: {reason.splitlines()[0]}")


def _is_out_of_memory(error: Exception) -> bool:
    words = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "out of memory" in words or "can't allocate" in words
