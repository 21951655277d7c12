"""Serve profiled requests with a method attached: recorded, counted, and watched for memory, each in its own pass."""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tda.device import PeakMemory
from tda.engine.graph import GraphStep
from tda.engine.session import Session, unwatched
from tda.profiler.counts import Counter
from tda.profiler.kernels import KernelTable, fitted
from tda.profiler.overhead import Overhead
from tda.profiler.parts import ranges
from tda.profiler.records import Peak
from tda.profiler.replay import read_order, tell_apart
from tda.profiler.trace import read_trace
from tda.spans import Recorder, counting, recording, span

REQUESTS = 3
WARM_STEPS = 4
"""Decode steps before those that count: the first after a prefill find its data in the processor's caches."""
STEPS = 4
"""Decode steps of a profiled request that count: traces stay small, and their tables quick to make."""


def serve(session: Session, steps: int = STEPS, watch: Recorder = unwatched) -> list[float]:
    """Prefill, select, and decode `steps` tokens after a few, each in a range that ends when the device is done.

    Parameters
    ----------
    session : Session
        A request with a continuation of more than `WARM_STEPS` + `STEPS` tokens: the last is fed to no step.
    steps : int
        Decode steps that count.
    watch : callable
        Opens another range around each phase.

    Returns
    -------
    list of float
        How long each of these steps took, in µs.
    """
    device, durations = session.device, []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        with watch(name), span(name):
            yield
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    session.watch = phase
    session.prefill()
    session.select()
    _warm(session)
    session.watch = phase
    counted = session.steps(WARM_STEPS, WARM_STEPS + steps)
    for _ in range(steps):
        start = time.perf_counter_ns()
        next(counted)
        durations.append((time.perf_counter_ns() - start) / 1e3)
    return durations


def _warm(session: Session) -> None:
    """Decode a few tokens unwatched; the device is done with them before the first step that counts."""
    session.watch = unwatched
    for _ in session.steps(stop=WARM_STEPS):
        pass
    if session.device.type == "cuda":
        torch.cuda.synchronize(session.device)


def record(session: Session, path: Path) -> list[float]:
    """Serve requests under the profiler, and write its Chrome trace, gzipped.

    Returns
    -------
    list of float
        Durations in µs of the decode steps of as many requests served just before and just after, with nobody watching.
    """
    activities = _activities(session)
    plain_us = _serve_all(session)
    with ranges(session.model), recording(record_function):
        with profile(activities=activities):  # what the profiler sets up at its first start is no part of the request
            serve(session, steps=1)
        gc.collect()
        with profile(activities=activities) as profiler:
            _serve_all(session)
    plain_us += _serve_all(session)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    return plain_us


def _serve_all(session: Session) -> list[float]:
    return [duration for _ in range(REQUESTS) for duration in serve(session)]


def _activities(session: Session) -> list[ProfilerActivity]:
    on_gpu = session.device.type == "cuda"
    return [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]


def record_order(session: Session, path: Path) -> Path | None:
    """Record a decode step whose captured work is run anew: its trace says which module launches which kernel.

    Returns
    -------
    Path or None
        The trace, which is small; None where no step is captured.
    """
    if _graph(session) is None:
        return None
    session.watch = unwatched
    session.prefill()
    session.select()
    with ranges(session.model), run_anew(session):
        _warm(session)
        step = session.steps(WARM_STEPS, WARM_STEPS + 1)
        with recording(record_function), profile(activities=_activities(session)) as profiler, span("decode"):
            next(step)
            if session.device.type == "cuda":
                torch.cuda.synchronize(session.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    return path


def _graph(session: Session) -> GraphStep | None:
    step = session.run.attachment.decoding.step
    return step if isinstance(step, GraphStep) else None


def run_anew(session: Session) -> AbstractContextManager[None]:
    """Have decode steps inside the block run as Python where a graph would be replayed: what ran there is seen."""
    graph = _graph(session)
    return nullcontext() if graph is None else graph.eager()


def count(session: Session) -> Counter:
    """Count the bytes and FLOPs of one request's operators and kernels."""
    counter = Counter()
    with run_anew(session), ranges(session.model), recording(counter.span), counting(counter.cost), counter:
        serve(session, steps=1)
    return counter


def tabulate(
    path: Path, counter: Counter, overhead: Overhead, plain_us: Sequence[float] = (), order: Path | None = None
) -> KernelTable:
    """Make the kernel table of a trace; recording costs what decode steps take more than unrecorded ones did.

    Parameters
    ----------
    path : Path
        Trace of requests.
    counter : Counter
        What was counted of one.
    overhead : Overhead
        As measured on empty events.
    plain_us : sequence of float
        Durations of unrecorded steps.
    order : Path, optional
        Trace of a step whose captured work was run anew, where steps are replayed.
    """
    counted = {spot.op for spot in counter.counts}
    trace = tell_apart(read_trace(path, counted), () if order is None else read_order(order, counted))
    return KernelTable(trace, counter.counts, counter.drivers, fitted(overhead, trace, plain_us))


def peaks(session: Session) -> dict[str, Peak]:
    """Peak memory of each driven phase of one request: the allocator's on CUDA, the resident set on a CPU."""
    found: dict[str, Peak] = {}

    @contextmanager
    def watch(phase: str) -> Iterator[None]:
        memory = PeakMemory(session.device)
        yield
        bytes_before = found[phase].bytes if phase in found else None
        found[phase] = (
            Peak(missing=memory.problem) if memory.problem else Peak(bytes=max(memory.read(), bytes_before or 0))
        )

    gc.collect()
    serve(session, watch=watch)
    return found


def memory_snapshot(session: Session, path: Path) -> None:
    """Write the CUDA allocator's history of one request, for PyTorch's memory viewer."""
    torch.cuda.memory._record_memory_history()
    try:
        serve(session)
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
