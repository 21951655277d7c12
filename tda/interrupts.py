"""Changes that Ctrl-C does not cut in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals that Python handles, Ctrl-C above all, come in when what is inside is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread alone
        return
    came: list[tuple[Any, ...]] = []
    handlers = {number: signal.getsignal(number) for number in HELD}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in ours:
            signal.signal(number, lambda *arguments: came.append(arguments))
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for arguments in came[:1]:
            ours[arguments[0]](*arguments)
