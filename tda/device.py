"""Facts about the machine, and the clocks that read it: one code path for CPU and CUDA."""

import contextlib
import os
import platform
import resource
import time
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil
import torch

from tda import git
from tda._version import __version__
from tda.cores import all_cores, allowed_cores, cpu_quota, last_level_cache
from tda.git import GitError
from tda.process import BUILD
from tda.processor import compiler_version, cpu_name, products
from tda.records import BUILD_STAMP, Commit, FailureKind, Machine
from tda.telemetry.nvml import driver_version
from tda.telemetry.source import NotReadableError


@cache
def machine(device: str) -> Machine:
    """Describe the machine that runs, with the GPU that `device` names, if any; ValueError without such a device."""
    gpu = torch.cuda.get_device_name(device) if torch_device(device).type == "cuda" else None
    torch.ones(torch.get_num_threads() << 15).sum()  # starts all threads, which OpenMP may bind to a core each
    cores, allowed = all_cores(), allowed_cores()
    return Machine(
        cpu=cpu_name(),
        cores=len(cores),
        allowed_cores=None if allowed == cores else len(allowed),
        cpu_quota=cpu_quota(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        cache_bytes=cache_bytes("cpu"),
        gpu=gpu,
        driver=_driver() if gpu else None,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=metadata.version("transformers"),
        tda=__version__,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        products=products(),
        compiler=compiler_version(),
    )


def cache_bytes(device: str | torch.device) -> int | None:
    """Bytes of a device's last-level cache, as far as this process can use it; None where the system does not tell.

    Raises
    ------
    ValueError
        If the device is not here.
    """
    place = torch_device(device)
    if place.type == "cuda":
        return int(torch.cuda.get_device_properties(place).L2_cache_size)
    return last_level_cache(allowed_cores())


def _driver() -> str | None:
    with contextlib.suppress(NotReadableError):
        return driver_version()
    return None


@cache
def commit() -> Commit:
    """Stamp of the build that is measured, or state of the checkout that this package runs from; nulls without either.

    A checkout that git does not read, as one that another user owns, is warned of.
    """
    folder = Path(__file__).resolve().parent
    for stamp in (Path(os.environ.get(BUILD) or folder, BUILD_STAMP), folder / BUILD_STAMP):
        if stamp.is_file():
            return Commit.model_validate_json(stamp.read_bytes())
    try:
        if not git.run(folder, "ls-files", "device.py"):  # installed inside somebody's checkout
            return Commit()
        change = git.change(folder)
        return Commit(hash=git.run(folder, "rev-parse", "HEAD"), dirty=change is not None, change=change)
    except GitError as error:
        if any((above / ".git").exists() for above in folder.parents):
            warnings.warn(f"results carry no commit: {error}", stacklevel=2)
        return Commit()


def check_same_code(theirs: Commit) -> None:
    """Raise ValueError if another process runs other code than this one, as after a change of the checkout."""
    own = commit()
    if (theirs.hash, theirs.change) == (own.hash, own.change):
        return
    theirs_told, own_told = (f"commit {one.hash}, uncommitted change {one.change}" for one in (theirs, own))
    raise ValueError(f"a worker runs other code ({theirs_told}) than what started it ({own_told}); start again")


def torch_device(name: str | torch.device) -> torch.device:
    """The device of a name: cpu, cuda, or cuda with a number.

    Raises
    ------
    ValueError
        If it is none of those, or not on this machine.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ("cpu", *(("cuda", *(f"cuda:{number}" for number in range(gpus))) if gpus else ()))
    if str(name) in here:
        return torch.device(name)
    if str(name).partition(":")[0] != "cuda":
        problem = f"unknown device {str(name)!r}"
    else:
        problem = f"no device {str(name)!r}: torch sees {f'{gpus} CUDA devices' if gpus else 'no CUDA device'}"
    raise ValueError(f"{problem}; accepted here: {', '.join(here)}")


def failure_kind(error: BaseException) -> FailureKind:
    """What an error says of a case: whether a GPU, or the machine, had no memory left, or something else."""
    words = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or ("cuda" in words and "out of memory" in words):
        return "gpu_memory"
    if isinstance(error, MemoryError) or "out of memory" in words or "can't allocate" in words:
        return "host_memory"
    return "error"


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Let a GPU be the one that kernels, graphs and events of this thread are for, inside the block."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Timer:
    """Milliseconds of what runs inside `timing`: CUDA events on a GPU, the monotonic clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ms = float("nan")

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        """Time the block; `ms` holds the result afterwards."""
        if self.device.type != "cuda":
            start = time.perf_counter_ns()
            yield
            self.ms = (time.perf_counter_ns() - start) / 1e6
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        with current(self.device):
            begin.record()
            yield
            end.record()
        end.synchronize()
        self.ms = begin.elapsed_time(end)


class RangeClock:
    """Milliseconds of named ranges, for `tda.spans.recording`; on a GPU nothing waits for an event until `read`.

    Events are made once and used again: making one takes the host as long as launching a kernel.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}
        self._ms: dict[str, float] = {}
        self._free: list[torch.cuda.Event] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Open a range."""
        if self.device.type != "cuda":
            start = time.perf_counter_ns()
            yield
            self._ms[name] = self._ms.get(name, 0.0) + (time.perf_counter_ns() - start) / 1e6
            return
        begin, end = (self._free.pop() if self._free else torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(torch.cuda.current_stream(self.device))
        yield
        end.record(torch.cuda.current_stream(self.device))
        self._pairs.setdefault(name, []).append((begin, end))

    def read(self) -> dict[str, float]:
        """What each range took in all since the last reading; without those that were not opened."""
        if self._pairs:
            torch.cuda.synchronize(self.device)
        on_gpu = {name: sum(begin.elapsed_time(end) for begin, end in pairs) for name, pairs in self._pairs.items()}
        self._free += [event for pairs in self._pairs.values() for pair in pairs for event in pair]
        found, self._ms, self._pairs = self._ms | on_gpu, {}, {}
        return found


class PeakMemory:
    """Peak memory since construction: the allocator's on CUDA, this process's resident set on CPU.

    While a CUDA graph lives, its private pool holds memory that is allocated only while the graph is captured: nobody
    else gets it, so it counts too. Pools of graphs that are gone are given back first.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.problem: str | None = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError as error:
            self.problem = f"peak resident set cannot be reset here: {error.strerror}"

    def read(self) -> int:
        """Peak bytes since construction (since the process started, where `problem` is set)."""
        if self.device.type == "cuda":
            return self.allocated() + unused_by_graphs(self.device)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def allocated(self) -> int:
        """Peak bytes of tensors on a GPU since construction: what counts where a graph was captured meanwhile."""
        return int(torch.cuda.max_memory_allocated(self.device))


def unused_by_graphs(device: torch.device) -> int:
    """Bytes that private pools of CUDA graphs hold on a GPU beyond what is allocated in them now."""
    number = torch.cuda.current_device() if device.index is None else device.index
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == number and tuple(segment["segment_pool_id"]) != (0, 0)
    )
