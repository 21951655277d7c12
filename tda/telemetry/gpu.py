"""One GPU: what its driver tells of load, power, clocks, memory and who holds it."""

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tda.telemetry.fields import GPU_FIELDS
from tda.telemetry.nvml import NvmlDevice, call, find, library
from tda.telemetry.source import NotReadableError, Reader, SourceValues, TelemetrySource, one

if TYPE_CHECKING:
    import torch

MEMORY_V2 = 0x02000028
"""Version of NVML's memory structure that keeps apart what the driver reserves for itself."""
SLOWED = (74, 269, 270, 271)
"""NVML's field numbers of the nanoseconds under the power cap, software heat, hardware heat and the power brake."""
GPM = {
    "sm_activity_percent": 2,
    "sm_occupancy_percent": 3,
    "tensor_activity_percent": 5,
    "dram_activity_percent": 10,
}
"""NVML's numbers of the GPM metrics."""


def gpu_source(device: "torch.device") -> TelemetrySource:
    """The GPU behind a CUDA device; where it cannot be found, every field says why."""
    try:
        gpu = find(device)
        return TelemetrySource(gpu.device, GPU_FIELDS, _readers(gpu), gpu.name)
    except NotReadableError as error:
        return TelemetrySource.absent(f"gpu{device.index or 0}", GPU_FIELDS, str(error))


def _readers(gpu: NvmlDevice) -> list[Reader]:
    handle = gpu.handle

    def number(name: str, function: str, *arguments: int, scale: float = 1.0, slow: bool = False) -> Reader:
        return one(name, lambda: call(function, handle, *arguments) / scale, slow=slow)

    return [
        number("energy_j", "nvmlDeviceGetTotalEnergyConsumption", scale=1000),
        number("power_w", "nvmlDeviceGetPowerUsage", scale=1000),
        Reader(("utilization_percent", "memory_utilization_percent"), lambda: _utilization(handle)),
        one("memory_bytes", lambda: _memory_bytes(handle)),
        one("unexplained_memory_bytes", lambda: _unexplained_bytes(gpu)),
        one("foreign_processes", lambda: _foreign_processes(gpu)),
        number("sm_clock_mhz", "nvmlDeviceGetClockInfo", 1),
        number("memory_clock_mhz", "nvmlDeviceGetClockInfo", 2),
        one("clock_event_reasons", lambda: _event_reasons(handle)),
        one("slowed_s", lambda: _slowed_s(handle)),
        number("temperature_c", "nvmlDeviceGetTemperature", 0),
        Reader(tuple(GPM), Activity(handle).read),
        number("corrected_errors", "nvmlDeviceGetTotalEccErrors", 0, 0),
        number("uncorrected_errors", "nvmlDeviceGetTotalEccErrors", 1, 0),
        number("pcie_sent_kb_per_s", "nvmlDeviceGetPcieThroughput", 0, slow=True),
        number("pcie_received_kb_per_s", "nvmlDeviceGetPcieThroughput", 1, slow=True),
    ]


def _utilization(handle: Any) -> SourceValues:
    rates = call("nvmlDeviceGetUtilizationRates", handle)
    return {"utilization_percent": rates.gpu, "memory_utilization_percent": rates.memory}


def _memory_bytes(handle: Any) -> float:
    with suppress(NotReadableError):  # a driver before 510
        return float(call("nvmlDeviceGetMemoryInfo", handle, MEMORY_V2).used)
    return float(call("nvmlDeviceGetMemoryInfo", handle).used)


def _event_reasons(handle: Any) -> float:
    with suppress(NotReadableError):  # a driver before 535
        return float(call("nvmlDeviceGetCurrentClocksEventReasons", handle))
    return float(call("nvmlDeviceGetCurrentClocksThrottleReasons", handle))


def _slowed_s(handle: Any) -> float:
    values = call("nvmlDeviceGetFieldValues", handle, SLOWED)
    told = [value.value.ullVal for value in values if value.nvmlReturn == 0]
    if not told:
        raise NotReadableError("this GPU does not count how long its clocks were held down")
    return float(sum(told)) / 1e9


def processes(handle: Any) -> dict[int, int | None]:
    """Bytes that each process on a GPU holds, by its number; None where the driver does not tell."""
    found = list(call("nvmlDeviceGetComputeRunningProcesses_v3", handle))
    with suppress(NotReadableError):  # a GPU without graphics
        found += call("nvmlDeviceGetGraphicsRunningProcesses_v3", handle)
    return {process.pid: process.usedGpuMemory for process in found}


