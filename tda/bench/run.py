"""Run a plan: every model once, its cases interleaved in rounds, records appended as they come."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from torch import nn

from tda import device as facts
from tda import kernels
from tda.bench.budget import NO_END, Deadline, duration
from tda.bench.cells import Span, new_record
from tda.bench.plan import Plan, Subject, plan_for
from tda.bench.prepare import expected_seconds
from tda.bench.probe import dies_alone
from tda.bench.progress import Progress
from tda.bench.store import Place, Store
from tda.bench.subject import measure
from tda.cases import MethodSpec
from tda.contracts import Method
from tda.process import alone
from tda.records import LeftOut, Record


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
        Where progress and notices go.
    deadline : Deadline
        When measuring is to have ended; set where the plan has a budget.
    command : str
        What measures that which the budget left out.
    """

    plan: Plan
    out: Path
    console: Console = field(default_factory=lambda: Console(stderr=True))
    deadline: Deadline = field(default_factory=Deadline)
    command: str = "tda.run_bench with the same options and no budget"

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
        say = self.console.print
        if notice := kernels.notice(self.plan.device):
            say(f"[yellow]{escape(notice)}")
        machine, commit = facts.machine(self.plan.device), facts.commit()
        store = Store(self.out, machine, commit, lambda text: say(f"[yellow]{escape(text)}"))
        self._look_at(store, store.left_running())
        store.note_left_out([])
        with Progress(self.console, self.deadline) as progress:
            left_out: list[LeftOut] = []
            for place, subject in enumerate(self.plan.subjects):
                deadline = self.deadline.part(_weight(subject) / sum(map(_weight, self.plan.subjects[place:])))
                late = _no_time(self.plan, subject, deadline)
                if late is not None:
                    left_out.append(LeftOut(model=subject.model, what="everything", reason=late, command=self.command))
                    continue
                left_out += measure(
                    self.plan,
                    subject,
                    self.out,
                    store,
                    progress,
                    say,
                    deadline,
                    self.command,
                )
                store.note_left_out(left_out)
                gc.collect()
            store.note_left_out(left_out)
        return store.merged()

    def _look_at(self, store: Store, died: Place | None) -> None:
        """Try the case in which an earlier run was killed in a process of its own: if that dies too, it is given up."""
        if died is None:
            return
        started = time.monotonic()
        self.console.print(escape(f"an earlier run was killed in {died.case}: trying it alone"))
        reason = dies_alone(self.plan, died.case)
        if reason is not None:
            told = f"it ends the process, alone too: {reason}"
            store.keep([new_record(self.plan, died, "crash", Span.since(started), reason=told)])
            self.console.print(f"[red]{escape(f'{died.case} is given up: {told}')}")


def _no_time(plan: Plan, subject: Subject, deadline: Deadline) -> str | None:
    """Why a model is not even loaded; None where there is time."""
    if not deadline.is_set:
        return None
    if deadline.left <= 0:
        return "no time"
    needed = expected_seconds(plan, subject)
    return f"loading and calibrating take about {duration(needed)}" if needed > deadline.left else None


def _weight(subject: Subject) -> int:
    """A model's part of the time: rounds take twice what quality does."""
    return subject.quality + 2 * subject.speed


def run_bench(
    out: Path | str,
    *,
    models: Sequence[str | nn.Module | tuple[nn.Module, Any]] = (),
    methods: Sequence[str | MethodSpec | Method] = (),
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
    OSError
        If the folder cannot be written.
    """
    plan = plan_for(models, methods, {"budget": "none", "precision": "none", **options})
    deadline = NO_END if plan.budget_s is None else Deadline(time.monotonic() + plan.budget_s)
    return Bench(plan, Path(out), console=Console(stderr=True, quiet=True), deadline=deadline).run()
