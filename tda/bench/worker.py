"""The process that measures one model: ``python -m tda.bench.worker SOCKET``, started by `tda.bench.supervisor`."""

import ctypes
import faulthandler
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tda import device as facts
from tda.bench.budget import NO_END, Deadline
from tda.bench.messages import HEADER, Order, send
from tda.bench.plan import Plan
from tda.bench.store import RecordPlace, Store
from tda.bench.subject import measure_model
from tda.cases import Inputs
from tda.logs import handled
from tda.records import Record

PR_SET_PDEATHSIG = 1
FIRST_TO_GO = "500"
"""What the system adds to the worker's score when it looks for a process to end for want of memory."""


@dataclass(frozen=True)
class WorkerTask:
    """What a worker measures.

    Attributes
    ----------
    plan : Plan
        The matrix.
    number : int
        Which of its models.
    folder : Path
        The results folder, for thresholds and for answers of tasks; records go to the supervisor.
    command : str
        What measures that which there is no time for.
    """

    plan: Plan
    number: int
    folder: Path
    command: str


def order_of(plan: Plan, number: int, folder: Path, command: str) -> Order:
    """The order to measure one model of a plan.

    Raises
    ------
    TypeError
        If the plan cannot be handed to another process: a model in memory, or a method of a class that no module holds.
    """
    if plan.loaded:
        raise TypeError(
            f"a worker process has no model of this one's memory: {', '.join(plan.loaded)}; give its folder"
        )
    subject = plan.subjects[number]
    dense = RecordPlace(plan.case(subject, next(plan.build())), Inputs(change=facts.commit().change), 0)
    try:
        task = pickle.dumps(WorkerTask(plan, number, folder, command))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"a worker process cannot be told of this: {error}; name methods by their specs") from None
    return Order(subject.model, plan.device, task, dense, subject.weight)


class _WorkerLine:
    """The way to the supervisor: a sink of records, and who is told of progress."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._one_at_a_time = threading.Lock()

    def tell(self, kind: str, value: Any) -> None:
        with self._one_at_a_time:
            send(self._connection, (kind, value))

    def hear(self) -> Any:
        length = int.from_bytes(self._read(HEADER), "big")
        return pickle.loads(self._read(length))

    def _read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            piece = self._connection.recv(count - len(content))
            if not piece:
                os._exit(70)
            content += piece
        return content

    def log(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None  # another process may not have what is told of
        self.tell("log", record)

    # As a sink.

    def keep(self, records: Sequence[Record]) -> None:
        self.tell("records", list(records))

    def running(self, place: RecordPlace | None) -> None:
        self.tell("running", place)

    # As progress.

    def stage(self, name: str, total: int) -> None:
        self.tell("stage", (name, total))

    def go_on(self, name: str, steps: int) -> None:
        self.tell("go_on", (name, steps))

    def advance(self, steps: int = 1) -> None:
        self.tell("advance", steps)


def _end_with_parent() -> None:
    """End when our standard input does: whoever started us holds it, and is gone then, however it went."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # we lead a group of our own: whatever we started ends with us


def _end_if_parent_dies() -> None:
    """The same by the system, where there is Linux: also of a worker that stands still, and so reads nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def main() -> None:
    """Measure what is ordered, and end."""
    _end_if_parent_dies()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
    line = _WorkerLine(socket.socket(fileno=int(sys.argv[1])))
    try:
        line.tell("hello", (facts.machine(sys.argv[2]), facts.commit(), os.getpid()))
        _measure(line, *line.hear())
    except Exception as error:
        line.tell("raised", _sendable(error))
    line.tell("end", None)
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and ending a library's threads can only go wrong


def _measure(
    line: _WorkerLine, order: bytes, held: Sequence[Record], requested: set[tuple[str, str]], left_s: float | None
) -> None:
    task: WorkerTask = pickle.loads(order)
    store = Store(task.folder, held, line, requested)
    deadline = NO_END if left_s is None else Deadline(time.monotonic() + left_s)
    subject = task.plan.subjects[task.number]
    try:
        with handled("tda", line.log):
            left_out = measure_model(task.plan, subject, store, line, deadline, task.command)
        line.tell("left_out", left_out)
    finally:
        line.tell("asked", store.requested)


def _sendable(error: Exception) -> Exception:
    """An error as it can be handed on; one that no user brings about shows here where it came from."""
    if not isinstance(error, ValueError | OSError):
        traceback.print_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
