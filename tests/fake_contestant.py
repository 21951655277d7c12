"""A contestant that computes nothing, for the tests of the peers' run: no torch, so that its process takes no time."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.peers.job import Engine, Job, OnToken


def make(job: Job, *, file: Path, broken: bool = False) -> None:
    """A file that says how often it was made, by its length."""
    if broken:
        raise OSError("no room")
    with open(file, "a") as out:
        out.write("x")


@contextmanager
def serve(job: Job, *, how: str = "well", file: Path | None = None) -> Iterator[Engine]:
    """Counts up from the last token of the prompt, or fails in some way."""
    if how == "raises":
        raise OSError("boom")
    if how == "is killed":
        os.kill(os.getpid(), 9)
    if how == "reports nothing":
        os._exit(0)
    if how == "hangs":
        Path("pid.part").write_text(str(os.getpid()))
        os.rename("pid.part", "pid")
        time.sleep(600)

    def answer(prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
        for token in range(new_tokens - (how == "stops early")):
            on_token(prompt[-1] + token + 1)

    settings = {
        "pid": os.getpid(),
        "file": None if file is None else file.read_text(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "torch": "torch" in sys.modules,
    }
    yield Engine(answer, lambda: settings)
