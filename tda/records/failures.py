"""How a case ends, and how it fails."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tda.cases import Frozen


def _writable(text: str) -> str:
    r"""Text with what UTF-8 cannot hold, as half of a pair from a file's name, told as ``\udcff``."""
    return text.encode(errors="backslashreplace").decode()


WritableText = Annotated[str, AfterValidator(_writable)]
"""What others said, such as an error: it may hold anything, and has to stand in a file."""
Status = Literal["ok", "error", "oom", "timeout", "crash"]
FailureKind = Literal["host_memory", "gpu_memory", "crash", "killed", "lost", "hang", "timeout", "error"]


class FailureMeaning(Frozen):
    """What a kind of failure stands for: the status that records of it have, and what it and a number of it are called.

    `words` stands by itself, `counted` behind a number: "3 crashed".
    """

    status: Status
    words: str
    counted: str


def _meaning(status: Status, words: str, counted: str = "") -> FailureMeaning:
    return FailureMeaning(status=status, words=words, counted=counted or words)


FAILURES: Mapping[FailureKind, FailureMeaning] = {
    "host_memory": _meaning("oom", "did not fit into host memory"),
    "gpu_memory": _meaning("oom", "did not fit into GPU memory"),
    "crash": _meaning("crash", "its process crashed", "crashed"),
    "hang": _meaning("timeout", "it hung: its process used no processor time any more", "hung"),
    "timeout": _meaning("timeout", "it was still computing at the end of its time", "ran out of time"),
    "error": _meaning("error", "it raised an error", "raised an error"),
    "killed": _meaning("crash", "its process was killed from outside", "killed from outside"),
    "lost": _meaning("crash", "its machine or its worker was lost", "lost with a machine or worker"),
}
"""By kind. Only the first two say that a case does not fit; killed and lost say nothing of the case at all."""
NOT_ITS_FAULT: frozenset[FailureKind] = frozenset({"killed", "lost"})


class Failure(Frozen):
    """How a case failed, where more is known than its status."""

    kind: FailureKind
    stderr: WritableText | None = Field(default=None, description="the end of what its process wrote to stderr")
