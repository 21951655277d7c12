"""Two readings around a timed block, and what changed between them: nothing runs while time is taken."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tda.cores import allowed_cores, cpu_quota
from tda.telemetry.cpu import cpu_source
from tda.telemetry.gpu import gpu_source
from tda.telemetry.source import TelemetrySource


def sources(*devices: torch.device) -> list[TelemetrySource]:
    """The CPU, and the GPUs among some devices."""
    return [cpu_source(), *(gpu_source(device) for device in devices if device.type == "cuda")]


@dataclass(frozen=True)
class ConditionChange:
    """What two readings saw.

    Attributes
    ----------
    seconds : float
        Between them.
    before, after : mapping
        Values by field; shares and rates in `after` are of the time between the readings.
    missing : mapping
        Why a field has no value. Where the work runs on a CPU, nothing tells of a GPU.
    on_gpu : bool
        Whether the work runs on a GPU.
    cores : int
        That this process may run on.
    quota : float or None
        How many cores' worth of time its control groups leave it; None without a limit.
    threads : int
        That torch computes with.
    """

    seconds: float
    before: Mapping[str, float]
    after: Mapping[str, float]
    missing: Mapping[str, str]
    on_gpu: bool
    cores: int
    quota: float | None
    threads: int

    def increase(self, name: str) -> float | None:
        """How much a counter grew; None where it was not read."""
        return self.after[name] - self.before[name] if name in self.before and name in self.after else None

    def maximum(self, name: str) -> float | None:
        """The larger of the values before and after; None where there is none."""
        return max((values[name] for values in (self.before, self.after) if name in values), default=None)


class ConditionMonitor:
    """Reads the machine at construction and again when asked.

    Parameters
    ----------
    device : torch.device
        Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._sources = sources(device)
        self._before = self._read()
        self._begin = time.monotonic()

    def _read(self) -> dict[str, float]:
        return {name: value for source in self._sources for name, value in source.read()}

    def read(self) -> ConditionChange:
        """What changed since construction."""
        seconds = time.monotonic() - self._begin
        after = self._read()
        missing = {name: reason for source in self._sources for name, reason in source.missing.items()}
        cores, quota, threads = len(allowed_cores()), cpu_quota(), torch.get_num_threads()
        return ConditionChange(seconds, self._before, after, missing, self._on_gpu, cores, quota, threads)
