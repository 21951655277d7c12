"""A worker as its supervisor sees it: a process that speaks, is silent, or takes too much."""

import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from tda.bench.messages import HEADER, Message, Order, send
from tda.cores import SPINS, control_groups
from tda.process import last_words
from tda.records import FailureKind, Record

SILENCE_S = 1800.0
"""Seconds without a sign of progress after which a worker is ended, unless others are asked for."""
LOOK_S = 0.25
"""Seconds between two looks at a worker that says nothing."""
BUSY_S = 10.0
"""Seconds over which it is told whether a silent worker still computes."""
IDLE = 0.02
"""Share of one core below which it does not."""
TAIL = 6000
"""Bytes at the end of what a worker wrote to stderr that a record keeps."""
ANSWER_S = 30.0
"""Seconds in which a worker takes what it is told."""
HELLO_S = 300.0
"""Seconds in which a worker has imported what it needs."""
SITE = str(Path(__file__).resolve().parents[2])


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


class Worker:
    """A process that measures one model."""

    def __init__(self, order: Order, limits: Limits, left_s: float | None) -> None:
        self.how: How | None = None
        self._limits = limits
        self._order, self._left_s = order, left_s
        self._kills = oom_kills()
        self._ours, theirs = socket.socketpair()
        environment = {
            "GOMP_SPINCOUNT": str(SPINS),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (SITE, os.environ.get("PYTHONPATH")))),
        }
        for name, value in limits.environment.items():
            environment.pop(name, None)
            environment |= {} if value is None else {name: value}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tda.bench.worker", str(theirs.fileno()), order.device],
            stdin=subprocess.PIPE,  # it ends when this does, so it does not outlive us
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=limits.folder if limits.folder is not None and limits.folder.is_dir() else None,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C comes to us alone, and what it starts ends with it
        )
        theirs.close()
        if limits.cores is not None and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):
                os.sched_setaffinity(self._process.pid, limits.cores)
        self._ours.setblocking(False)
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self._watched = psutil.Process(self._process.pid)
        self._buffer, self._tail = bytearray(), b""
        self._started = self._heard = time.monotonic()
        self._looked = 0.0
        self._busy: list[tuple[float, float]] = []
        self._greeted, self._ended_well = False, False

    def messages(self) -> Iterator[Message]:
        """What it says until it ends; `how` tells afterwards whether that was before its time."""
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._ours, selectors.EVENT_READ)
            waiting.register(self._process.stderr, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in waiting.select(LOOK_S)]
                if self._process.stderr in ready:
                    if told := self._complaint():
                        yield Message("stderr", told)
                    else:  # it has closed that
                        waiting.unregister(self._process.stderr)
                has_ended = self._process.poll() is not None  # a child of its own may hold its ends open
                if has_ended or self._ours in ready:
                    is_open = self._receive() and not has_ended
                    yield from self._parsed()
                    if not is_open:
                        break
                if (how := self._over_a_limit()) is not None:
                    yield from self._ended(how)
                    return
        self._process.wait()
        self._drain()
        if not self._ended_well:
            self.how = self._cause(self._process.returncode)

    def answer(self, held: Sequence[Record], asked: set[tuple[str, str]]) -> None:
        """Tell it what it needs, once it has said where it runs."""
        self._ours.settimeout(ANSWER_S)
        with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):  # it has ended or stands still: seen next
            send(self._ours, (self._order.task, list(held), asked, self._left_s))
            self._greeted = True
        self._ours.setblocking(False)

    def said(self) -> str:
        """The end of what it complained of."""
        return self._tail.decode(errors="replace").strip()

    def kill(self) -> None:
        """End it, and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._ours.close()
        for pipe in (self._process.stdin, self._process.stderr):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _receive(self) -> bool:
        """Read what is there; False where it has closed its end."""
        while True:
            try:
                piece = self._ours.recv(1 << 20)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not piece:
                return False
            self._buffer += piece

    def _parsed(self) -> Iterator[Message]:
        """Whole messages that have come."""
        while len(self._buffer) >= HEADER:
            length = int.from_bytes(self._buffer[:HEADER], "big")
            if len(self._buffer) < HEADER + length:
                return
            content = bytes(self._buffer[HEADER : HEADER + length])
            del self._buffer[: HEADER + length]
            self._heard = time.monotonic()
            self._busy.clear()
            message = Message(*pickle.loads(content))
            if message.kind == "end":
                self._ended_well = True
            else:
                yield message

    def _complaint(self) -> bytes:
        assert self._process.stderr is not None
        with suppress(BlockingIOError):
            told = os.read(self._process.stderr.fileno(), 1 << 16)
            self._tail = (self._tail + told)[-TAIL:]
            return told
        return b""

    def _drain(self) -> None:
        while self._complaint():
            pass

    def _over_a_limit(self) -> How | None:
        """Whether it has to be ended, and why."""
        now, limits = time.monotonic(), self._limits
        if now - self._looked < LOOK_S:
            return None
        self._looked = now
        if limits.memory_bytes is not None and (used := self._resident()) > limits.memory_bytes:
            told = f"it used {used / 1e9:.3g} GB of memory, more than the limit of {limits.memory_bytes / 1e9:.3g} GB"
            return How("host_memory", told)
        if not self._greeted and now - self._started > HELLO_S:
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
                times = self._watched.cpu_times()
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
            return int(self._watched.memory_info().rss)
        return 0

    def _ended(self, how: How) -> Iterator[Message]:
        """End it; one that is late says first where it is, if it can."""
        self.how = how
        if how.kind in ("hang", "timeout"):
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR1)
            time.sleep(LOOK_S)
            self._drain()
            yield Message("stderr", self._tail)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _cause(self, code: int) -> How:
        """What its exit code, and what it said last, tell of a worker that ended by itself."""
        said = last_words(self.said(), lines=1) or "it said nothing"
        if code >= 0:
            return How("crash", f"its process ended with exit code {code}: {said}")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if code == -signal.SIGKILL and oom_kills() > self._kills:
            return How("host_memory", "the system ended its process, for want of memory")
        if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
            return How("killed", f"its process was ended by {name}")
        return How("crash", f"its process was ended by {name}: {said}")


def oom_kills() -> int:
    """How many processes the system has ended for want of memory: in our control group, else on this machine."""
    for group in (*_memory_groups(), Path("/proc")):
        for name in ("memory.events", "vmstat"):
            with suppress(OSError, ValueError):
                lines = dict(line.split() for line in (group / name).read_text().splitlines())
                if "oom_kill" in lines:
                    return int(lines["oom_kill"])
    return 0


def _memory_groups() -> list[Path]:
    with suppress(OSError):
        return list(control_groups(controller="memory"))
    return []
