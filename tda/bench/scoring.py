"""The stage of quality: every cell scored on the same documents, on as many as there is time for."""

import functools
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tda.bench.budget import LEAST_DOCUMENTS, MARGIN, Deadline, OutOfTimeError, Taken, take
from tda.bench.cells import PlannedCase, essential
from tda.bench.stage import StageContext
from tda.methods import method as build_method
from tda.quality import Document, Evaluation, Evaluator, recall

logger = logging.getLogger(__name__)

SCORED_TOGETHER = 8
"""Documents of a batch."""


@dataclass
class Scoring:
    """Quality of a model's cells.

    Attributes
    ----------
    stage : StageContext
        What the stages share.
    end : Deadline
        When the model's measuring is to have ended: what is essential may take its time until then.
    """

    stage: StageContext
    end: Deadline

    def run(self, cells: Sequence[PlannedCase], deadline: Deadline) -> None:
        """Score cells on as many documents as fit: all alike, so that they can be compared."""
        model, documents = self.stage.subject.model, self.stage.prepared.scored
        cells = [cell for cell in cells if cell.case.control != "a_a" and self._lacks_quality(cell, deadline)]
        evaluator = Evaluator(
            self.stage.prepared.model, documents, batch=SCORED_TOGETHER, together=self.stage.plan.batch
        )
        begun: dict[tuple[str, str], Evaluation] = {}
        costs: list[float] = []
        self.stage.progress.stage(f"{model}: quality, first documents", len(cells))
        kept, looks = essential(self.stage.plan, cells), deadline.part(0.5)
        for number, cell in enumerate(cells):
            if (looks.left <= 0 and number >= kept) or self.end.left <= 0:
                self.stage.leave_out(cells[number:], "quality", "no time for a first look")
                break
            started = time.monotonic()
            begun[cell.series] = Evaluation()
            self.stage.guarded(
                cell.place(0),
                functools.partial(evaluator.add, begun[cell.series], 0, cell.method, self._source(cell)),
            )
            costs.append(time.monotonic() - started)
            self.stage.progress.advance()
        if not costs:
            return
        least = min(-(-LEAST_DOCUMENTS // SCORED_TOGETHER), len(evaluator.batches))
        seconds = deadline.left * MARGIN + sum(costs)
        factor = self._recall_factor(costs[0]) if deadline.is_set else 1.0
        taken = take([cost * factor for cost in costs], kept, least, seconds)
        if taken.cases < min(kept, len(costs)):  # their first documents are scored already
            taken = Taken(min(kept, len(costs)), 1)
        batches = min(taken.times, len(evaluator.batches)) if deadline.is_set else len(evaluator.batches)
        chosen = [cell for cell in cells[: taken.cases] if begun[cell.series].documents]
        self.stage.leave_out(cells[taken.cases : len(costs)], "quality", "no time")
        count = min(batches * SCORED_TOGETHER, len(documents))
        if count < len(documents):
            self.stage.note(f"quality on documents beyond {count} of {len(documents)}", "no time")
        if deadline.is_set:
            fit = f"the quality of {len(chosen)} of {len(cells)} cases on {count} documents"
            logger.info(f"{model}: there is time for {fit}")
        self.stage.progress.stage(f"{model}: quality", len(chosen))
        for number, cell in enumerate(chosen):
            end = self.end if number < kept else deadline
            finish = functools.partial(self._finish, evaluator, batches, begun[cell.series], cell, end)
            try:
                self.stage.guarded(cell.place(0), finish)
            except OutOfTimeError:
                self.stage.leave_out(chosen[number:], "quality", "it took longer than the first look promised")
                break
            self.stage.progress.advance()

    def _lacks_quality(self, cell: PlannedCase, deadline: Deadline) -> bool:
        """Whether a cell has no quality yet; without a deadline, whether it has it on fewer documents than asked."""
        place = cell.place(0)
        found = self.stage.store.found(place)
        if found is None or deadline.is_set:
            return self.stage.store.missing(place)
        return len(found.samples("nll_nats")) < len(self.stage.prepared.scored) and not self.stage.store.given_up(place)

    def _recall_factor(self, dense_s: float) -> float:
        """What recall makes of the cost of a batch of documents, measured on dense."""
        questions = self.stage.prepared.questions[:SCORED_TOGETHER]
        if not questions:
            return 1.0
        started = time.monotonic()
        with suppress(Exception):  # the cell that meets it again tells of it
            recall(self.stage.prepared.model, build_method("dense"), questions)
        return 1.0 + (time.monotonic() - started) / max(dense_s, 1e-3)

    def _source(self, cell: PlannedCase) -> Sequence[Document] | None:
        """Documents that a control's selections are taken from."""
        scored = self.stage.prepared.scored
        return [*scored[1:], scored[0]] if cell.case.control == "cross_domain" else None

    def _finish(self, evaluator: Evaluator, batches: int, result: Evaluation, cell: PlannedCase, end: Deadline) -> None:
        """Score the rest of the documents, ask for recall, and keep a record."""
        started = time.monotonic()
        for number in end.each(range(1, batches)):
            evaluator.add(result, number, cell.method, self._source(cell))
        measurements = result.measurements()
        questions = self.stage.prepared.questions[: batches * SCORED_TOGETHER]
        if questions and cell.case.control is None and end.left > 0:
            measurements |= recall(self.stage.prepared.model, cell.method, questions)
        measurements |= self.stage.memory(cell) if self.stage.is_timed(cell) else {}
        ran = "dense" if cell.method.name == "dense" else "masked"
        self.stage.keep_first(cell, started, measurements, result.achieved_sparsity, execution=ran, backend="torch")
