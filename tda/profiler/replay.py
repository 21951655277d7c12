"""Kernels of a replayed graph, told apart by names and order.

All kernels of a replay have one launch, outside any module. So the same work is run anew once, where each kernel has a
launch of its own inside the ranges of its modules (`tda.engine.graph.GraphStep.eager`). That gives the order: every
kernel's name, and the place that it was launched from. A replay runs the same kernels in the same order.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

from tda.profiler.trace import KernelEvent, Trace, TracePlace, read_trace
from tda.spans import GRAPH


@dataclass(frozen=True, slots=True)
class ReplayedKernel:
    """A kernel or copy of a step that was run anew, and the place that it was launched from.

    Attributes
    ----------
    kernel : str
        Its name.
    part, module, op : str
        As of `tda.profiler.trace.TracePlace`.
    """

    kernel: str
    part: str
    module: str
    op: str


def read_order(path: Path, counted: Iterable[str] = ()) -> tuple[ReplayedKernel, ...]:
    """The order of a step, from the trace of a request of which the work of one step was run anew.

    Parameters
    ----------
    path, counted
        As of `read_trace`. Of several such steps the last one counts.

    Returns
    -------
    tuple of ReplayedKernel
        In the order of the launches; empty where no such work was recorded.

    Raises
    ------
    ValueError
        If it is no trace of a profiled request.
    """
    trace = read_trace(path, counted)
    ranges = [(host.start, host.end) for host in trace.hosts if host.kind == "span" and host.name == GRAPH]
    if not ranges:
        return ()
    begin, end = ranges[-1]
    found = [
        (
            kernel.launched.start,
            kernel.start,
            ReplayedKernel(kernel.name, kernel.place.part, kernel.place.module, kernel.place.op),
        )
        for kernel in trace.kernels
        if kernel.launched is not None and kernel.place is not None and begin <= kernel.launched.start <= end
    ]
    return tuple(launch for _, _, launch in sorted(found, key=lambda entry: entry[:2]))


def tell_apart(trace: Trace, order: Sequence[ReplayedKernel]) -> Trace:
    """The trace with a place for each kernel of its replayed decode steps.

    A kernel that has none in the order keeps the part "decode", and a sentence of `Trace.untold` tells of it.
    """
    replays: dict[int, list[int]] = defaultdict(list)
    for number, kernel in enumerate(trace.kernels):
        if kernel.replayed and kernel.place is not None and kernel.place.phase == "decode":
            replays[id(kernel.launched)].append(number)
    kernels, matched = list(trace.kernels), _Matched(order)
    for numbers in replays.values():
        own = [trace.kernels[number] for number in numbers]
        for number, kernel, launch in zip(numbers, own, matched.launches(own), strict=True):
            assert kernel.place is not None
            kernels[number] = replace(kernel, place=_place(kernel, kernel.place.step, launch))
    return replace(trace, kernels=kernels, untold=(*trace.untold, *matched.untold))


def _place(kernel: KernelEvent, step: int, launch: ReplayedKernel | None) -> TracePlace:
    if launch is None:
        return TracePlace("decode", step, "decode", op=kernel.name)
    return TracePlace("decode", step, launch.part, launch.module, launch.op)


class _Matched:
    """An order, and what was found in it; replays of one graph are alike, so each kind of them is aligned once.

    Attributes
    ----------
    untold : dict
        A sentence for each kind of replay that does not match; the values say nothing.
    """

    def __init__(self, order: Sequence[ReplayedKernel]) -> None:
        self.untold: dict[str, None] = {}
        self._order = order
        self._names = tuple(launch.kernel for launch in order)
        self._known: dict[tuple[str, ...], list[ReplayedKernel | None]] = {}

    def launches(self, replay: Sequence[KernelEvent]) -> list[ReplayedKernel | None]:
        """What launched each kernel of a replay; None where the order does not tell."""
        names = tuple(kernel.name for kernel in replay)
        if names not in self._known:
            self._known[names] = list(self._order) if names == self._names else self._aligned(names)
        return self._known[names]

    def _aligned(self, names: tuple[str, ...]) -> list[ReplayedKernel | None]:
        found: list[ReplayedKernel | None] = [None] * len(names)
        missed = [True] * len(self._order)
        for ours, theirs, count in SequenceMatcher(None, names, self._names, autojunk=False).get_matching_blocks():
            found[ours : ours + count] = self._order[theirs : theirs + count]
            missed[theirs : theirs + count] = [False] * count
        unknown = [name for name, launch in zip(names, found, strict=True) if launch is None]
        absent = [name for name, gone in zip(self._names, missed, strict=True) if gone]
        self.untold[
            f"of {len(names)} kernels of a replayed step, {_listed(unknown)} have no place in the step that was run "
            f"anew, so their part is not known; of {len(self._names)} kernels of that one, {_listed(absent)} are not "
            "in the replay"
        ] = None
        return found


def _listed(names: Sequence[str], most: int = 3, letters: int = 60) -> str:
    """How many, and the most frequent by the begin of their names."""
    if not names:
        return "0"
    counts = Counter(names).most_common()
    told = ", ".join(f"{count} × {name[:letters]}" for name, count in counts[:most])
    return f"{len(names)} ({told}{', …' if len(counts) > most else ''})"
