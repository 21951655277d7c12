"""A command of tda as a user gives it, in a process of its own."""

import subprocess
import sys
import time
from typing import NamedTuple


class CommandResult(NamedTuple):
    """What a command gave: its exit code, what it printed, and how long it took from start to end."""

    code: int
    printed: str
    seconds: float


def run_tda(*words: object) -> CommandResult:
    """Run a command; what it says on the way goes to our log. The time limit is that of the part."""
    command = [sys.executable, "-m", "tda.cli.main", *map(str, words)]
    print("$ tda", *words, flush=True)
    begin = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return CommandResult(done.returncode, done.stdout, time.monotonic() - begin)
