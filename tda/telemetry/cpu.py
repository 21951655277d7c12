"""The CPU: what this process and others use of it, and what slows it."""

import os
import resource
import time
from functools import cache
from pathlib import Path

import psutil

from tda.records import Frozen
from tda.telemetry.fields import CPU_FIELDS
from tda.telemetry.source import NotReadableError, Reader, Source, one

CPUS = Path("/sys/devices/system/cpu")
GROUPS = Path("/sys/fs/cgroup")


def cpu_source() -> Source:
    """The CPU as this process sees it; shares count from now on."""
    process = psutil.Process()
    readers = (
        Reader(("own_percent", "foreign_percent"), CpuUse().read),
        one("rss_bytes", lambda: process.memory_info().rss),
        Reader(("minor_faults", "major_faults"), _faults),
        one("load_average", lambda: os.getloadavg()[0]),
        one("frequency_mhz", lambda: frequency_mhz(CPUS)),
        one("quota_throttled_s", lambda: throttled_s(quota_file(GROUPS).read_text())),
        one("thermal_events", lambda: thermal_events(CPUS)),
    )
    return Source("cpu", CPU_FIELDS, readers)


class CpuUse:
    """Shares of all cores that this process and others used, since construction or the last reading.

    Own time is that of all threads of this process, not of its children. Time that a hypervisor gave to other guests
    (steal) is others'.
    """

    def __init__(self) -> None:
        self._before = self._seconds()

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # user time holds both
        return total - times.idle - getattr(times, "iowait", 0.0), time.process_time(), total

    def read(self) -> dict[str, float]:
        """In percent; empty if no timer tick has passed."""
        now = self._seconds()
        busy, own, total = (after - before for after, before in zip(now, self._before, strict=True))
        if total <= 0:
            return {}
        self._before = now
        return {
            "own_percent": 100 * min(own / total, 1.0),
            "foreign_percent": 100 * max(busy - own, 0.0) / total,
        }


def _faults() -> dict[str, float]:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return {"minor_faults": use.ru_minflt, "major_faults": use.ru_majflt}


def frequency_mhz(cpus: Path) -> float:
    """Clock of the fastest core that this process may use; the others may rest."""
    return max(int(path.read_text()) for path in _clock_files(cpus)) / 1000


@cache
def _clock_files(cpus: Path) -> tuple[Path, ...]:
    paths = [cpus / f"cpu{core}" / "cpufreq" / "scaling_cur_freq" for core in os.sched_getaffinity(0)]
    found = tuple(path for path in paths if path.is_file())
    if not found:
        raise NotReadableError("the system tells no clock of its cores, as in most virtual machines")
    return found


def thermal_events(cpus: Path) -> float:
    """How often heat slowed a core."""
    paths = list(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    if not paths:
        raise NotReadableError("the system does not count what heat slows, as in most virtual machines")
    return float(sum(int(path.read_text()) for path in paths))


@cache
def quota_file(groups: Path, own: Path = Path("/proc/self/cgroup")) -> Path:
    """The file that tells of this process's CPU quota: control groups of version 1 or 2, seen from within or without.

    Raises
    ------
    NotReadableError
        If no control group tells of one.
    """
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        for folder in (root / path.lstrip("/"), root):  # a container sees its own group as the root
            file = folder / "cpu.stat"
            if file.is_file() and "throttled_" in file.read_text():
                return file
    raise NotReadableError("no control group tells of a CPU quota")


def throttled_s(told: str) -> float:
    """Seconds that a ``cpu.stat`` says a quota held its group back."""
    values = dict(line.split() for line in told.splitlines())
    if "throttled_usec" in values:
        return int(values["throttled_usec"]) / 1e6
    return int(values["throttled_time"]) / 1e9


class Neighbour(Frozen):
    """Other processes of one name, and the share of all cores that they used together, 0 to 1."""

    name: str
    share: float


class Neighbours:
    """Who else uses the cores, since construction."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._before = self._used()

    @staticmethod
    def _used() -> dict[tuple[int, float], tuple[str, float]]:
        """Name and CPU seconds of every process but this one, by what it keeps for life: number and birth."""
        found = {}
        for process in psutil.process_iter(["name", "cpu_times", "create_time"]):
            told = process.info
            if process.pid != os.getpid() and told["cpu_times"] is not None:
                seconds = told["cpu_times"].user + told["cpu_times"].system
                found[process.pid, told["create_time"]] = told["name"] or "unnamed", seconds
        return found

    def read(self) -> list[Neighbour]:
        """By share, the largest first; those that used nothing are left out."""
        used: dict[str, float] = {}
        for process, (name, seconds) in self._used().items():
            _, before = self._before.get(process, ("", 0.0))
            used[name] = used.get(name, 0.0) + seconds - before
        capacity = (time.monotonic() - self._begin) * (os.cpu_count() or 1)
        found = [Neighbour(name=name, share=seconds / capacity) for name, seconds in used.items() if seconds > 0]
        return sorted(found, key=lambda neighbour: -neighbour.share)
