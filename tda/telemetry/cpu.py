"""The CPU: what this process and others use of the cores that it may run on, and what slows it."""

import os
import resource
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

from tda.cases import Frozen
from tda.cores import affinity, allowed_cores, control_groups
from tda.telemetry.fields import CPU_FIELDS
from tda.telemetry.source import NotReadableError, Reader, TelemetrySource, one

CPUS = Path("/sys/devices/system/cpu")
STAT = Path("/proc/stat")


def cpu_source() -> TelemetrySource:
    """The CPU as this process sees it; shares count from now on."""
    process = psutil.Process()
    readers = (
        Reader(("own_percent", "foreign_percent"), CpuUse().read),
        one("rss_bytes", lambda: process.memory_info().rss),
        Reader(("minor_faults", "major_faults"), _faults),
        one("load_average", lambda: os.getloadavg()[0]),
        one("frequency_mhz", lambda: frequency_mhz(CPUS)),
        one("quota_throttled_s", lambda: throttled_s(control_groups())),
        one("thermal_events", lambda: thermal_events(CPUS)),
    )
    return TelemetrySource("cpu", CPU_FIELDS, readers)


class Times(NamedTuple):
    """CPU seconds of a core since the system began: those in which it worked or a hypervisor gave it away, and all."""

    busy: float
    total: float


def core_times(stat: Path) -> dict[int, Times]:
    """Times of every core by its number; `stat` is the system's account of them, where it keeps one."""
    if not stat.is_file():
        rows = enumerate(psutil.cpu_times(percpu=True))
        return {core: Times(sum(seconds) - seconds.idle, sum(seconds)) for core, seconds in rows}
    found, tick = {}, os.sysconf("SC_CLK_TCK")
    for line in stat.read_text().splitlines():
        if line.startswith("cpu") and not line.startswith("cpu "):  # that one is the sum of all
            name, *told = line.split()
            seconds = [int(ticks) / tick for ticks in told[:8]]  # what guests use, the rest, is user time too
            idle, waiting, total = seconds[3], seconds[4], sum(seconds)
            found[int(name[3:])] = Times(total - idle - waiting, total)
    return found


class CpuUse:
    """Shares of the cores that are ours, used by this process and by others since construction or the last reading.

    Own time is that of all threads of this process, not of its children. Time that a hypervisor gave to other guests
    (steal) is others'.

    Parameters
    ----------
    stat : Path
        The system's account of its cores' times.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._before = self._seconds()

    def _seconds(self) -> tuple[dict[int, Times], float]:
        return core_times(self._stat), time.process_time()

    def read(self) -> dict[str, float]:
        """In percent; empty if no timer tick has passed.

        Raises
        ------
        NotReadableError
            If a core of ours has no account, as in a container that numbers its cores anew.
        """
        (before, own_before), (now, own_now), ours = self._before, self._seconds(), allowed_cores()
        if not ours <= before.keys() & now.keys():
            raise NotReadableError("the system does not tell the times of the cores that this process may run on")
        busy = sum(now[core].busy - before[core].busy for core in ours)
        total = sum(now[core].total - before[core].total for core in ours)
        own = own_now - own_before
        if total <= 0:
            return {}
        self._before = now, own_now
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
    paths = [cpus / f"cpu{core}" / "cpufreq" / "scaling_cur_freq" for core in allowed_cores()]
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


def throttled_s(groups: Iterable[Path]) -> float:
    """Seconds that CPU quotas held this process back: its control group's, and those of the groups above it."""
    held = [seconds for group in groups if (seconds := _held_s(group / "cpu.stat")) is not None]
    if not held:
        raise NotReadableError("no control group tells of a CPU quota")
    return sum(held)


def _held_s(stat: Path) -> float | None:
    """Seconds that a quota held a group back; None where its account is not there, or there is none for quotas."""
    values = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    if "throttled_usec" in values:
        return int(values["throttled_usec"]) / 1e6
    return int(values["throttled_time"]) / 1e9 if "throttled_time" in values else None


class BackgroundProcess(Frozen):
    """Other processes of one name, and the share that they used together of the cores that this process may run on.

    What of it they used on other cores, where they may run too, is not known; a share is never more than 1.
    """

    name: str
    share: float


class BackgroundProcesses:
    """Who else uses the cores that this process may run on, since construction."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._before = self._used()

    @staticmethod
    def _used() -> dict[tuple[int, float], tuple[str, float]]:
        """Name and CPU seconds of other processes on our cores, by what they keep for life: number and birth."""
        found, ours = {}, allowed_cores()
        for process in psutil.process_iter(["name", "cpu_times", "create_time"]):
            told = process.info
            if process.pid != os.getpid() and told["cpu_times"] is not None and ours & affinity(process.pid):
                seconds = told["cpu_times"].user + told["cpu_times"].system
                found[process.pid, told["create_time"]] = told["name"] or "unnamed", seconds
        return found

    def read(self) -> list[BackgroundProcess]:
        """By share, the largest first; those that used nothing are left out."""
        used: dict[str, float] = {}
        for process, (name, seconds) in self._used().items():
            _, before = self._before.get(process, ("", 0.0))
            used[name] = used.get(name, 0.0) + seconds - before
        capacity = (time.monotonic() - self._begin) * len(allowed_cores())
        shares = {name: min(seconds / capacity, 1.0) for name, seconds in used.items() if seconds > 0}
        found = [BackgroundProcess(name=name, share=share) for name, share in shares.items()]
        return sorted(found, key=lambda neighbour: -neighbour.share)
