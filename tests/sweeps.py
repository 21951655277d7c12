"""Sweeps as a user runs them, on a Ray of processes of this machine, and what may be done to them."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tda.records import Record
from tda.results import load, results_path

SMALL = ["--method", "griffin", "-s", "0.5", "--prompt-tokens", "16", "--new-tokens", "4", "--documents", "4",
         "--calibration-documents", "2"]  # fmt: skip
TIMED = [*SMALL, "--rounds", "6"]
"""Some seconds a group, so that what a test does meanwhile finds it at work."""
SCORED = [*SMALL, "--rounds", "0"]
MODELS = ["-m", "ref:swiglu", "-m", "ref:relu"]
MARK = "TDA_TESTED_SWEEP"
"""Environment variable that tells processes of one test from those of others that run beside it."""
WAIT_S = 240.0


def environment(mark: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), MARK: mark, "OMP_NUM_THREADS": "1"}


def start(words: Sequence[str | Path], mark: str, command: str = "sweep") -> subprocess.Popen[str]:
    """A command of `tda` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tda.cli.main", command, *map(str, words)],
        env=environment(mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_heeds_ctrl_c,
    )


def _heeds_ctrl_c() -> None:
    """What a shell has put in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(words: Sequence[str | Path], mark: str, command: str = "sweep") -> tuple[int, str]:
    """Run a command of `tda`: exit code, and all that it said."""
    with start(words, mark, command) as process:
        return finished(process)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a command ended that must end in time, and what it said."""
    try:
        said, _ = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"no end after {WAIT_S:.0f} s: {process.communicate()[0][-3000:]}") from None
    return process.returncode, said


def until(holds: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Wait for something while a process runs."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if found := holds():
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended first: {process.communicate()[0][-3000:]}")
        time.sleep(0.02)
    if process is not None:
        process.kill()
    raise AssertionError("it never happened")


def lines(out: Path) -> list[Record]:
    """Records that a folder holds now."""
    return load(out).records if results_path(out).is_file() else []


def good(out: Path) -> Counter[tuple[str, str, int]]:
    """How often each place of a folder has a record that is ok."""
    return Counter((*one.series, one.round) for one in lines(out) if one.status == "ok")


def failures(out: Path) -> list[Record]:
    return [one for one in lines(out) if one.status != "ok"]


def processes(mark: str, word: str) -> list[psutil.Process]:
    """Processes of a test whose command line holds a word."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and any(word in part for part in process.cmdline()):
                found.append(process)
    return found


def workers(mark: str) -> list[psutil.Process]:
    """Processes that measure."""
    return processes(mark, "tda.bench.worker")


class Nodes:
    """A Ray cluster of processes on loopback: a head that measures nothing, and machines that do."""

    def __init__(self, count: int = 2) -> None:
        from ray.cluster_utils import Cluster

        self.mark = uuid.uuid4().hex
        os.environ |= {MARK: self.mark, "RAY_USAGE_STATS_ENABLED": "0"}
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._shared(), "num_cpus": 0})
        self.nodes = [self.add() for _ in range(count)]

    @staticmethod
    def _shared() -> dict[str, Any]:
        return {"object_store_memory": 100 << 20, "include_dashboard": False}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> Any:
        """One more machine of one core."""
        return self._cluster.add_node(num_cpus=1, resources={"tda_host": 1}, **self._shared())

    def kill(self, node: Any) -> None:
        """End a machine as a power cut does, as far as Ray can tell."""
        raylet = node.all_processes["raylet"][0].process
        children = psutil.Process(raylet.pid).children(recursive=True)
        for one in (psutil.Process(raylet.pid), *children):
            with suppress(psutil.Error):
                one.kill()
        self.nodes.remove(node)
        with suppress(Exception):  # it is gone already
            self._cluster.remove_node(node, allow_graceful=False)

    def raylet_of(self, process: psutil.Process) -> Any:
        """The machine that a process runs on."""
        above = {process.pid, *(parent.pid for parent in process.parents())}
        return next(node for node in self.nodes if node.all_processes["raylet"][0].process.pid in above)

    def close(self) -> None:
        self._cluster.shutdown()
        os.environ.pop(MARK, None)


@contextmanager
def nodes(count: int = 2) -> Iterator[Nodes]:
    """A cluster for as long as it is needed."""
    cluster = Nodes(count)
    try:
        yield cluster
    finally:
        cluster.close()
