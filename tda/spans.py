"""What a request tells where its work is done: named ranges, and costs of kernels; silent until someone listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Recorder = Callable[[str], AbstractContextManager[object]]
"""Opens a range of a name."""

PHASES = ("prefill", "statistic", "selection", "gather", "decode")
"""Ranges of a request in order: the prompt's pass, the method's statistic in it, choice, copying of weights, a step."""
GRAPH = "graph"
"""Range of the work that was captured, within a step: replayed in one launch, or run anew."""
Listener = Callable[[str, int, int], None]
"""Told a kernel's name, and what a launch of it moves and computes: bytes, FLOPs."""

_SILENT: AbstractContextManager[None] = nullcontext()
_recorder: Recorder | None = None
_profiled = False
_listener: Listener | None = None


def span(name: str) -> AbstractContextManager[object]:
    """Open a range; costs a function call where nobody listens."""
    return _SILENT if _recorder is None else _recorder(name)


def profiled() -> bool:
    """Whether a profiler looks on, so that kernels must be operators."""
    return _profiled


@contextmanager
def recording(recorder: Recorder, *, profiler: bool = True) -> Iterator[None]:
    """Have a recorder open every range inside the block.

    Parameters
    ----------
    recorder : callable
        Opens a range of a name.
    profiler : bool
        Whether it must see kernels as operators; a clock must not, since it times what runs without it.
    """
    global _recorder, _profiled
    before, _recorder, _profiled = (_recorder, _profiled), recorder, profiler
    try:
        yield
    finally:
        _recorder, _profiled = before


def counted() -> bool:
    """Whether someone listens to costs, so that a launcher need work them out for nobody else."""
    return _listener is not None


def cost(kernel: str, nbytes: int, flops: int) -> None:
    """Tell what a launch costs whose kernel is no operator of torch: no one else could count it.

    Parameters
    ----------
    kernel : str
        Name of the kernel as a trace shows it.
    nbytes : int
        Bytes that it reads and writes.
    flops : int
        Of matrix products and attention; 0 for a kernel without.
    """
    if _listener is not None:
        _listener(kernel, nbytes, flops)


@contextmanager
def counting(listener: Listener) -> Iterator[None]:
    """Have a listener told every cost inside the block."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
