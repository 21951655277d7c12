"""The records of a timed round: what was timed, the quality of these very tokens, and telemetry."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tda.bench.cells import PlannedCase, Span, new_record
from tda.bench.gpu_telemetry import GpuTelemetry
from tda.bench.measure import Timing, as_scores
from tda.bench.outcome import absent, speed, validity_flags
from tda.bench.stage import StageContext
from tda.engine.plain import describe_generation
from tda.engine.score import Scores, score
from tda.finite import NotFiniteError
from tda.methods import method as build_method
from tda.metrics import METRICS
from tda.quality import measured, rows_of
from tda.records import Measurement, Record

Took = tuple[PlannedCase, Timing, Span]


@dataclass
class RoundRecords:
    """Makes the records of a model's rounds.

    Attributes
    ----------
    stage : StageContext
        What the stages share.
    """

    stage: StageContext

    def __post_init__(self) -> None:
        self.gpu = GpuTelemetry(self.stage)

    def of(self, took: Sequence[Took], number: int, rounds: int) -> list[Record]:
        """A record of each case of a round; `rounds` is how many there will be, as far as is known now."""
        reference = self._reference(number) if self.scores(number) else None
        return [self._record(*taken, number, rounds, reference) for taken in took]

    def scores(self, number: int) -> bool:
        """Whether a round's tokens are scored too: those of its first pass over the documents."""
        return self.stage.scores_documents and number <= self.stage.plan.rounds

    def _record(
        self,
        cell: PlannedCase,
        timing: Timing,
        span: Span,
        number: int,
        rounds: int,
        reference: Scores | str | None,
    ) -> Record:
        measurements = self.gpu.measurements(cell, number) | speed(timing)
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
            generation=describe_generation(self.stage.prepared.model, self.stage.subject.new_tokens),
            measurements=measurements,
            achieved_sparsity=timing.achieved_sparsity,
            execution=timing.execution,
            backend=timing.backend,
            flags=validity_flags(timing, self.stage.plan.device, rounds) | self.stage.text_flags(cell),
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
