"""The stage of speed: cells timed in rounds, interleaved and paired, until each is known well enough or time is up."""

import functools
import itertools
import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tda import kernels
from tda.bench.budget import LEAST_TOKENS, MARGIN, Deadline, take
from tda.bench.cells import PlannedCase, Span, essential
from tda.bench.measure import attach_once, pace, time_case
from tda.bench.round_records import RoundRecords, Took
from tda.bench.stage import StageContext
from tda.engine.backends.attachment_cache import attachment_cache
from tda.limits import Stream
from tda.schedule import balanced
from tda.statistics import MIN_GROUPS, is_baseline, speedup

logger = logging.getLogger(__name__)


@dataclass
class Rounds:
    """Timed rounds of a model's cells.

    Attributes
    ----------
    stage : StageContext
        What the stages share.
    deadline : Deadline
        When they are to have ended.
    """

    stage: StageContext
    deadline: Deadline
    _stream: Stream | None = None

    def __post_init__(self) -> None:
        self._records = RoundRecords(self.stage)

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

    def run(self, cells: Sequence[PlannedCase], dense_s: float) -> None:
        """Rounds of the cells, until each has been measured as often as asked, or exactly enough, or time is up."""
        with attachment_cache(self.stage.prepared.model) as kept:
            if kept.keeps:
                self._attach(cells)
            self._repeat(cells, dense_s)
        if (notice := kernels.untuned()) is not None:
            logger.info(f"{self.stage.subject.model}: {notice}")

    def _attach(self, cells: Sequence[PlannedCase]) -> None:
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
        logger.info(f"{stage.subject.model}: attached {len(cells)} cases in {seconds:.1f} s, for all rounds")

    def _repeat(self, cells: Sequence[PlannedCase], dense_s: float) -> None:
        plan, model, active = self.stage.plan, self.stage.subject.model, list(cells)
        costs = {cell.series: dense_s for cell in cells}
        self.stage.progress.stage(f"{model}: rounds", 0)
        for number in itertools.count(1):
            ended = _narrow(self.stage, active) | {
                one.series for one in active if self.stage.store.hopeless(one.series)
            }
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
                logger.info(f"{model}: there is time for {fit}")
            self.stage.progress.go_on(f"{model}: round {number}", max(rounds - number + 1, 1) * len(active))
            started, sampling_s = time.monotonic(), self._records.gpu.seconds
            took = self._round(active, number, rounds)
            if not took and self.deadline.is_set and self.deadline.left <= 0:
                return
            if took:  # scoring after the times is shared by all; telemetry comes once
                sampling_s = self._records.gpu.seconds - sampling_s
                shared = time.monotonic() - started - sampling_s - sum(span.seconds for _, _, span in took)
                costs |= {cell.series: span.seconds + shared / len(took) for cell, _, span in took}

    def _last_round(self, active: Sequence[PlannedCase]) -> int:
        """The number of the last round: dense alone needs no more than what was asked."""
        plan = self.stage.plan
        return plan.most_rounds if any(cell.method.name != "dense" for cell in active) else plan.rounds

    def _round(self, cells: Sequence[PlannedCase], number: int, rounds: int) -> list[Took]:
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
        self.stage.store.keep(self._records.of(took, number, rounds))
        return took

    def _time(self, cell: PlannedCase, number: int, took: list[Took]) -> None:
        started = time.monotonic()
        timing = time_case(
            self.stage.prepared.model,
            cell.method,
            self.stage.documents(number),
            self.stage.execution(cell.method),
            keep_logits=self._records.scores(number),
            stream=self._own_stream(),
        )
        took.append((cell, timing, Span.since(started)))

    def _own_stream(self) -> Stream:
        """The buffer that all cases of the model share."""
        if self._stream is None:
            self._stream = Stream(next(self.stage.prepared.model.parameters()).device)
        return self._stream


def _narrow(stage: StageContext, cells: Sequence[PlannedCase]) -> set[tuple[str, str]]:
    """Series whose speed-up has an interval as narrow as asked, so that they need no more rounds."""
    precision = stage.plan.precision
    if precision is None:
        return set()
    records = {record.series: record for record in stage.store.merged()}
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
