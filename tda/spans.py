"""Named ranges of a request, opened where the work is done; silent until a profiler or a clock listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Recorder = Callable[[str], AbstractContextManager[object]]
"""Opens a range of a name."""

PHASES = ("prefill", "statistic", "selection", "gather", "decode")
"""Ranges of a request in order: the prompt's pass, the method's statistic in it, choice, copying of weights, a step."""

_SILENT: AbstractContextManager[None] = nullcontext()
_recorder: Recorder | None = None
_profiled = False


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
