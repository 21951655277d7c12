"""Read a Chrome trace of `torch.profiler`: every operator, range and device kernel with the place where it belongs.

Host events of the driving thread nest; the self time of one is its duration less what lies directly in it, so the self
times below a range add up to its duration. A device kernel belongs where the host launched it; those of a replayed
graph have one launch, and `tda.profiler.replay` tells them apart.
"""

import bisect
import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tda.profiler.parts import PARTS, SEPARATOR
from tda.spans import PHASES

HostKind = Literal["op", "span", "launch"]
KINDS: Mapping[str, HostKind] = {
    "cpu_op": "op",
    "user_annotation": "span",
    "cuda_runtime": "launch",
    "cuda_driver": "launch",
}
"""Host events by the category that the profiler files them under."""
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
REPLAYS = ("cudaGraphLaunch", "cuGraphLaunch")
"""Launches of a whole graph: all of its kernels have the launch's correlation."""
ROUNDING_US = 0.002
"""Stamps are rounded to nanoseconds, so a child may seem to outlast its parent by this."""


@dataclass(frozen=True)
class TracePlace:
    """Where in a request something happened.

    Attributes
    ----------
    phase : str
        One of `tda.spans.PHASES`; within decode always "decode".
    step : int
        Number of the range of the phase's driver: the how manieth prefill, selection or decode step.
    part : str
        One of `tda.profiler.parts.PARTS`, or a phase's name where a phase's work is done outside any part.
    module : str
        Path of the innermost named module; empty outside.
    op : str
        The outermost operator of those that were counted; empty outside. A kernel that no such operator launched is
        its own.
    """

    phase: str
    step: int
    part: str
    module: str = ""
    op: str = ""


@dataclass(slots=True)
class Host:
    """An event of the driving thread; times in µs."""

    kind: HostKind
    name: str
    start: float
    end: float
    correlation: int | None
    place: TracePlace | None = None
    self_us: float = 0.0
    children: dict[HostKind, int] = field(default_factory=dict)
    """How many events lie directly in it, by kind."""


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """A device kernel or copy; times in µs.

    Attributes
    ----------
    launched : Host or None
        The call that launched it; None where the driving thread did not.
    place : TracePlace or None
        Where it belongs.
    """

    name: str
    start: float
    end: float
    launched: Host | None
    place: TracePlace | None

    @property
    def replayed(self) -> bool:
        """Whether it ran in the replay of a graph."""
        return self.launched is not None and self.launched.name.startswith(REPLAYS)


@dataclass(frozen=True)
class Trace:
    """What a trace holds.

    Attributes
    ----------
    hosts : list of Host
        Events of the thread that drove the model, in order of their start.
    kernels : list of KernelEvent
        Device events in order of their start; empty on a CPU.
    steps : dict
        Start and end in µs of each driver range by phase: prefill, selection, decode.
    untold : tuple of str
        Sentences on kernels of replays whose place is not known.
    """

    hosts: list[Host]
    kernels: list[KernelEvent]
    steps: dict[str, list[tuple[float, float]]]
    untold: tuple[str, ...] = ()


def read_trace(path: Path, counted: Iterable[str] = ()) -> Trace:
    """Read a trace.

    Parameters
    ----------
    path : Path
        Chrome trace, gzipped.
    counted : iterable of str
        Names of the operators whose bytes and FLOPs were counted: an operator inside one of them belongs to it.

    Raises
    ------
    ValueError
        If it is no trace of a profiled request.
    """
    events = _events(path)
    threads = {event["tid"] for event in events if event.get("cat") == "user_annotation" and event["name"] in PHASES}
    if len(threads) != 1:
        raise ValueError(f"{path} holds ranges of a request on {len(threads)} threads; expected one thread")
    (driver,) = threads
    hosts = sorted(
        (_host(event) for event in events if event["tid"] == driver and _counts(event)),
        key=lambda host: (host.start, -host.end),
    )
    steps = _nest(hosts, frozenset(counted))
    launches = {host.correlation: host for host in hosts if host.kind == "launch"}
    kernels = sorted(
        (_kernel(event, launches.get(event["args"].get("correlation"))) for event in events if event["cat"] in DEVICE),
        key=_start,
    )
    return Trace(hosts, kernels, steps)


def _events(path: Path) -> list[dict[str, Any]]:
    """Complete events of a trace."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = json.load(file)["traceEvents"]
    except (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no gzipped Chrome trace: {error}") from None
    return [event for event in found if event.get("ph") == "X" and "cat" in event]


def _counts(event: Mapping[str, Any]) -> bool:
    """Whether an event is the work's own; the operators that open and close ranges are part of recording."""
    return event.get("cat") in KINDS and not event["name"].startswith("profiler::")


def _host(event: Mapping[str, Any]) -> Host:
    start = event["ts"]
    return Host(
        KINDS[event["cat"]], event["name"], start, start + event["dur"], event.get("args", {}).get("correlation")
    )


def _kernel(event: Mapping[str, Any], launched: Host | None) -> KernelEvent:
    name, start, place = event["name"], event["ts"], None if launched is None else launched.place
    if place is not None and not place.op:
        place = replace(place, op=name)
    return KernelEvent(name, start, start + event["dur"], launched, place)


def _nest(hosts: list[Host], counted: frozenset[str]) -> dict[str, list[tuple[float, float]]]:
    """Fill in places, self times and children of nested events; return the driver's ranges by phase."""
    steps: dict[str, list[tuple[float, float]]] = {}
    around: list[Host] = []
    for host in hosts:
        while around and around[-1].end < host.end - ROUNDING_US:
            around.pop()
        parent = around[-1] if around else None
        host.self_us = host.end - host.start
        if parent is not None:
            parent.self_us -= host.self_us
            parent.children[host.kind] = parent.children.get(host.kind, 0) + 1
        outer = None if parent is None else parent.place
        if host.kind == "span" and outer is None and host.name in PHASES:
            ranges = steps.setdefault(host.name, [])
            host.place = TracePlace(host.name, len(ranges), host.name)
            ranges.append((host.start, host.end))
        elif outer is not None:
            host.place = _inside(host, outer, counted)
        around.append(host)
    return steps


def _inside(host: Host, outer: TracePlace, counted: frozenset[str]) -> TracePlace:
    """Place of an event that lies in another."""
    if host.kind == "op":
        op = outer.op or (host.name if host.name in counted else "")
        return TracePlace(outer.phase, outer.step, outer.part, outer.module, op)
    if host.kind == "launch":
        return outer
    name, _, module = host.name.partition(SEPARATOR)
    if name in PHASES:
        return TracePlace(outer.phase if outer.phase == "decode" else name, outer.step, name, outer.module)
    if name in PARTS:
        return TracePlace(outer.phase, outer.step, name, module or outer.module)
    return outer


def within(kernels: list[KernelEvent], start: float, end: float) -> list[KernelEvent]:
    """Kernels that start within a range; kernels in order of their start."""
    return kernels[bisect.bisect_left(kernels, start, key=_start) : bisect.bisect_left(kernels, end, key=_start)]


def _start(kernel: KernelEvent) -> float:
    return kernel.start
