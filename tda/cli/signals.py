"""Signals that ask a process to end, handled as Ctrl-C is."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

import typer

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended."""
SAME_S = 1.0
"""`timeout` and others send a signal twice in a row: one that comes so soon after another is the same."""


@contextlib.contextmanager
def ending_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM (of schedulers), and SIGHUP (of a terminal that is lost), raise KeyboardInterrupt as Ctrl-C does.

    What is done is kept that way, and children end. The exit code is 128 and the number of the signal. A signal that
    is ignored, as `nohup` has it, stays so.
    """
    came: list[signal.Signals] = []
    last = -SAME_S

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        came.append(signal.Signals(number))
        if last - before >= SAME_S:
            raise KeyboardInterrupt

    handled = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for one in handled:
        signal.signal(one, end)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if not came or (isinstance(error, SystemExit) and error.code != INTERRUPTED):
            raise
        with contextlib.suppress(OSError):  # the terminal may be gone
            typer.echo(f"tda: ended by {came[0].name}", err=True)
        sys.exit(128 + came[0])
    finally:
        for one in handled:
            signal.signal(one, signal.SIG_DFL)
