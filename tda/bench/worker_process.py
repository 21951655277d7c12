"""A worker as its supervisor sees it: a process that speaks, is silent, or takes too much."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tda.bench.messages import Inbox, Message, Order, send
from tda.bench.worker_limits import LOOK_S, How, Limits, LimitWatch
from tda.cores import SPINS, control_groups
from tda.process import last_words
from tda.records import Record

TAIL = 6000
"""Bytes at the end of what a worker wrote to stderr that a record keeps."""
ANSWER_S = 30.0
"""Seconds in which a worker takes what it is told."""
SITE = str(Path(__file__).resolve().parents[2])


class Worker:
    """A process that measures one model."""

    def __init__(self, order: Order, limits: Limits, left_s: float | None) -> None:
        self.how: How | None = None
        self._order, self._left_s = order, left_s
        self._kills = oom_kills()
        self._ours, theirs = socket.socketpair()
        self._process = _started(order.device, theirs, limits)
        theirs.close()
        self._inbox = Inbox(self._ours)
        self._watch = LimitWatch(psutil.Process(self._process.pid), limits, left_s)
        self._tail, self._ended_well = b"", False

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
                    is_open = self._inbox.receive() and not has_ended
                    for message in self._inbox.messages():
                        self._watch.hear()
                        if message.kind == "end":
                            self._ended_well = True
                        else:
                            yield message
                    if not is_open:
                        break
                if (how := self._watch.exceeded()) is not None:
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
            self._watch.is_greeted = True
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


def _started(device: str, theirs: socket.socket, limits: Limits) -> "subprocess.Popen[bytes]":
    """A new process that measures, with its end of a socket."""
    environment = {
        "GOMP_SPINCOUNT": str(SPINS),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (SITE, os.environ.get("PYTHONPATH")))),
    }
    for name, value in limits.environment.items():
        environment.pop(name, None)
        environment |= {} if value is None else {name: value}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tda.bench.worker", str(theirs.fileno()), device],
        stdin=subprocess.PIPE,  # it ends when this does, so it does not outlive us
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=limits.folder if limits.folder is not None and limits.folder.is_dir() else None,
        pass_fds=[theirs.fileno()],
        start_new_session=True,  # Ctrl-C comes to us alone, and what it starts ends with it
    )
    if limits.cores is not None and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            os.sched_setaffinity(process.pid, limits.cores)
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    return process


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
