"""The stage of speed: cells timed in rounds, interleaved and paired, until each is known well enough or time is up."""

import functools
import itertools
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from rich.markup import escape
from torch import Tensor

from tda import kernels
from tda.bench.budget import LEAST_TOKENS, MARGIN, Deadline, take
from tda.bench.cells import Cell, Span, essential, new_record
from tda.bench.measure import Timing, as_scores, attach_once, pace, time_case
from tda.bench.outcome import absent, doubts, speed
from tda.bench.stage import Stage
from tda.bench.window import GPU_MEASUREMENTS, NO_WINDOW, SAMPLED_BEFORE, gpu_use
from tda.engine.backends.shelf import shelf
from tda.engine.plain import told
from tda.engine.score import Scores, score
from tda.finite import NotFiniteError
from tda.limits import Stream
from tda.methods import method as build_method
from tda.metrics import METRICS
from tda.quality import measured, rows_of
from tda.records import Measurement, Record
from tda.schedule import balanced
from tda.statistics import MIN_GROUPS, is_baseline, speedup

Took = tuple[Cell, Timing, Span]


@dataclass
class Rounds:
    """Timed rounds of a model's cells.

    Attributes
    ----------
    stage : Stage
        What the stages share.
    deadline : Deadline
        When they are to have ended.
    """

    stage: Stage
    deadline: Deadline
    _stream: Stream | None = None
    _used: dict[tuple[str, str], dict[str, Measurement]] = field(default_factory=dict)  # of the GPU, by series
    _sampling_s: float = 0.0

    def pace(self) -> float:
        """Seconds that a round of dense will take; a shape gets fewer new tokens where its cases fit with them only."""
        stage = self.stage
        stage.progress.stage(f"{stage.subject.model}: one pass of dense", 0)
        dense = next(built for built, *_ in stage.prepared.methods if built.name == "dense")
        found = pace(stage.prepared.model, dense, stage.documents(1), stage.execution(dense), self._own_stream())
        asked = stage.subject.new_tokens
        if stage.subject.quality:
            return found.round_s(asked)
        halved = [asked >> times for times in range(asked.bit_length()) if asked >> times >= min(asked, LEAST_TOKENS)]
        earlier = self._earlier_tokens() & set(halved)
        cases, seconds = len(stage.plan.speed_methods) + 2, self.deadline.left * MARGIN
        fits = (tokens for tokens in halved if found.round_s(tokens) * cases * MIN_GROUPS <= seconds)
        taken = min(earlier, default=next(fits, asked))
        if taken < asked:
            stage.note(f"new tokens beyond {taken} of {asked}", "no time")
            stage.subject = replace(stage.subject, new_tokens=taken)
            stage.prepared.timed = [
                replace(document, continuation=document.continuation[:taken]) for document in stage.prepared.timed
            ]
        return found.round_s(taken)

    def _earlier_tokens(self) -> set[int]:
        """New tokens of the rounds that an earlier run left of this model: a second one goes on with them."""
        timed = [record for record in self.stage.store.merged() if record.samples("decode_ms")]
        return {record.case.new_tokens for record in timed if record.case.model == self.stage.subject.model}

    def run(self, cells: Sequence[Cell], dense_s: float) -> None:
        """Rounds of the cells, until each has been measured as often as asked, or exactly enough, or time is up."""
        with shelf(self.stage.prepared.model) as kept:
            if kept.keeps:
                self._attach(cells)
            self._repeat(cells, dense_s)
        if (notice := kernels.untuned()) is not None:
            self.stage.say(escape(f"{self.stage.subject.model}: {notice}"))

    def _attach(self, cells: Sequence[Cell]) -> None:
        """Attach every case once, so that the first round takes as long as the others."""
        stage, begin = self.stage, time.monotonic()
        model, last = stage.prepared.model, stage.plan.rounds
        stage.progress.stage(f"{stage.subject.model}: attaching", len(cells))
        for cell in cells:
            if stage.store.missing(cell.place(last)) and self.deadline.left > 0:
                with suppress(Exception):  # the round that meets it again tells of it
                    attach_once(model, cell.method, stage.execution(cell.method))
            stage.progress.advance()
        seconds = time.monotonic() - begin
        stage.say(escape(f"{stage.subject.model}: attached {len(cells)} cases in {seconds:.1f} s, for all rounds"))

    def _repeat(self, cells: Sequence[Cell], dense_s: float) -> None:
        plan, model, active = self.stage.plan, self.stage.subject.model, list(cells)
        costs = {cell.series: dense_s for cell in cells}
        self.stage.progress.stage(f"{model}: rounds", 0)
        for number in itertools.count(1):
            ended = self._narrow(active) | {one.series for one in active if self.stage.store.hopeless(one.series)}
            active = [cell for cell in active if cell.series not in ended]
            if number > self._last_round(active):
                return
            if not any(self.stage.store.missing(cell.place(number)) for cell in active):
                continue
            wanted = max(MIN_GROUPS - number + 1, 1)
            seconds = self.deadline.left * MARGIN
            taken = take([costs[cell.series] for cell in active], essential(plan, active), wanted, seconds)
            if number > MIN_GROUPS and taken.cases < len(active):
                if number <= plan.rounds:
                    self.stage.leave_out(active, f"rounds from {number} on", "no time")
                return
            self.stage.leave_out(active[taken.cases :], f"rounds from {number} on", "no time")
            active = active[: taken.cases]
            if not active:
                return
            rounds = plan.rounds
            if self.deadline.is_set:
                rounds = min(taken.times + number - 1, plan.most_rounds)
            if self.deadline.is_set and number == 1:
                fit = f"{rounds} round{'s' * (rounds > 1)} of {len(active)} of {len(cells)} cases"
                self.stage.say(escape(f"{model}: there is time for {fit}"))
            self.stage.progress.go_on(f"{model}: round {number}", max(rounds - number + 1, 1) * len(active))
            started, self._sampling_s = time.monotonic(), 0.0
            took = self._round(active, number, rounds)
            if not took and self.deadline.is_set and self.deadline.left <= 0:
                return
            if took:  # scoring after the times is shared by all; telemetry comes once
                shared = time.monotonic() - started - self._sampling_s - sum(span.seconds for _, _, span in took)
                costs |= {cell.series: span.seconds + shared / len(took) for cell, _, span in took}

    def _last_round(self, active: Sequence[Cell]) -> int:
        """The number of the last round: dense alone needs no more than what was asked."""
        plan = self.stage.plan
        return plan.most_rounds if any(cell.method.name != "dense" for cell in active) else plan.rounds

    def _narrow(self, cells: Sequence[Cell]) -> set[tuple[str, str]]:
        """Series whose speed-up has an interval as narrow as asked, so that they need no more rounds."""
        precision = self.stage.plan.precision
        if precision is None:
            return set()
        records = {record.series: record for record in self.stage.store.merged()}
        found = set()
        for cell in cells:
            own = records.get(cell.series)
            if cell.method.name == "dense" or own is None:
                continue
            dense = next((one for one in records.values() if is_baseline(one) and one.setting == own.setting), None)
            if dense is None:
                continue
            ratio = speedup(own, dense)
            if ratio is None or ratio.low is None or ratio.high is None:
                continue
            if math.sqrt(ratio.high / ratio.low) - 1 <= precision:
                found.add(cell.series)
        return found

    def _round(self, cells: Sequence[Cell], number: int, rounds: int) -> list[Took]:
        """Run every case once, then append the round's records together: they are paired with its dense run.

        `rounds` is how many there will be, as far as is known now.
        """
        order = [(cell, cell.place(number)) for cell in cells]
        if number > 1 or not self.deadline.is_set:  # in a first round that time may cut, what is worth most comes first
            order = balanced(order, number, f"{self.stage.plan.seed}/{self.stage.subject.model}")
        took: list[Took] = []
        for done, (cell, place) in enumerate(order):
            if self.deadline.left <= 0:
                self.stage.leave_out(
                    [late for late, _ in order[done:]], f"round {number}", "the others took longer than before"
                )
                break
            self.stage.guarded(place, functools.partial(self._time, cell, number, took))
            self.stage.progress.advance()
        reference = self._reference(number) if self._scores_round(number) else None
        self.stage.store.keep([self._timed_record(*taken, number, rounds, reference) for taken in took])
        return took

    def _scores_round(self, number: int) -> bool:
        """Whether a round's tokens are scored too: those of its first pass over the documents."""
        return self.stage.scores_documents and number <= self.stage.plan.rounds

    def _time(self, cell: Cell, number: int, took: list[Took]) -> None:
        started = time.monotonic()
        timing = time_case(
            self.stage.prepared.model,
            cell.method,
            self.stage.documents(number),
            self.stage.execution(cell.method),
            keep_logits=self._scores_round(number),
            stream=self._own_stream(),
        )
        took.append((cell, timing, Span.since(started)))

    def _own_stream(self) -> Stream:
        """The buffer that all cases of the model share."""
        if self._stream is None:
            self._stream = Stream(next(self.stage.prepared.model.parameters()).device)
        return self._stream

    def _gpu_use(self, cell: Cell, number: int) -> dict[str, Measurement]:
        """The telemetry of a case: of its first round, when all times of that are taken."""
        if self.stage.plan.device == "cpu":
            return absent(dict.fromkeys(GPU_MEASUREMENTS, NO_WINDOW))
        before = self._used.get(cell.series)
        if before is not None:
            return absent({name: part.missing or SAMPLED_BEFORE for name, part in before.items()})
        begin = time.monotonic()
        self._used[cell.series] = self._sampled(cell, number)
        self._sampling_s += time.monotonic() - begin
        return self._used[cell.series]

    def _sampled(self, cell: Cell, number: int) -> dict[str, Measurement]:
        """The telemetry pass of a case; if it fails, the times stay."""
        try:
            with self.stage.store.running(cell.place(number)):
                return gpu_use(
                    self.stage.prepared.model,
                    cell.method,
                    self.stage.documents(number),
                    self.stage.execution(cell.method),
                )
        except Exception as error:
            reason = f"the telemetry pass failed: {type(error).__name__}: {error}"
            return absent(dict.fromkeys(GPU_MEASUREMENTS, reason))

    def _timed_record(
        self,
        cell: Cell,
        timing: Timing,
        span: Span,
        number: int,
        rounds: int,
        reference: Scores | str | None,
    ) -> Record:
        measurements = self._gpu_use(cell, number) | speed(timing)
        first = self.stage.plan.documents + (number - 1) * self.stage.plan.batch
        if isinstance(reference, str):
            measurements |= absent(dict.fromkeys(METRICS, reference))
        elif reference is not None:
            measurements |= self._timed_quality(timing, number, first, reference)
        if timing.digest is not None and number <= self.stage.plan.rounds:
            measurements["selection_digest"] = Measurement.of("selection_digest", [timing.digest], [first])
        return new_record(
            self.stage.plan,
            cell.place(number),
            "ok",
            span,
            generation=told(self.stage.prepared.model, self.stage.subject.new_tokens),
            measurements=measurements,
            achieved_sparsity=timing.achieved_sparsity,
            execution=timing.execution,
            backend=timing.backend,
            flags=doubts(timing, self.stage.plan.device, rounds) | self.stage.text_flags(cell),
        )

    def _round_rows(self, number: int) -> tuple[Tensor, Tensor]:
        return rows_of(self.stage.documents(number), next(self.stage.prepared.model.parameters()).device)

    def _reference(self, number: int) -> Scores | str:
        """Dense scores of a round's documents, what every case of the round is compared with; or why there are none."""
        try:
            return score(self.stage.prepared.model, build_method("dense"), *self._round_rows(number))
        except NotFiniteError as error:
            return f"dense has no score: {error}"

    def _timed_quality(self, timing: Timing, number: int, first: int, reference: Scores) -> dict[str, Measurement]:
        """Quality of the very tokens that were timed, against a dense pass over the same documents."""
        scores = as_scores(timing, self._round_rows(number)[1])
        groups = range(first, first + self.stage.plan.batch)
        return {name: measured(name, metric(scores, reference).tolist(), groups) for name, metric in METRICS.items()}
