"""A thread that samples the machine beside work whose time is not taken."""

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import Field

from tda.cases import Frozen
from tda.telemetry.conditions import sources
from tda.telemetry.source import TelemetrySource

if TYPE_CHECKING:
    import torch

INTERVAL_S = 0.1
"""The driver renews most of what it tells ten times a second or less."""
NOTHING_YET = "the block ended before there was anything to tell"


class Series(Frozen):
    """Samples of one field of one device."""

    device: str = Field(description='"cpu", or "gpu" with the number that CUDA counts')
    unit: str
    samples: tuple[float, ...] = ()
    stamps: tuple[float, ...] = Field(default=(), description="seconds from the start of the block to each sample")
    missing: str | None = Field(default=None, description="why there are no samples, or none after the last")


class Telemetry(Frozen):
    """What was sampled while a block ran."""

    seconds: float = Field(description="length of the block")
    rate_hz: float = Field(description="rounds of samples a second that were really taken; 0 where one was")
    gpus: dict[str, str] = Field(default_factory=dict, description="models of the sampled GPUs, by device")
    series: dict[str, Series] = Field(description='by device and field, as "gpu0/power_w": see tda.telemetry.fields')

    def increase(self, name: str) -> float | None:
        """How much a counter grew from its first sample to its last; None with fewer than two."""
        samples = self.series[name].samples
        return samples[-1] - samples[0] if len(samples) > 1 else None


class Sampler:
    """Sample the CPU, and the GPUs among some devices, while a block runs.

    The first samples are taken before the block and the last ones after it, so that the rise of a counter covers all of
    it. A field that cannot be read says why; one that is lost on the way keeps what was sampled. The thread ends with
    the block, however that ends.

    Parameters
    ----------
    *devices : torch.device
        Where the work runs.

    Attributes
    ----------
    telemetry : Telemetry
        What was sampled; there when the block has ended.

    Examples
    --------
    >>> with Sampler(torch.device("cuda")) as sampler:
    ...     work()
    >>> sampler.telemetry.rise("gpu0/energy_j")
    """

    telemetry: Telemetry

    def __init__(self, *devices: "torch.device") -> None:
        self._sources = sources(*devices)
        self._taken: dict[tuple[str, str], list[tuple[float, float]]] = {
            (source.device, name): [] for source in self._sources for name in source.fields
        }
        self._rounds: list[float] = []
        self._begin = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tda-telemetry", daemon=True)

    def __enter__(self) -> "Sampler":
        self._begin = time.monotonic()
        self._round()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._begin
        self._stop.set()
        with self._lock:  # now, and not when the thread has ended, which may wait for a slow field
            self._take()
        self._thread.join()
        self.telemetry = self._telemetry(seconds)

    def _loop(self) -> None:
        due = self._begin
        while True:
            self._take(slow=True)
            due = max(due + INTERVAL_S, time.monotonic())  # a round that came late is not made up for
            self._stop.wait(due - time.monotonic())
            with self._lock:
                if self._stop.is_set():
                    return
                self._round()

    def _round(self) -> None:
        self._rounds.append(time.monotonic())
        self._take()

    def _take(self, *, slow: bool = False) -> None:
        for source in self._sources:
            for name, value in source.read(slow=slow):
                self._taken[source.device, name].append((time.monotonic() - self._begin, value))

    def _telemetry(self, seconds: float) -> Telemetry:
        between = self._rounds[-1] - self._rounds[0]
        return Telemetry(
            seconds=seconds,
            rate_hz=(len(self._rounds) - 1) / between if between else 0.0,
            gpus={source.device: source.gpu for source in self._sources if source.gpu is not None},
            series={
                f"{source.device}/{name}": self._series(source, name)
                for source in self._sources
                for name in source.fields
            },
        )

    def _series(self, source: TelemetrySource, name: str) -> Series:
        taken, missing = self._taken[source.device, name], source.missing.get(name)
        return Series(
            device=source.device,
            unit=source.fields[name].unit,
            samples=tuple(value for _, value in taken),
            stamps=tuple(stamp for stamp, _ in taken),
            missing=missing if missing or taken else NOTHING_YET,
        )
