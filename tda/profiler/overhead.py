"""What it costs to record an event: measured, so that it can be told and taken off."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from tda.kernels.native.library import problem
from tda.kernels.native.ops import STAGE
from tda.kernels.native.step import EmptyStage
from tda.profiler.parts import around
from tda.profiler.trace import Host
from tda.spans import recording

EVENTS = 200
TURNS, REPEATS = 5, 4


class Overhead(NamedTuple):
    """Microseconds that recording adds.

    Attributes
    ----------
    op, span : float
        One operator or range, to what encloses it.
    stage : float
        One stage of a whole step, to itself: unrecorded, all stages are one call.
    kernel : float
        One kernel of a replayed graph, to the gap before it; known from recorded and unrecorded steps alone.
    """

    op: float
    span: float
    stage: float = 0.0
    kernel: float = 0.0

    def within(self, host: Host) -> float:
        """What recording added to an event's own time; launches are part of their operators."""
        inside = host.children.get("op", 0) * self.op + host.children.get("span", 0) * self.span
        return inside + (self.stage if host.name == STAGE else 0.0)

    def scaled(self, factor: float) -> "Overhead":
        """So many times as dear, in the same proportion."""
        return Overhead(*(cost * factor for cost in self))


def measure_overhead() -> Overhead:
    """Record many small operators, ranges around an empty module, and empty stages; compare with doing so unrecorded.

    Both are timed in turn, since other work may slow a part of the time. In a tight loop all code is at hand, so a
    model's events are dearer, in about this proportion.
    """
    scalar, module, empty = torch.zeros(1), nn.Identity(), EmptyStage()

    def operators() -> None:
        for _ in range(EVENTS):
            scalar.add_(1)

    def calls() -> None:
        for _ in range(EVENTS):
            module(scalar)

    def stages() -> None:
        for _ in range(EVENTS):
            empty()

    stage = 0.0 if problem() else event_us(stages)
    plain, recorded = [], []
    for _ in range(TURNS):
        plain.append((event_us(operators), event_us(calls)))
        hooks = around(module, "ffn")
        try:
            with profile(activities=[ProfilerActivity.CPU]), recording(record_function):
                recorded.append((event_us(operators), event_us(calls)))
        finally:
            for hook in hooks:
                hook.remove()
    least = (map(min, zip(*times, strict=True)) for times in (plain, recorded))
    op, span = (max(more - less, 0.0) for less, more in zip(*least, strict=True))
    return Overhead(op, span, stage)


def event_us(work: Callable[[], None]) -> float:
    """Time of one event in the fastest repeat: what others do meanwhile only slows it."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - start) / EVENTS / 1e3)
    return min(times)
