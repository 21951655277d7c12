"""Facts about the machine, and the clocks that read it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tda import device as facts
from tda.device import PeakMemory, Stopwatch, commit, machine
from tda.records import Commit
from tests import nights

CPU = torch.device("cpu")


def test_machine_says_what_is_here() -> None:
    found = machine("cpu")
    assert found.cores == os.cpu_count()
    assert found.threads == torch.get_num_threads()
    assert found.memory_bytes == psutil.virtual_memory().total
    assert found.torch == torch.__version__
    assert (found.gpu, found.driver) == (None, None)
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert machine("cpu").fingerprint == found.fingerprint


def test_commit_is_that_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkout that nobody commits to meanwhile."""
    repository = nights.FakeRepository(tmp_path)
    made = repository.commit("Begin", files={"tda/device.py": "one"})
    monkeypatch.setattr(facts, "__file__", str(tmp_path / "tda" / "device.py"))
    look = commit.__wrapped__  # the answer is kept
    assert look() == Commit(hash=made, dirty=False)
    (tmp_path / "tda" / "device.py").write_text("two")
    assert look() == Commit(hash=made, dirty=True)
    subprocess.run(["git", "-C", str(tmp_path), "rm", "--quiet", "--cached", "tda/device.py"], check=True)
    assert look() == Commit()


def test_stopwatch_measures_milliseconds() -> None:
    watch = Stopwatch(CPU)
    assert watch.ms != watch.ms  # nothing was timed yet
    before = time.perf_counter()
    with watch.timing():
        time.sleep(0.05)
    elapsed = (time.perf_counter() - before) * 1000
    assert 50 <= watch.ms <= elapsed


def test_peak_memory_sees_what_is_gone_again() -> None:
    rest = PeakMemory(CPU).read()
    peak = PeakMemory(CPU)
    size = 1 << 27
    block = torch.ones(size, dtype=torch.uint8)
    del block
    if peak.problem is not None:
        pytest.skip(peak.problem)
    assert 0.9 * size < peak.read() - rest < 2 * size
    assert PeakMemory(CPU).read() - rest < size / 2


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    device = torch.device("cuda")
    found = machine("cuda")
    assert found.gpu == torch.cuda.get_device_name()
    assert found.driver is not None
    watch, peak = Stopwatch(device), PeakMemory(device)
    a = torch.ones(4096, 4096, device=device)
    with watch.timing():
        for _ in range(10):
            a @ a
    assert 0 < watch.ms < 10_000
    assert peak.read() >= a.nbytes
