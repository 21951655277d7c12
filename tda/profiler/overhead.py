"""What it costs to record an event: measured, so that it can be told and taken off."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from tda.profiler.parts import around
from tda.profiler.trace import Kind
from tda.spans import recording

EVENTS = 200
REPEATS = 20


class Overhead(NamedTuple):
    """Microseconds that one recorded event adds to what encloses it."""

    op: float
    span: float

    def us(self, kind: Kind) -> float:
        """Cost of one event of a kind; launches are part of their operators."""
        return {"op": self.op, "span": self.span, "launch": 0.0}[kind]

    def scaled(self, factor: float) -> "Overhead":
        """So many times as dear, in the same proportion."""
        return Overhead(self.op * factor, self.span * factor)


def measure_overhead() -> Overhead:
    """Record many small operators, and many ranges around an empty module; compare with doing so unrecorded.

    In a tight loop all code is at hand, so a model's events are dearer, in about this proportion.
    """
    scalar, module = torch.zeros(1), nn.Identity()

    def operators() -> None:
        for _ in range(EVENTS):
            scalar.add_(1)

    def calls() -> None:
        for _ in range(EVENTS):
            module(scalar)

    plain_op, plain_call = _us(operators), _us(calls)
    hooks = around(module, "ffn")
    try:
        with profile(activities=[ProfilerActivity.CPU]), recording(record_function):
            op, span = _us(operators), _us(calls)
    finally:
        for hook in hooks:
            hook.remove()
    return Overhead(max(op - plain_op, 0.0), max(span - plain_call, 0.0))


def _us(work: Callable[[], None]) -> float:
    """Time of one event in the fastest repeat: what others do meanwhile only slows it."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - start) / EVENTS / 1e3)
    return min(times)
