"""Child processes that measure: one public call of an installed build each, and a folder held by one at a time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, NamedTuple

from filelock import FileLock, Timeout

from tda.config import BenchConfig

ProcessStatus = Literal["ok", "error", "crash", "timeout"]
BUILD = "TDA_BUILD"
"""Environment variable that names the folder of the build that a process measures."""
COMPLAINT = "stderr.txt"
"""What a process complained of."""
CHILD = """
import inspect, json, os, sys, threading
from pathlib import Path
order = json.loads(sys.argv[1])
# The parent holds our standard input: when it dies, however it dies, we end too, and disturb no later measurement.
threading.Thread(target=lambda: (os.read(0, 1), os._exit(70)), daemon=True).start()
import tda
site = Path(order["site"])
if not (Path(tda.__file__).is_relative_to(site) or (site / "build.json").is_file() and not (site / "tda").is_dir()):
    sys.exit(f"measured the wrong build: {tda.__file__}")
call = getattr(tda, order["call"], None)
if call is None:
    sys.exit(f"this commit has no tda.{order['call']}: it is older than the suite")
options, older = order["options"], {"models": "model", "methods": "method", "sparsities": "sparsity"}
if "model" in inspect.signature(call).parameters:
    options = {older.get(name, name): value for name, value in options.items()}
    told = [spec.partition(":sparsity=") for spec in options.get("method", ())]
    if any(":" in name or "," in value for name, _, value in told):
        sys.exit("this commit is older than options of methods: " + ", ".join(options["method"]))
    if told:
        options["method"] = list(dict.fromkeys(name for name, _, _ in told))
    if any(value for _, _, value in told):
        options["sparsity"] = list(dict.fromkeys(float(value) for _, _, value in told if value))
call(order["out"], **options)
sys.stdout.flush()
os._exit(0)
"""
"""What a process runs: the public call of the build that is on its path, and nothing of the parent's own code.

A build of another package than this one, such as a plug-in, is measured by the installed `tda`.
"""


class ProcessResult(NamedTuple):
    """How a process ended.

    Attributes
    ----------
    status : str
        As a unit's.
    reason : str or None
        Why, if it did not end well.
    started : str
        When it began.
    seconds : float
        How long it took.
    """

    status: ProcessStatus
    reason: str | None
    started: str
    seconds: float


def call(site: Path, name: str, out: Path, options: BenchConfig, timeout_s: float) -> ProcessResult:
    """Have a process with the build in `site` make a public call, ``tda.NAME(out, **options)``.

    A build of before version 0.2 calls models, methods and sparsities by one name each, and knows no methods' options.

    What the process complained of stays in ``stderr.txt`` in the folder `out`, which must be there.
    """
    where = str(site.resolve())
    order = {"site": where, "call": name, "out": str(out.resolve()), "options": options.options()}
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(order)]
    return finish(command, out, {**os.environ, "PYTHONPATH": where, BUILD: where}, timeout_s)


def finish(command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float) -> ProcessResult:
    """Run a command in a folder to its end, or to the end of its time.

    It holds a pipe from us as its standard input, so it can tell when we die. What it complained of stays in
    ``stderr.txt`` in the folder.
    """
    started, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    complaint = folder / COMPLAINT
    with open(complaint, "wb") as errors:
        status, reason = _wait(command, timeout_s, errors, folder, environment)
    if status in ("error", "crash"):
        said = last_words(complaint.read_text(errors="replace"), lines=1) or "it said nothing"
        reason = f"{reason}: {said}"
    return ProcessResult(status, reason, started, round(time.monotonic() - begin, 2))


def _wait(
    command: Sequence[str], timeout_s: float, errors: IO[bytes], folder: Path, environment: Mapping[str, str]
) -> tuple[ProcessStatus, str | None]:
    """Run a command to its end, or to the end of its time; it never outlives us."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, cwd=folder, env=environment
    ) as process:
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return "timeout", f"no end after {timeout_s:.0f} s"
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return "ok", None
    return "crash" if process.returncode < 0 else "error", f"exit code {process.returncode}"


def last_words(text: str, lines: int = 2) -> str:
    """The end of an installer's or interpreter's complaint, without empty lines and rules."""
    told = [line.strip() for line in text.splitlines() if any(sign.isalnum() for sign in line)]
    return " / ".join(told[-lines:])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder: two measurements at once would disturb each other's numbers, and mix their records.

    Raises
    ------
    ValueError
        If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another measurement is running in {folder}; wait for it, or give another folder") from None
