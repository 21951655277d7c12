"""The kernel table: what ran in each phase and part, how often, how long, and what it moved and computed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, median

import numpy as np
from scipy.optimize import brentq

from tda.profiler.counts import Count, Spot
from tda.profiler.overhead import Overhead
from tda.profiler.records import GAPS, HOST, PYTHON, KernelRow, ModuleRow, PhaseTime, RowKey
from tda.profiler.trace import Host, KernelEvent, Trace, TracePlace, within

StepValues = dict[int, float]
"""A quantity by the number of the step."""
LARGEST_FACTOR = 5.0
"""An event in a model costs no more than this many times an empty one: the rest is noise."""


class StepSamples:
    """What each row of a trace's table took in each typical step, and how much of that was recording.

    Typical are the half of all steps whose durations are nearest to their median.
    """

    def __init__(self, trace: Trace, overhead: Overhead) -> None:
        self._trace = trace
        self.overhead = overhead
        self._typical = {phase: _typical(_durations(steps)) for phase, steps in trace.steps.items()}
        self._self: dict[RowKey, StepValues] = defaultdict(lambda: defaultdict(float))
        self._calls: dict[RowKey, StepValues] = defaultdict(lambda: defaultdict(float))
        self._cost: dict[RowKey, StepValues] = defaultdict(lambda: defaultdict(float))
        self._modules: dict[tuple[str, str, str], StepValues] = defaultdict(lambda: defaultdict(float))
        if trace.kernels:
            self._add_device()
        else:
            for host in trace.hosts:
                self._add_host(host)

    def _add_host(self, host: Host) -> None:
        place = host.place
        if place is None or host.kind == "launch":
            return
        kernel = host.name if host.kind == "op" else PYTHON
        self._add(place, kernel, host.self_us, min(host.self_us, self.overhead.within(host)))

    def _add_device(self) -> None:
        """Each step whole: its kernels, the gaps between them, and what the host adds."""
        recording: dict[tuple[str, int], float] = defaultdict(float)
        for host in self._trace.hosts:
            if host.place is not None:
                recording[self._driver(host.place.phase), host.place.step] += self.overhead.within(host)
        for phase, steps in self._trace.steps.items():
            for number, (start, end) in enumerate(steps):
                self._add_step(TracePlace(phase, number, phase), start, end, recording[phase, number])

    def _add_step(self, whole: TracePlace, start: float, end: float, recording_us: float) -> None:
        """A range's kernels, each from where those before it have ended, and the time in which none ran.

        That time is the host's before the first kernel, after the last one, and before a kernel that it launched only
        when the device had nothing left to run. Recording is taken off the host's time, and of replays off the gaps.
        """
        ran = within(self._trace.kernels, start, end)
        reached, host, gaps = start, 0.0, 0.0
        for kernel in ran:
            idle = max(kernel.start - reached, 0.0)
            if kernel is ran[0] or (kernel.launched is not None and kernel.launched.start >= reached):
                host += idle
            else:
                gaps += idle
            stop = min(kernel.end, end)
            self._add(self._ran_in(whole, kernel), kernel.name, max(stop - max(kernel.start, reached), 0.0), 0.0)
            reached = max(reached, stop)
        host += end - reached
        if len(ran) > 1:
            self._add(whole, GAPS, gaps, min(gaps, self.overhead.kernel * sum(kernel.replayed for kernel in ran)))
        self._add(whole, HOST, host, min(host, recording_us))

    def _ran_in(self, whole: TracePlace, kernel: KernelEvent) -> TracePlace:
        """The place of a kernel; the step that it ran in, where another one or nobody known launched it."""
        place = kernel.place
        if place is not None and (self._driver(place.phase), place.step) == (whole.phase, whole.step):
            return place
        return replace(whole, op=kernel.name)

    def _add(self, place: TracePlace, kernel: str, self_us: float, cost_us: float) -> None:
        if place.step not in self._typical[self._driver(place.phase)]:
            return
        key = (place.phase, place.part, place.op, kernel)
        self._self[key][place.step] += self_us
        self._calls[key][place.step] += 1
        self._cost[key][place.step] += cost_us
        self._modules[place.phase, place.part, place.module][place.step] += self_us - cost_us

    def _driver(self, phase: str) -> str:
        """The range in which a phase's work was driven."""
        return {"statistic": "prefill", "gather": "selection"}.get(phase, phase)

    def _mean(self, phase: str, samples: StepValues) -> float:
        """Mean over the typical steps; a step without the row counts as zero."""
        steps = self._typical[self._driver(phase)]
        return sum(samples.get(step, 0.0) for step in steps) / len(steps)


