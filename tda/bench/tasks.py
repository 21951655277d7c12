"""The stage of tasks: every cell answers the same items, and each answer is kept as it comes."""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tda.bench.budget import Deadline, OutOfTimeError
from tda.bench.cells import PlannedCase, Span, new_record
from tda.bench.plan import TOGETHER
from tda.bench.stage import StageContext
from tda.cases import digest_of
from tda.logs import handled
from tda.records import TaskFacts
from tda.tasks import TaskResult
from tda.tasks.outputs import items_path, save_items
from tda.tasks.run import PreparedTask, run

logger = logging.getLogger(__name__)

ANSWERS = "answers"
"""Folder of every answer as it came, a file a model: an evaluation that was killed goes on from there."""


def answers_path(folder: Path, model: str) -> Path:
    """File of a model's answers within a results folder: models that are measured at once write none together."""
    return folder / ANSWERS / f"{re.sub('[^0-9A-Za-z.]+', '-', model).strip('-')[-60:]}-{digest_of(model, 6)}.jsonl"


@dataclass
class Tasks:
    """Tasks of a model's cells.

    Attributes
    ----------
    stage : StageContext
        What the stages share.
    deadline : Deadline
        When answering is to have ended; the answers of a task that is not complete by then are kept for the next run.
    """

    stage: StageContext
    deadline: Deadline
    _logged: set[str] = field(default_factory=set)

    def run(self, cells: Sequence[PlannedCase]) -> None:
        """Answer the tasks that cells have no scores of yet: task after task, so that cells can be compared early."""
        cells = [cell for cell in cells if cell.case.control is None]
        self.stage.progress.stage(f"{self.stage.subject.model}: tasks", len(cells) * len(self.stage.prepared.tasks))
        with handled("tda.tasks", self._log):
            self._answer_all(cells)

    def _answer_all(self, cells: Sequence[PlannedCase]) -> None:
        for task in self.stage.prepared.tasks:
            for number, cell in enumerate(cells):
                try:
                    if not self._is_answered(cell, task) and not self.stage.store.given_up(cell.place(0)):
                        self._answer(cell, task)
                except OutOfTimeError:
                    self.stage.leave_out(cells[number:], f"task {task.content.name}", "no time; its answers are kept")
                    break
                self.stage.progress.advance()

    def _is_answered(self, cell: PlannedCase, task: PreparedTask) -> bool:
        found = self.stage.store.tasks(cell.place(0)).get(task.content.name)
        return found is not None and found.failure is None and found.setting == self._facts(task).setting

    def _facts(self, task: PreparedTask) -> TaskFacts:
        return task.facts(self.stage.plan.protocol)

    def _answer(self, cell: PlannedCase, task: PreparedTask) -> None:
        """Answer one task and keep a record; a failure is one, too."""
        started, place, name = time.monotonic(), cell.place(0), task.content.name
        with self.stage.store.running(place):
            try:
                result = self._result(cell, task)
            except OutOfTimeError:
                raise
            except Exception as error:  # a failing task is told in its record, and the others go on
                reason = f"{type(error).__name__}: {error}"
                logger.error(f"{cell.case}: task {name} failed: {reason.splitlines()[0]}")
                result = TaskResult(name, self._facts(task).model_copy(update={"failure": reason}))
            else:
                save_items(items_path(self.stage.store.folder, name, cell.case), result.items)
        record = new_record(
            self.stage.plan,
            place,
            "ok",
            Span.since(started),
            measurements=result.measurements(),
            tasks={name: result.facts},
            flags=self.stage.text_flags(cell),
        )
        self.stage.store.keep([record])

    def _result(self, cell: PlannedCase, task: PreparedTask) -> TaskResult:
        from tda.tasks.model import TDALM

        plan, prepared, subject = self.stage.plan, self.stage.prepared, self.stage.subject
        self.advance()
        model = TDALM.of(
            prepared.model,
            prepared.tokenizer,
            cell.method,
            protocol=plan.protocol,
            execution=self.stage.execution(cell.method),
            batch_size=TOGETHER,
            prompt_tokens=subject.prompt_tokens,
            new_tokens=subject.new_tokens,
            journal=answers_path(self.stage.store.folder, subject.model),
            advance=self.advance,
        )
        return run(model, task)

    def _log(self, record: logging.LogRecord) -> None:
        """Log under the model's name what its tasks log: what differs by its numbers alone, once."""
        kind = re.sub(r"\d+", "#", record.getMessage())
        if kind not in self._logged:
            self._logged.add(kind)
            logger.log(record.levelno, f"{self.stage.subject.model}: {record.getMessage()}")

    def advance(self) -> None:
        """Called before each batch."""
        if self.deadline.left <= 0:
            raise OutOfTimeError
