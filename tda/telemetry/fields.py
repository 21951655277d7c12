"""What is read of a machine: every field with its unit and meaning."""

from collections.abc import Mapping
from typing import NamedTuple


class Field(NamedTuple):
    """What a field's values are."""

    unit: str
    meaning: str


CPU_FIELDS: Mapping[str, Field] = {
    "own_percent": Field("%", "fraction of the cores it may run on that this process used since the reading before"),
    "foreign_percent": Field("%", "fraction of them that others used, or that a hypervisor gave to other guests"),
    "rss_bytes": Field("B", "resident set of this process"),
    "minor_faults": Field("faults", "page faults of this process that memory served, since it began"),
    "major_faults": Field("faults", "page faults of this process that a disk served, since it began"),
    "load_average": Field("processes", "that ran or waited to run, mean over a minute"),
    "frequency_mhz": Field("MHz", "clock of the fastest core"),
    "quota_throttled_s": Field("s", "how long CPU quotas held this process's control groups back, since they began"),
    "thermal_events": Field("events", "cores slowed by heat, since the system began"),
}
GPU_FIELDS: Mapping[str, Field] = {
    "energy_j": Field("J", "energy counter, since the driver was loaded"),
    "power_w": Field("W", "board power, the driver's mean over about a second"),
    "utilization_percent": Field("%", "fraction of the driver's last sample period in which some kernel ran"),
    "memory_utilization_percent": Field("%", "fraction of that period in which device memory was read or written"),
    "memory_bytes": Field("B", "device memory in use, by whomever"),
    "unexplained_memory_bytes": Field("B", "device memory in use that no process which the driver names holds"),
    "foreign_processes": Field("processes", "other processes on the device"),
    "sm_clock_mhz": Field("MHz", "clock of the multiprocessors"),
    "memory_clock_mhz": Field("MHz", "clock of the device memory"),
    "clock_event_reasons": Field("bits", "why the clocks are not higher now, as NVML numbers the reasons"),
    "slowed_s": Field("s", "how long power or heat held the clocks down, since the driver was loaded"),
    "temperature_c": Field("°C", "temperature of the chip"),
    "sm_activity_percent": Field("%", "multiprocessors that had work, mean since the reading before (GPM)"),
    "sm_occupancy_percent": Field("%", "warps in flight of those possible, mean since the reading before (GPM)"),
    "tensor_activity_percent": Field("%", "time in which tensor cores worked, since the reading before (GPM)"),
    "dram_activity_percent": Field("%", "device memory bandwidth used, mean since the reading before (GPM)"),
    "corrected_errors": Field("errors", "that ECC corrected, since the driver was loaded"),
    "uncorrected_errors": Field("errors", "that ECC found and could not correct, since the driver was loaded"),
    "pcie_sent_kb_per_s": Field("KB/s", "sent over PCIe, mean over 20 ms"),
    "pcie_received_kb_per_s": Field("KB/s", "received over PCIe, mean over 20 ms"),
}
