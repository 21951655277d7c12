"""Run a plan: every model once, its cases interleaved in rounds, records appended as they come."""

import gc
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from tda import device as facts
from tda import kernels
from tda.bench.budget import NO_END, Deadline
from tda.bench.cells import Span, new_record
from tda.bench.messages import Message
from tda.bench.plan import Plan
from tda.bench.planning import plan_for
from tda.bench.progress import Progress
from tda.bench.store import Folder, Store
from tda.bench.subject import measure_model
from tda.bench.supervisor import supervised
from tda.bench.worker import order_of
from tda.bench.worker_limits import SILENCE_S, Limits
from tda.cases import MethodSpec
from tda.contracts import Method
from tda.logs import log_again
from tda.process import alone
from tda.records import Failure, LeftOut, Record, merge

logger = logging.getLogger(__name__)


@dataclass
class Bench:
    """A plan being run into a folder.

    Attributes
    ----------
    plan : Plan
        What to measure.
    out : Path
        Results folder; an interrupted run's records there are kept and completed.
    console : Console
        Where progress is shown.
    deadline : Deadline
        When measuring is to have ended; set where the plan has a budget.
    command : str
        What measures that which the budget left out.
    limits : Limits or None
        Each model is measured in a worker process within these limits; None measures here, in this process.
    """

    plan: Plan
    out: Path
    console: Console = field(default_factory=lambda: Console(stderr=True))
    deadline: Deadline = field(default_factory=Deadline)
    command: str = "tda.run_bench with the same options and no budget"
    limits: Limits | None = None

    def run(self) -> list[Record]:
        """Measure what is not measured yet; return the folder's merged records.

        Raises
        ------
        ValueError
            If the folder holds results of another commit or machine, another bench runs there, or a model, method or
            text is wrong.
        OSError
            If the folder cannot be written.
        """
        facts.machine(self.plan.device)  # a device that is not here is said before anything is written
        with alone(self.out):
            return self._run()

    def _run(self) -> list[Record]:
        if notice := kernels.notice(self.plan.device):
            logger.warning(notice)
        folder = Folder(self.out)
        folder.check_commit(facts.commit())
        folder.check_machine(facts.machine(self.plan.device))
        folder.note_left_out([])
        with Progress(self.console, self.deadline) as progress:
            if self.limits is None:
                self._measure_here(folder, progress)
            else:
                self._measure_apart(folder, progress, self.limits)
        return merge(folder.records)

    def _measure_here(self, folder: Folder, progress: Progress) -> None:
        """Measure in this process: if it dies, the next run is told in which case."""
        if (died := folder.left_running()) is not None:
            told, failure = "an earlier run ended in it", Failure(kind="lost")
            folder.keep(
                [new_record(self.plan, died, "crash", Span.since(time.monotonic()), reason=told, failure=failure)]
            )
            logger.warning(f"{died.case}: {told}")
        store, left_out, subjects = Store(folder.path, folder.records, folder), list[LeftOut](), self.plan.subjects
        for number, subject in enumerate(subjects):
            deadline = self.deadline.part(subject.weight / sum(one.weight for one in subjects[number:]))
            left_out += measure_model(self.plan, subject, store, progress, deadline, self.command)
            folder.note_left_out(left_out)
            gc.collect()

    def _measure_apart(self, folder: Folder, progress: Progress, limits: Limits) -> None:
        """Measure each model in a worker process, whose records are kept here."""
        orders = [order_of(self.plan, number, self.out, self.command) for number in range(len(self.plan.subjects))]
        left_out: list[LeftOut] = []
        limits = replace(limits, seconds=self.deadline.left if self.deadline.is_set else None)
        with closing(supervised(orders, folder.records, limits)) as messages:
            for message in messages:
                self._take(message, folder, progress, left_out)

    def _take(self, message: Message, folder: Folder, progress: Progress, left_out: list[LeftOut]) -> None:
        kind, value = message
        if kind == "hello":
            facts.check_same_code(value[1])
            folder.check_machine(value[0])
        elif kind == "log":
            log_again(value)
        elif kind in ("stage", "go_on"):
            getattr(progress, kind)(*value)
        elif kind == "advance":
            progress.advance(value)
        elif kind == "records":
            folder.keep(value)
        elif kind == "left_out":
            left_out += value
            folder.note_left_out(left_out)
        elif kind == "raised":
            raise value
        elif kind == "stderr":
            sys.stderr.buffer.write(value)
            sys.stderr.flush()


def run_bench(
    out: Path | str,
    *,
    models: Sequence[str | nn.Module | tuple[nn.Module, Any]] = (),
    methods: Sequence[str | MethodSpec | Method] = (),
    isolate: bool = False,
    **options: Any,
) -> list[Record]:
    """Measure a matrix as ``tda bench`` does, without its page: what suites call, on older commits too.

    Parameters
    ----------
    out : Path or str
        Results folder; an interrupted run's records there are kept and completed.
    models : sequence
        Names as on the command line, models, or pairs of a model and its tokenizer. A model without a tokenizer gets a
        speed on random tokens, and no quality.
    methods : sequence
        Specs such as ``"tda:statistic=max"``, or methods.
    isolate : bool
        Whether each model is measured in a worker process, as the command does it: a crash or a hang is a record, and
        ends nothing here. Models then have names, and methods come from modules that a process can import.
    **options
        The other fields of `tda.config.BenchConfig`: the command's options by the same names. Without a `budget` and a
        `precision`, unlike the command's presets, everything is measured as often as asked.

    Returns
    -------
    list of Record
        The folder's records, the rounds of each case joined.

    Raises
    ------
    ValueError
        If the folder holds results of another commit or machine, or an option is wrong.
    TypeError
        If a model or a method cannot be handed to a worker process.
    OSError
        If the folder cannot be written.
    """
    plan = plan_for(models, methods, {"budget": "none", "precision": "none", **options})
    deadline = NO_END if plan.budget_s is None else Deadline(time.monotonic() + plan.budget_s)
    limits = Limits(silence_s=SILENCE_S) if isolate else None
    return Bench(plan, Path(out), console=Console(stderr=True, quiet=True), deadline=deadline, limits=limits).run()
