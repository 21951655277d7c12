"""Run a plan: every model once, its cases interleaved in rounds, records appended as they come."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tda import device as facts
from tda import kernels
from tda.bench.budget import NO_END, Deadline, duration, parse_fraction, parse_seconds
from tda.bench.cells import Span, new_record
from tda.bench.plan import Plan, Subject, plan_of
from tda.bench.prepare import Texts, expected_seconds
from tda.bench.progress import Progress
from tda.bench.store import Store
from tda.bench.subject import measure
from tda.names import Dtype, Execution, Preset
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
    texts : Texts
        JSONL files instead of the built-in streams.
    console : Console
        Where progress and notices go.
    trust_remote_code : bool
        As for `tda.load_model`.
    deadline : Deadline
        When measuring is to have ended; set where the plan has a budget.
    command : str
        What measures that which the budget left out.
    """

    plan: Plan
    out: Path
    texts: Texts = field(default_factory=Texts)
    console: Console = field(default_factory=lambda: Console(stderr=True))
    trust_remote_code: bool = False
    deadline: Deadline = field(default_factory=Deadline)
    command: str = "tda.run_bench with the same options and no budget"

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
        machine, commit = facts.machine(self.plan.device), facts.commit()
        store = Store(self.out, machine, commit, lambda text: say(f"[yellow]{escape(text)}"))
        died = store.left_running()
        if died is not None:
            reason = "the process died while it ran this case (killed, or out of memory)"
            store.keep([new_record(self.plan, died, "crash", Span.since(time.monotonic()), reason=reason)])
            say(f"[yellow]an earlier run died in {died.case.method} on {died.case.model}; noted")
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
                    self.texts,
                    self.out,
                    store,
                    progress,
                    say,
                    deadline,
                    self.command,
                    trust_remote_code=self.trust_remote_code,
                )
                store.note_left_out(left_out)
                gc.collect()
            store.note_left_out(left_out)
        return store.merged()


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
    budget: str | None = None,
    precision: str | None = None,
) -> list[Record]:
    """Measure a matrix as ``tda bench`` does, without its page: what suites call, on older commits too.

    Parameters
    ----------
    out : Path or str
        Results folder; an interrupted run's records there are kept and completed.
    preset : str
        The matrix; what else is given changes it, with the names and meaning of the command's options.
    budget, precision : str, optional
        Time after which all is to have ended, e.g. ``"5m"``, and the half-width of a speed-up's interval that is narrow
        enough, e.g. ``"2%"``. Without them, unlike the command's presets, everything is measured as often as asked.

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
        budget_s=parse_seconds(budget or "none"),
        precision=parse_fraction(precision or "none"),
    )
    deadline = NO_END if plan.budget_s is None else Deadline(time.monotonic() + plan.budget_s)
    return Bench(plan, Path(out), console=Console(stderr=True, quiet=True), deadline=deadline).run()
