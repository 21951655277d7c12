"""The cores that are ours: which of them this process may run on, and how much of their time a quota leaves it."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
THREADS = Path("/proc/self/task")
CPUS = Path("/sys/devices/system/cpu")


SPINS = 10_000
"""How often an OpenMP thread looks whether the others are there before it sleeps: some tens of microseconds."""


def wait_briefly() -> None:
    """Let OpenMP's threads wait for each other actively for a shorter time than they would.

    GNU's runtime, which torch for Linux brings, waits a millisecond or more by default. Where other processes want the
    cores too, a thread then burns the time that the one it waits for needs: a calibration of many small products took
    ten times as long beside two busy loops. The runtime reads this when torch is imported; a wait that the user chose
    stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def all_cores() -> frozenset[int]:
    """Numbers of the machine's cores."""
    return frozenset(range(os.cpu_count() or 1))


def allowed_cores() -> frozenset[int]:
    """Numbers of the cores that this process may run on: all where the system binds no process to some, as macOS.

    The cores of all its threads count. OpenMP may bind each thread to a core of its own, the first one too, and then
    the first thread's affinity is no longer the process's.
    """
    try:
        return frozenset[int]().union(*(affinity(int(thread.name)) for thread in THREADS.iterdir()))
    except FileNotFoundError:
        return affinity(0)


def affinity(thread: int) -> frozenset[int]:
    """Numbers of the cores that a thread, or the first thread of a process, may run on; empty where it has ended."""
    if not hasattr(os, "sched_getaffinity"):
        return all_cores()
    try:
        return frozenset(os.sched_getaffinity(thread))
    except ProcessLookupError:
        return frozenset()


def last_level_cache(cores: Iterable[int], cpus: Path = CPUS) -> int | None:
    """Bytes of the last-level caches that some cores can use, each once; None where the system does not tell."""
    found: dict[tuple[int, str], int] = {}
    for core in cores:
        for cache in (cpus / f"cpu{core}" / "cache").glob("index*"):
            with contextlib.suppress(OSError, ValueError, LookupError):  # not there, or not as others
                level, shared, size = (
                    (cache / name).read_text().strip() for name in ("level", "shared_cpu_list", "size")
                )
                found[int(level), shared] = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}[size[-1]]
    last = max((level for level, _ in found), default=None)
    return None if last is None else sum(size for (level, _), size in found.items() if level == last)


def control_groups(groups: Path = GROUPS, own: Path = OWN_GROUPS, controller: str = "cpu") -> Iterator[Path]:
    """Folders that may tell of this process's limits: its control group, version 1 or 2, and all above it.

    Not all of them are there: a container sees its own group as the root, yet may be told its path from outside.
    """
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root, group = groups / controller if controllers else groups, Path(path.lstrip("/"))
            yield from (root / part for part in (group, *group.parents))


def cpu_quota(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> float | None:
    """How many cores' worth of time the control groups leave this process; None without a limit that can be read."""
    try:
        limits = [_limit(group) for group in control_groups(groups, own)]
    except OSError:
        return None
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):  # it is not there, not for us to read, or "max"
        amount, period = map(int, _amount_and_period(group))
        return amount / period if amount > 0 else None  # version 1 has -1 for no limit
    return None


def _amount_and_period(group: Path) -> list[str]:
    if (group / "cpu.max").exists():
        return (group / "cpu.max").read_text().split()
    return [(group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
