"""What a worker and its supervisor say to each other, and in what frames."""

import pickle
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tda.bench.store import RecordPlace

HEADER = 8
"""Bytes before a message that tell how long it is."""

MessageKind = Literal[
    "hello",
    "log",
    "stage",
    "go_on",
    "advance",
    "running",
    "records",
    "left_out",
    "raised",
    "stderr",
    "asked",
    "end",
    "started",
]


class Message(NamedTuple):
    """What a worker says, and its supervisor hands on.

    Attributes
    ----------
    kind : str
        ``"hello"``: (Machine, Commit, process id), once per worker; ``"log"``: a LogRecord; ``"stage"``, ``"go_on"``:
        (name, steps) and ``"advance"``: steps, as of `Progress`; ``"running"``: a Place or None; ``"records"``: list of
        Record; ``"left_out"``: list of LeftOut; ``"raised"``: the error that ended a model; ``"stderr"``: bytes.
        ``"asked"`` (the series that the run asked for) and ``"end"`` stay here. A task on a cluster begins
        with ``"started"``: (name of the machine, its id in Ray).
    value
        As told above.
    """

    kind: MessageKind
    value: Any


@dataclass(frozen=True)
class Order:
    """What a worker measures.

    Attributes
    ----------
    model : str
        Its name.
    device : str
        Where it runs.
    task : bytes
        A pickled `tda.bench.worker.WorkerTask`: the supervisor does not look into it.
    dense : RecordPlace
        Where it is told that a worker ended before any case began.
    weight : float
        The model's part of the time.
    """

    model: str
    device: str
    task: bytes
    dense: RecordPlace
    weight: float = 1.0


def send(connection: socket.socket, message: object) -> None:
    """Write a message that the other side reads whole or not at all."""
    content = pickle.dumps(message)
    connection.sendall(len(content).to_bytes(HEADER, "big") + content)


class Inbox:
    """Messages that come over a socket, which does not block."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket, self._buffer = connection, bytearray()

    def receive(self) -> bool:
        """Read what is there; False where it has closed its end."""
        while True:
            try:
                piece = self._socket.recv(1 << 20)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not piece:
                return False
            self._buffer += piece

    def messages(self) -> Iterator[Message]:
        """Whole messages that have come."""
        while len(self._buffer) >= HEADER:
            length = int.from_bytes(self._buffer[:HEADER], "big")
            if len(self._buffer) < HEADER + length:
                return
            content = bytes(self._buffer[HEADER : HEADER + length])
            del self._buffer[: HEADER + length]
            yield Message(*pickle.loads(content))