def _foreign_processes(gpu: NvmlDevice) -> float:
    """Others on the GPU. In a container the driver may count by the host's numbers: then one of them is ours."""
    listed = processes(gpu.handle)
    others = len(listed.keys() - {os.getpid()})
    if others < len(listed) or not _own_bytes(gpu):
        return float(others)
    if not others:
        raise NotReadableError("the driver lists no process here, not even this one")
    return float(others - 1)


def _unexplained_bytes(gpu: NvmlDevice) -> float:
    held = processes(gpu.handle)
    if None in held.values():
        raise NotReadableError("the driver does not tell how much memory each process holds")
    listed = sum(size or 0 for size in held.values())
    return max(_memory_bytes(gpu.handle) - max(listed, _own_bytes(gpu)), 0.0)


def _own_bytes(gpu: NvmlDevice) -> int:
    """Device memory that this process's allocator holds."""
    import torch

    return torch.cuda.memory_reserved(gpu.number) if torch.cuda.is_initialized() else 0


class Activity:
    """Hardware activity counters (GPM; Hopper and later) between one reading and the next."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._samples: list[Any] = []  # the last one taken stands last

    def read(self) -> SourceValues:
        """Means since the last reading, in percent; empty the first time."""
        if not self._samples:
            self._samples = self._allocate()
            call("nvmlGpmSampleGet", self._handle, self._samples[-1])
            return {}
        self._samples.reverse()
        before, now = self._samples
        call("nvmlGpmSampleGet", self._handle, now)
        request = library().c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = 1, len(GPM)
        request.sample1, request.sample2 = before, now
        for place, number in enumerate(GPM.values()):
            request.metrics[place].metricId = number
        metrics = call("nvmlGpmMetricsGet", request).metrics
        return {name: _metric(metrics[place]) for place, name in enumerate(GPM)}

    def _allocate(self) -> list[Any]:
        if not call("nvmlGpmQueryDeviceSupport", self._handle).isSupportedDevice:
            raise NotReadableError("this GPU has no GPM counters")
        samples = [call("nvmlGpmSampleAlloc") for _ in range(2)]
        weakref.finalize(self, _free, samples[0], samples[1]).atexit = False
        return samples


def _metric(metric: Any) -> "float | NotReadableError":
    if metric.nvmlReturn != 0:
        return NotReadableError(f"the GPU does not tell this GPM metric (error {metric.nvmlReturn})")
    return float(metric.value)


def _free(*samples: Any) -> None:
    for sample in samples:
        with suppress(NotReadableError):  # the GPU may be lost
            call("nvmlGpmSampleFree", sample)


def gpu_facts(gpu: NvmlDevice | NotReadableError) -> dict[str, str]:
    """What stays as it is while work runs, in words; or why it is not known."""
    if isinstance(gpu, NotReadableError):
        return {"name": f"unreadable: {gpu}"}
    handle = gpu.handle
    facts: dict[str, Callable[[], str]] = {
        "name": lambda: gpu.name,
        "UUID": lambda: str(call("nvmlDeviceGetUUID", handle)),
        "ECC": lambda: _state(call("nvmlDeviceGetEccMode", handle)[0]),
        "MIG": lambda: _state(call("nvmlDeviceGetMigMode", handle)[0]),
        "uncorrected errors": lambda: str(call("nvmlDeviceGetTotalEccErrors", handle, 1, 0)),
        "power limit": lambda: f"{call('nvmlDeviceGetPowerManagementLimit', handle) / 1000:.0f} W",
        "SM clock": lambda: _clock(handle),
        "processes": lambda: _listed(processes(handle)),
    }
    return {name: _value_or_reason(read) for name, read in facts.items()}


def _value_or_reason(read: Callable[[], str]) -> str:
    try:
        return read()
    except NotReadableError as error:
        return f"unknown: {error}"


def _state(number: int) -> str:
    return "on" if number else "off"


def _listed(held: dict[int, int | None]) -> str:
    sizes = (f"{pid} ({'?' if size is None else f'{size / 1e9:.1f}'} GB)" for pid, size in held.items())
    return ", ".join(sizes) or "none"


def _clock(handle: Any) -> str:
    return f"{call('nvmlDeviceGetClockInfo', handle, 1)} of {call('nvmlDeviceGetMaxClockInfo', handle, 1)} MHz"
