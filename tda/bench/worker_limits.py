"""What a worker may take of memory and time, and whether it takes more."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from tda.records import FailureKind

SILENCE_S = 1800.0
"""Seconds without a sign of progress after which a worker is ended, unless others are asked for."""
BUSY_S = 10.0
"""Seconds over which it is told whether a silent worker still computes."""
IDLE = 0.02
"""Share of one core below which it does not."""
HELLO_S = 300.0
"""Seconds in which a worker has imported what it needs."""
LOOK_S = 0.25
"""Seconds between two looks at a worker that says nothing."""


@dataclass(frozen=True)
class Limits:
    """What a worker may take.

    Attributes
    ----------
    silence_s : float or None
        Seconds without a sign of progress after which it is ended; None is no limit.
    memory_bytes : int or None
        Resident memory above which it is ended; None is no limit.
    seconds : float or None
        Until all models must have ended.
    late_s : float
        So much later a worker is ended that has not ended by itself.
    environment : mapping
        Variables that it gets besides ours; None takes one away.
    cores : frozenset of int or None
        Cores that it may run on; None for all that are ours.
    folder : Path or None
        Where it runs, so that relative paths mean there what they mean here; ours where that is not there.
    """

    silence_s: float | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    late_s: float = 30.0
    environment: Mapping[str, str | None] = field(default_factory=dict)
    cores: frozenset[int] | None = None
    folder: Path | None = None


class How(NamedTuple):
    """How a worker ended before its time, and why."""

    kind: FailureKind
    reason: str


class LimitWatch:
    """Looks after the memory and the silence of a worker.

    Parameters
    ----------
    process : psutil.Process
        The worker.
    limits : Limits
        What it may take.
    left_s : float or None
        Seconds that it has; None is no limit.
    """

    def __init__(self, process: psutil.Process, limits: Limits, left_s: float | None) -> None:
        self._process, self._limits, self._left_s = process, limits, left_s
        self.is_greeted = False
        self._started = self._heard = time.monotonic()
        self._looked = 0.0
        self._busy: list[tuple[float, float]] = []

    def hear(self) -> None:
        """Note a sign of progress."""
        self._heard = time.monotonic()
        self._busy.clear()

    def exceeded(self) -> How | None:
        """Whether it has to be ended, and why."""
        now, limits = time.monotonic(), self._limits
        if now - self._looked < LOOK_S:
            return None
        self._looked = now
        if limits.memory_bytes is not None and (used := self._resident()) > limits.memory_bytes:
            told = f"it used {used / 1e9:.3g} GB of memory, more than the limit of {limits.memory_bytes / 1e9:.3g} GB"
            return How("host_memory", told)
        if not self.is_greeted and now - self._started > HELLO_S:
            return How(self._silence_kind(), f"it did not begin within {HELLO_S:.0f} s")
        self._note_use(now)
        silent = now - self._heard
        if limits.silence_s is not None and silent > limits.silence_s:
            return How(self._silence_kind(), f"no sign of progress for {silent:.0f} s")
        if self._left_s is not None and now - self._started > max(self._left_s, 0.0) + limits.late_s:
            return How(self._silence_kind(), f"no end {limits.late_s:.0f} s after its time was over")
        return None

    def _note_use(self, now: float) -> None:
        """Keep what processor time it has used, over the last seconds."""
        if not self._busy or now - self._busy[-1][0] >= 1.0:
            with suppress(psutil.Error):
                times = self._process.cpu_times()
                self._busy.append((now, times.user + times.system))
            while len(self._busy) > 2 and now - self._busy[1][0] >= BUSY_S:
                del self._busy[0]

    def _silence_kind(self) -> FailureKind:
        """Whether a silent worker hangs or still computes."""
        if len(self._busy) < 2:
            return "timeout"
        (first, used), (last, later) = self._busy[0], self._busy[-1]
        return "hang" if later - used < IDLE * (last - first) else "timeout"

    def _resident(self) -> int:
        with suppress(psutil.Error):
            return int(self._process.memory_info().rss)
        return 0
