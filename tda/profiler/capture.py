"""Serve profiled requests with a method attached: recorded, counted, and watched for memory, each in its own pass."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from tda.device import PeakMemory
from tda.engine import Run
from tda.engine.phases import decode, prefill
from tda.profiler.counts import Counter
from tda.profiler.kernels import Table, fitted
from tda.profiler.overhead import Overhead
from tda.profiler.parts import ranges
from tda.profiler.records import Peak
from tda.profiler.trace import read_trace
from tda.spans import recording, span

REQUESTS = 3
WARM_STEPS = 4
"""Decode steps before those that count: the first after a prefill find its data in the processor's caches."""
STEPS = 4
"""Decode steps of a profiled request that count: traces stay small, and their tables quick to make."""


@dataclass(frozen=True)
class Request:
    """Prompts and what follows them, served by an attached run.

    Attributes
    ----------
    run : Run
        What `tda.attach` yielded.
    prompts, continuations : Tensor
        int64 [B, T] and [B, G], G >= `WARM_STEPS` + `STEPS`.
    """

    run: Run
    prompts: Tensor
    continuations: Tensor

    @property
    def model(self) -> nn.Module:
        """The model that serves it."""
        return self.run.model

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.prompts.device

    @torch.no_grad()
    def serve(self, steps: int = STEPS, around: Callable[[str], object] = lambda phase: None) -> list[float]:
        """Prefill, select, and decode `steps` tokens after a few, each in a range that ends when the device is done.

        `around` is told the phase before it begins. Returns how long each of these steps took, in µs.
        """
        around("prefill")
        with self._phase("prefill"):
            _, cache = prefill(self.model, self.prompts)
        around("selection")
        with self._phase("selection"):
            self.run.select()
        around("decode")
        tokens = self.continuations.split(1, dim=1)
        for token in tokens[:WARM_STEPS]:
            decode(self.model, token, cache)
        durations = []
        for token in tokens[WARM_STEPS : WARM_STEPS + steps]:
            start = time.perf_counter_ns()
            with self._phase("decode"):
                decode(self.model, token, cache)
            durations.append((time.perf_counter_ns() - start) / 1e3)
        return durations

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        with span(name):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)


def record(request: Request, path: Path) -> list[float]:
    """Serve requests under the profiler, and write its Chrome trace, gzipped.

    Returns
    -------
    list of float
        Durations in µs of the decode steps of as many requests served just before and just after, with nobody watching.
    """
    activities = [ProfilerActivity.CPU]
    if request.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    plain_us = _serve_all(request)
    with ranges(request.model), recording(record_function):
        with profile(activities=activities):  # what the profiler sets up at its first start is no part of the request
            request.serve(steps=1)
        gc.collect()
        with profile(activities=activities) as profiler:
            _serve_all(request)
    plain_us += _serve_all(request)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    return plain_us


def _serve_all(request: Request) -> list[float]:
    return [duration for _ in range(REQUESTS) for duration in request.serve()]


def count(request: Request) -> Counter:
    """Count the bytes and FLOPs of one request's operators."""
    counter = Counter()
    with ranges(request.model), recording(counter.span), counter:
        request.serve(steps=1)
    return counter


def tabulate(path: Path, counter: Counter, overhead: Overhead, plain_us: Sequence[float] = ()) -> Table:
    """Make the kernel table of a trace; recording costs what decode steps take more than unrecorded ones did."""
    trace = read_trace(path, {spot.op for spot in counter.counts})
    return Table(trace, counter.counts, counter.drivers, fitted(overhead, trace, plain_us))


def peaks(request: Request) -> dict[str, Peak]:
    """Peak memory of each driven phase of one request: the allocator's on CUDA, the resident set on a CPU."""
    found: dict[str, Peak] = {}
    watched: list[tuple[str, PeakMemory]] = []

    def note() -> None:
        for phase, memory in watched:
            found[phase] = Peak(missing=memory.problem) if memory.problem else Peak(bytes=memory.read())
        watched.clear()

    def begin(phase: str) -> None:
        note()
        watched.append((phase, PeakMemory(request.device)))

    gc.collect()
    request.serve(around=begin)
    note()
    return found


def memory_snapshot(request: Request, path: Path) -> None:
    """Write the CUDA allocator's history of one request, for PyTorch's memory viewer."""
    torch.cuda.memory._record_memory_history()
    try:
        request.serve()
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
