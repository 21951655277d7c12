"""How a case ends, and how it fails."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tda.cases import Frozen


def _writable(text: str) -> str:
    r"""Text with what UTF-8 cannot hold, as half of a pair from a file's name, told as ``\udcff``."""
    return text.encode(errors="backslashreplace").decode()


Told = Annotated[str, AfterValidator(_writable)]
"""What others said, such as an error: it may hold anything, and has to stand in a file."""
Status = Literal["ok", "error", "oom", "timeout", "crash"]
FailureKind = Literal["host_memory", "gpu_memory", "crash", "killed", "lost", "hang", "timeout", "error"]


class FailureMeaning(Frozen):
    """What a kind of failure stands for: the status that records of it have, and what it is called."""

    status: Status
    words: str


FAILURES: Mapping[FailureKind, FailureMeaning] = {
    "host_memory": FailureMeaning(status="oom", words="did not fit into host memory"),
    "gpu_memory": FailureMeaning(status="oom", words="did not fit into GPU memory"),
    "crash": FailureMeaning(status="crash", words="its process crashed"),
    "killed": FailureMeaning(status="crash", words="its process was killed from outside"),
    "lost": FailureMeaning(status="crash", words="its machine or its worker was lost"),
    "hang": FailureMeaning(status="timeout", words="it hung: its process used no processor time any more"),
    "timeout": FailureMeaning(status="timeout", words="it was still computing at the end of its time"),
    "error": FailureMeaning(status="error", words="it raised an error"),
}
"""By kind. Only the first two say that a case does not fit; killed and lost say nothing of the case at all."""
NOT_ITS_FAULT: frozenset[FailureKind] = frozenset({"killed", "lost"})


class Failure(Frozen):
    """How a case failed, where more is known than its status."""

    kind: FailureKind
    stderr: Told | None = Field(default=None, description="the end of what its process wrote to stderr")
