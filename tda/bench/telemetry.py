"""What the GPU did meanwhile, read from the driver by a thread; missing with a reason where there is none."""

import threading
from types import TracebackType
from typing import Any

from tda.records import Measurement

GPU_MEASUREMENTS = ("gpu_utilization_percent", "gpu_memory_bytes", "power_w", "energy_j_per_token")
INTERVAL_S = 0.05


class GpuSampler:
    """Sample utilisation, memory and power of one GPU while a block runs, and read its energy counter around it.

    Parameters
    ----------
    index : int or None
        The GPU's number, as NVML counts; None where the work runs on a CPU.
    """

    def __init__(self, index: int | None) -> None:
        self._samples: dict[str, list[float]] = {name: [] for name in GPU_MEASUREMENTS}
        self._reasons: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: Any = None
        self._energy_mj: float | None = None
        self.energy_j: float | None = None
        problem = "the work ran on a CPU" if index is None else self._open(index)
        if problem:
            self._reasons = dict.fromkeys(GPU_MEASUREMENTS, problem)

    def _open(self, index: int) -> str | None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except Exception as error:  # each driver version has its own way to be absent
            return f"no NVIDIA driver: {error}"
        return None

    def _read(self, name: str) -> float:
        import pynvml

        if name == "gpu_utilization_percent":
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        if name == "gpu_memory_bytes":
            return float(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        if name == "power_w":
            return float(pynvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def _try(self, name: str) -> float | None:
        if name in self._reasons:
            return None
        try:
            return self._read(name)
        except Exception as error:  # unsupported on this GPU, or lost on the way
            self._reasons[name] = f"the driver does not tell: {error}"
            return None

    def _loop(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            for name in GPU_MEASUREMENTS[:3]:
                value = self._try(name)
                if value is not None:
                    self._samples[name].append(value)

    def __enter__(self) -> "GpuSampler":
        if self._handle is not None:
            self._energy_mj = self._try("energy_j_per_token")
            self._thread = threading.Thread(target=self._loop, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            after = self._try("energy_j_per_token")
            if after is not None and self._energy_mj is not None:
                self.energy_j = (after - self._energy_mj) / 1000

    def measurements(self, tokens: int) -> dict[str, Measurement]:
        """What was sampled, energy divided by the tokens decoded meanwhile."""
        if self.energy_j is not None and tokens:
            self._samples["energy_j_per_token"] = [self.energy_j / tokens]
        found = {}
        for name in GPU_MEASUREMENTS:
            samples = self._samples[name]
            reason = self._reasons.get(name, f"the block ended within the {INTERVAL_S * 1000:.0f} ms sampling interval")
            found[name] = Measurement.of(name, samples) if samples else Measurement.absent(name, reason)
        return found


def throttle_reasons(index: int) -> tuple[bool | None, str]:
    """Whether the driver reports a clock slowed by heat or power right now, and its words."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        bits = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    except Exception as error:  # as above
        return None, f"not observable: {error}"
    slowed = bits & (0x4 | 0x8 | 0x20 | 0x40 | 0x80)  # power cap, hardware, software thermal, hardware thermal, brake
    return bool(slowed), f"clock event reasons 0x{bits:x}"
