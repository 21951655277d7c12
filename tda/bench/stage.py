"""What the stages of one model share: what is measured, where records go, and how failures end."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tda.bench.budget import OutOfTimeError
from tda.bench.cells import PlannedCase, Span, new_record
from tda.bench.measure import first_request
from tda.bench.outcome import absent
from tda.bench.plan import Plan, Subject
from tda.bench.prepare import Prepared
from tda.bench.progress import Steps
from tda.bench.store import RecordPlace, Store
from tda.cases import describe
from tda.contracts import Method
from tda.device import failure_kind
from tda.metrics import METRICS
from tda.names import Execution
from tda.quality import Document
from tda.quality.documents import built_in_uses
from tda.records import FAILURES, SPEED, Failure, Flag, FlagName, LeftOut, Measurement

logger = logging.getLogger(__name__)


@dataclass
class StageContext:
    """One loaded model of a plan, and where its stages put what they find.

    Attributes
    ----------
    plan, subject, prepared
        What is measured.
    store : Store
        Where records go.
    progress : Steps
        Told of every step.
    command : str
        What measures that which there was no time for.
    left_out : list of LeftOut
        What that is.
    attached : bool
        Whether it was told what attaching takes.
    """

    plan: Plan
    subject: Subject
    prepared: Prepared
    store: Store
    progress: Steps
    command: str
    left_out: list[LeftOut] = field(default_factory=list)
    attached: bool = False

    # What is left out.

    def leave_out(self, cells: Sequence[PlannedCase], what: str, reason: str) -> None:
        """Note that there was no time for something of some cells."""
        if cells:
            among = [self.plan.case(self.subject, built) for built, *_ in self.prepared.methods]
            named = ", ".join(describe(cell.case, among, model=False) for cell in cells)
            self.note(f"{what} of {named}", reason)

    def note(self, what: str, reason: str) -> None:
        """Note that there was no time for something."""
        self.left_out.append(LeftOut(model=self.subject.model, what=what, reason=reason, command=self.command))

    # What is done alike in all stages.

    @property
    def scores_documents(self) -> bool:
        """Whether likelihoods over documents are measured."""
        return self.subject.quality and self.plan.documents > 0

    def is_timed(self, cell: PlannedCase) -> bool:
        """Whether a cell is among the timed ones."""
        wanted = cell.method.name in ("dense", *self.plan.speed_methods)  # every ratio needs dense
        return self.subject.speed and wanted and cell.method.fast and cell.case.control != "cross_domain"

    def execution(self, method: Method) -> Execution:
        """The asked execution, or "auto" for a method that cannot run it."""
        asked = self.plan.execution
        return asked if asked in method.executions else "auto"

    def documents(self, number: int) -> Sequence[Document]:
        """The documents of a timed round, one per row; beyond the asked rounds they begin anew."""
        first = (number - 1) % self.plan.rounds * self.plan.batch
        return self.prepared.timed[first : first + self.plan.batch]

    def memory(self, cell: PlannedCase) -> dict[str, Measurement]:
        """What attaching took, and peak memory of a cell's first request."""
        batch = self.prepared.timed[: self.plan.batch]
        found = first_request(self.prepared.model, cell.method, batch, self.execution(cell.method))
        if not self.attached:
            told = describe(cell.case, [cell.case], model=False)
            logger.info(f"{self.subject.model}: attaching {told} took {found.attach_ms / 1000:.1f} s")
        self.attached = True
        measured = {"attach_ms": Measurement.of("attach_ms", [found.attach_ms])}
        if found.problem is not None:
            return measured | absent({"peak_memory_bytes": found.problem})
        return measured | {"peak_memory_bytes": Measurement.of("peak_memory_bytes", [found.peak_bytes])}

    def keep_first(
        self,
        cell: PlannedCase,
        started: float,
        measurements: dict[str, Measurement],
        achieved: tuple[float, ...],
        **ran: Any,
    ) -> None:
        """Keep the record of round 0."""
        for name, measurement in absent(self._reasons(cell)).items():
            measurements.setdefault(name, measurement)
        ran = {**ran, "measurements": measurements, "achieved_sparsity": achieved, "flags": self.text_flags(cell)}
        self.store.keep([new_record(self.plan, cell.place(0), "ok", Span.since(started), **ran)])

    def text_flags(self, cell: PlannedCase) -> dict[FlagName, Flag]:
        """Whether the built-in stories were used for a model that they were not made for."""
        model, plan = self.subject.model, self.plan
        if model.startswith("ref:") or self.prepared.tokenizer is None:
            return {}
        told = built_in_uses(
            model,
            scored=self.scores_documents and plan.text is None,
            calibrated=cell.method.needs_fit and plan.calibration_text is None,
        )
        return {"built_in_text": Flag(raised=told is not None, detail=told or "neither scored nor calibrated on them")}

    def _reasons(self, cell: PlannedCase) -> dict[str, str]:
        """Why a measurement that was not taken is missing."""
        subject = self.subject
        noise = f"{subject.model} has random weights: its text is noise"
        if self.scores_documents:  # the A/A control of one that is scored
            noise = "not scored: its text is that of dense"
        elif subject.quality:
            noise = "tasks alone were scored"
        per_token = "chosen per token: no set per prompt"
        reasons = dict.fromkeys(METRICS, noise) | {"selection_digest": per_token if subject.quality else noise}
        if self.is_timed(cell):
            return reasons
        if not cell.method.fast:
            why = "no kernel skips what it leaves out: masked execution has no speed"
        else:
            why = "not timed: only its quality is measured here" if subject.quality else "not among the timed methods"
        return reasons | dict.fromkeys((*SPEED, "attach_ms", "peak_memory_bytes"), why)

    def guarded(self, place: RecordPlace, work: Callable[[], None]) -> None:
        """Run work for a case: its failure is a record; a death of the process leaves a marker for the next run.

        Raises
        ------
        OutOfTimeError
            If the work does.
        """
        started = time.monotonic()
        with self.store.running(place):
            try:
                work()
            except OutOfTimeError:
                raise
            except Exception as error:  # a failing case is a record, and the others go on
                failure = Failure(kind=failure_kind(error))
                reason = f"{type(error).__name__}: {error}"
                status = FAILURES[failure.kind].status
                self.store.keep(
                    [new_record(self.plan, place, status, Span.since(started), reason=reason, failure=failure)]
                )
                logger.error(f"{place.case} failed: {reason.splitlines()[0]}")
