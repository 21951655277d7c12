"""The telemetry of timed cases: the GPU is sampled once for each, apart from what is timed."""

import time
from dataclasses import dataclass, field

from tda.bench.cells import PlannedCase
from tda.bench.outcome import absent
from tda.bench.stage import StageContext
from tda.bench.window import GPU_MEASUREMENTS, NO_WINDOW, SAMPLED_BEFORE, gpu_use
from tda.records import Measurement


@dataclass
class GpuTelemetry:
    """Samples of the GPU while each case of a model decodes.

    Attributes
    ----------
    stage : StageContext
        What the stages share.
    seconds : float
        What sampling has taken so far.
    """

    stage: StageContext
    seconds: float = 0.0
    _used: dict[tuple[str, str], dict[str, Measurement]] = field(default_factory=dict)  # by series

    def measurements(self, cell: PlannedCase, number: int) -> dict[str, Measurement]:
        """The telemetry of a case: of its first round, when all times of that are taken."""
        if self.stage.plan.device == "cpu":
            return absent(dict.fromkeys(GPU_MEASUREMENTS, NO_WINDOW))
        before = self._used.get(cell.series)
        if before is not None:
            return absent({name: part.missing or SAMPLED_BEFORE for name, part in before.items()})
        begin = time.monotonic()
        self._used[cell.series] = self._sampled(cell, number)
        self.seconds += time.monotonic() - begin
        return self._used[cell.series]

    def _sampled(self, cell: PlannedCase, number: int) -> dict[str, Measurement]:
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
