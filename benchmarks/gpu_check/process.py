"""Run a part in a process of its own, which takes all that it started with it when it ends."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from tda.process import last_words

PartStatus = Literal["ok", "error", "crash", "timeout", "interrupted", "skipped"]
TAIL = 4000
"""Bytes at the end of a log that are looked at for the reason of a failure."""


class PartResult(NamedTuple):
    """How a part ended, why if not well, and how long it took."""

    status: PartStatus
    reason: str | None
    seconds: float


def finish(command: Sequence[str], log: Path, environment: Mapping[str, str], limit_s: float) -> PartResult:
    """Run a command in the folder of its log to its end, or to the end of its time.

    It leads a session of its own, so what it started ends with it, whichever way it ends; Ctrl-C comes to us alone. It
    holds a pipe from us as its standard input, so it can tell when we die.
    """
    begin = time.monotonic()
    with (
        open(log, "wb") as told,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return PartResult("timeout", f"no end after {limit_s:.0f} s", time.monotonic() - begin)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    seconds = time.monotonic() - begin
    if process.returncode == 0:
        return PartResult("ok", None, seconds)
    said = last_words(log.read_bytes()[-TAIL:].decode(errors="replace"), lines=1) or "it said nothing"
    if process.returncode > 0:
        return PartResult("error", said, seconds)
    return PartResult("crash", f"ended by {signal.Signals(-process.returncode).name}: {said}", seconds)