class KernelTable(StepSamples):
    """Rows of a trace: means over the typical steps.

    Parameters
    ----------
    trace : Trace
        As read.
    counts : mapping
        Totals by spot, of a pass over as many steps as `drivers` says.
    drivers : mapping
        Steps of the counting pass, by driver phase.
    overhead : Overhead
        What recording an event costs; within each, no more than its own time.

    Attributes
    ----------
    overhead : Overhead
        As given.
    """

    def __init__(
        self, trace: Trace, counts: Mapping[Spot, Count], drivers: Mapping[str, int], overhead: Overhead
    ) -> None:
        super().__init__(trace, overhead)
        self._counts = counts
        self._drivers = drivers

    def rows(self) -> list[KernelRow]:
        """All rows, by phase, then the longest first."""
        net = {
            key: self._mean(key[0], values) - self._mean(key[0], self._cost[key]) for key, values in self._self.items()
        }
        whole: dict[str, float] = defaultdict(float)
        for key, value in net.items():
            whole[key[0]] += value
        moved = self._moved(net)
        rows = [
            KernelRow(
                phase=key[0],
                part=key[1],
                op=key[2],
                kernel=key[3],
                calls=self._mean(key[0], self._calls[key]),
                recorded_ms=self._mean(key[0], self._self[key]) / 1e3,
                self_ms=value / 1e3,
                se_ms=self._error(key) / 1e3,
                share=value / whole[key[0]] if whole[key[0]] else 0.0,
                bytes=moved[key][0] if key in moved else None,
                flops=moved[key][1] if key in moved else None,
            )
            for key, value in net.items()
        ]
        order = {phase: place for place, phase in enumerate(dict.fromkeys(row.phase for row in rows))}
        return sorted(rows, key=lambda row: (order[row.phase], -row.self_ms, row.part, row.kernel))

    def _error(self, key: RowKey) -> float:
        """Standard error of a row's mean over the typical steps."""
        steps = self._typical[self._driver(key[0])]
        values = [self._self[key].get(step, 0.0) for step in steps]
        centre = mean(values)
        if len(values) < 2:
            return 0.0
        variance = sum((value - centre) ** 2 for value in values) / (len(values) - 1)
        return float((variance / len(values)) ** 0.5)

    def _moved(self, net: Mapping[RowKey, float]) -> dict[RowKey, tuple[float, float | None]]:
        """Bytes and FLOPs a step of each operator, given to the kernel in which it spent most of its time."""
        longest: dict[Spot, RowKey] = {}
        for key in sorted(net, key=lambda key: net[key]):
            longest[Spot(*key[:3])] = key
        found = {}
        for spot, count in self._counts.items():
            steps = self._drivers.get(self._driver(spot.phase), 0)
            if spot in longest and steps:
                flops = None if count.flops is None else count.flops / steps
                found[longest[spot]] = (count.bytes / steps, flops)
        return found

    @property
    def untold(self) -> tuple[str, ...]:
        """Sentences on kernels of replays whose part is not known."""
        return self._trace.untold

    def modules(self) -> list[ModuleRow]:
        """Self time of every named module, by phase, in the order of the model."""
        return [
            ModuleRow(phase=phase, part=part, module=module, self_ms=self._mean(phase, samples) / 1e3)
            for (phase, part, module), samples in self._modules.items()
        ]

    def phases(self) -> dict[str, PhaseTime]:
        """Duration of each phase as recorded, and how much of it was the recording."""
        found: dict[str, PhaseTime] = {}
        for driver, steps in self._trace.steps.items():
            typical = self._typical[driver]
            for phase in dict.fromkeys((driver, *(key[0] for key in self._self if self._driver(key[0]) == driver))):
                keys = [key for key in self._self if key[0] == phase]
                recorded = sum(self._mean(phase, self._self[key]) for key in keys)
                cost = sum(self._mean(phase, self._cost[key]) for key in keys)
                found[phase] = PhaseTime(
                    steps=len(steps), typical=len(typical), recorded_ms=recorded / 1e3, cost_ms=cost / 1e3
                )
            whole = mean(steps[number][1] - steps[number][0] for number in typical)
            parts = [phase for phase in found if self._driver(phase) == driver]
            found[driver] = found[driver].model_copy(
                update={"whole_ms": whole / 1e3, "parts_ms": sum(found[phase].recorded_ms for phase in parts)}
            )
        return found


def fitted(overhead: Overhead, trace: Trace, plain_us: Sequence[float]) -> Overhead:
    """What an event cost in this trace: such that its decode steps, less recording, take as long as plain ones.

    Events are scaled. Where steps are replayed, what their events leave over is the kernels', in equal shares.

    Parameters
    ----------
    overhead : Overhead
        As of empty events: their proportion holds.
    trace : Trace
        As read.
    plain_us : sequence of float
        Durations of unrecorded steps; without any, empty events are all that is known.
    """
    steps = trace.steps.get("decode", [])
    if not steps or not plain_us:
        return overhead
    recorded, typical = _durations(steps), _typical(_durations(steps))
    replayed = [
        kernel.place.step in typical
        for kernel in trace.kernels
        if kernel.replayed and kernel.place is not None and kernel.place.phase == "decode"
    ]
    events = [
        (host.self_us, overhead.within(host))
        for host in trace.hosts
        if host.place and host.place.phase == "decode" and host.place.step in typical
    ]
    whole, cost = np.array(events).T
    longer = sum(recorded[number] for number in typical) / len(typical) - mean(
        plain_us[number] for number in _typical(plain_us)
    )

    def missing(factor: float) -> float:
        """Of what steps took longer, what recording at so many times the cost does not explain."""
        return longer - float(np.minimum(whole, factor * cost).sum()) / len(typical)

    if missing(1.0) <= 0:
        return overhead
    if any(replayed):  # its few events do not explain it: the device notes when each kernel begins and ends
        return overhead._replace(kernel=missing(1.0) * len(typical) / sum(replayed))
    if missing(LARGEST_FACTOR) >= 0:
        return overhead.scaled(LARGEST_FACTOR)
    return overhead.scaled(brentq(missing, 1.0, LARGEST_FACTOR))


def _durations(steps: Sequence[tuple[float, float]]) -> list[float]:
    return [end - start for start, end in steps]


def _typical(durations: Sequence[float]) -> frozenset[int]:
    """Numbers of the half of the steps whose durations are nearest to their median."""
    centre = median(durations)
    order = sorted(range(len(durations)), key=lambda number: abs(durations[number] - centre))
    return frozenset(order[: (len(order) + 1) // 2])
