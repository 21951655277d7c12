"""Measure models in processes of their own: whichever way one ends, its case gets a record, and the others go on.

The process that measures is `tda.bench.worker`. What it has to say comes over a socket, what it complains of over a
pipe; this side keeps both, looks after its memory and its silence, and replaces it when it ends. Nothing here imports
torch: a task on a cluster does the same work beside the worker.
"""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tda.bench.messages import Message, Order
from tda.bench.store import RecordPlace, too_often
from tda.bench.worker_limits import How, Limits
from tda.bench.worker_process import Worker
from tda.records import FAILURES, Commit, Failure, FailureKind, Machine, Record


def supervised(orders: Sequence[Order], held: Sequence[Record], limits: Limits) -> Generator[Message]:
    """Have models measured, one after the other, each in a worker; yield what there is to know as it comes.

    Closing the iterator ends the worker.

    Parameters
    ----------
    orders : sequence of Order
        The models.
    held : sequence of Record
        What earlier runs left; of it, what was taken on the worker's machine at its commit is not measured again.
    limits : Limits
        What each worker may take.
    """
    end = None if limits.seconds is None else time.monotonic() + limits.seconds
    known, requested = list(held), set[tuple[str, str]]()
    for number, order in enumerate(orders):
        part = order.weight / sum(one.weight for one in orders[number:])
        left = None if end is None else (end - time.monotonic()) * part
        yield from _Model(order, known, requested, limits, left).run()


@dataclass
class _Model:
    """One model being measured, by one worker after another where they end before their time."""

    order: Order
    known: list[Record]
    requested: set[tuple[str, str]]
    limits: Limits
    left_s: float | None

    def __post_init__(self) -> None:
        self._machine: Machine | None = None
        self._commit = Commit()
        self._place: RecordPlace | None = None
        self._since = time.monotonic()
        self._before: list[FailureKind | None] = []  # how workers ended before any case began

    def run(self) -> Iterator[Message]:
        end = None if self.left_s is None else time.monotonic() + self.left_s
        while True:
            left = None if end is None else end - time.monotonic()
            self._since, self._place = time.monotonic(), None
            worker = Worker(self.order, self.limits, left)
            try:
                yield from self._attended(worker)
            finally:
                worker.kill()
            if worker.how is None:
                return
            where = self._place
            if where is None:
                self._before.append(worker.how.kind)
            is_hopeless = where is None and too_often(self._before)
            yield from self._failed(worker.how, worker.said(), is_hopeless)
            model = self.order.model
            if is_hopeless:
                yield _logged(logging.ERROR, f"{model} is given up: its worker ended before a case began, again")
                return
            yield _logged(logging.INFO, f"{model}: a new worker goes on")

    def _attended(self, worker: "Worker") -> Iterator[Message]:
        """Hand on what a worker says until it ends."""
        for message in worker.messages():
            if message.kind == "hello":
                self._machine, self._commit, _ = message.value
                worker.answer(self._held(), self.requested)
            elif message.kind == "running":
                self._place, self._since = message.value, time.monotonic()
            elif message.kind == "records":
                self.known += message.value
            elif message.kind == "asked":
                self.requested |= message.value
                continue
            yield message

    def _held(self) -> list[Record]:
        """What is known of this machine and commit: nothing else is the same series."""
        assert self._machine is not None
        mark, commit = self._machine.fingerprint, self._commit.hash
        return [one for one in self.known if (one.machine.fingerprint, one.commit.hash) == (mark, commit)]

    def _failed(self, how: How, stderr: str, is_hopeless: bool) -> Iterator[Message]:
        """A record of how a worker ended, in the case that ran."""
        kind, reason = how
        if self._machine is None:  # none came as far as to tell where it runs
            told = f"{self.order.model}: {FAILURES[kind].words}: {reason}"
            if is_hopeless:
                yield Message("raised", ChildProcessError(told))
            else:
                yield _logged(logging.ERROR, told)
            return
        reason = reason if self._place is not None else f"before any case began: {reason}"
        place = self._place or self.order.dense
        record = failed_record(place, self._machine, self._commit, Failure(kind=kind, stderr=stderr or None), reason,
                               time.monotonic() - self._since)  # fmt: skip
        self.known.append(record)
        yield Message("records", [record])
        yield _logged(logging.ERROR, f"{record.case}: {FAILURES[kind].words}: {record.reason}")


def _logged(level: int, told: str) -> Message:
    """A record of logging, for whoever takes the messages: that may be another process."""
    return Message("log", logging.LogRecord(__name__, level, __file__, 0, told, None, None))


def failed_record(
    place: RecordPlace, machine: Machine, commit: Commit, failure: Failure, reason: str, seconds: float
) -> Record:
    """The record of a case whose process could not write one, so many seconds after the case began."""
    return Record(
        case=place.case,
        inputs=place.inputs,
        round=place.round,
        commit=commit,
        machine=machine,
        status=FAILURES[failure.kind].status,
        reason=reason,
        failure=failure,
        started=datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
    )
