"""Named ranges of a request, opened where the work is done; silent until a profiler listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Recorder = Callable[[str], AbstractContextManager[object]]
"""Opens a range of a name."""

PHASES = ("prefill", "statistic", "selection", "gather", "decode")
"""Ranges of a request in order: the prompt's pass, the method's statistic in it, choice, copying of weights, a step."""

_SILENT: AbstractContextManager[None] = nullcontext()
_recorder: Recorder | None = None


def span(name: str) -> AbstractContextManager[object]:
    """Open a range; costs a function call where nobody listens."""
    return _SILENT if _recorder is None else _recorder(name)


def listening() -> bool:
    """Whether anybody records ranges."""
    return _recorder is not None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Have a recorder open every range inside the block."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before
