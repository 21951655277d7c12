"""Facts about the machine, and the clocks that read it."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

import tda
from tda import device as facts
from tda.bench.profile import run_profile
from tda.device import PeakMemory, RangeClock, Timer, commit, machine, torch_device
from tda.doctor import check_up
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
    assert (look().hash, look().dirty) == (made, True)
    subprocess.run(["git", "-C", str(tmp_path), "rm", "--quiet", "--cached", "tda/device.py"], check=True)
    assert look() == Commit()


def test_stopwatch_measures_milliseconds() -> None:
    watch = Timer(CPU)
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


def test_kernels_of_a_model_are_for_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, graphs and events take the current one, whatever tensors say."""
    entered: list[object] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: (entered.append(device), contextlib.nullcontext())[1])
    for name in ("cuda:1", "cpu"):
        with facts.current(torch.device(name)):
            pass
    assert entered == [torch.device("cuda:1")]


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    device = torch.device("cuda")
    found = machine("cuda")
    assert found.gpu == torch.cuda.get_device_name()
    assert found.driver is not None
    watch, peak = Timer(device), PeakMemory(device)
    a = torch.ones(4096, 4096, device=device)
    with watch.timing():
        for _ in range(10):
            a @ a
    assert 0 < watch.ms < 10_000
    assert peak.read() >= a.nbytes


class PlayedEvent:
    """A CUDA event: milliseconds are how many were recorded meanwhile."""

    made, now = 0, 0

    def __init__(self, **options: bool) -> None:
        PlayedEvent.made += 1

    def record(self, stream: object = None) -> None:
        PlayedEvent.now += 1
        self.at = PlayedEvent.now

    def elapsed_time(self, other: "PlayedEvent") -> float:
        return other.at - self.at


def test_ranges_on_a_gpu_use_their_events_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", PlayedEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    clock = RangeClock(torch.device("cuda"))
    for _ in range(3):
        for name in ("statistic", "statistic", "choice"):
            with clock(name):
                pass
        assert clock.read() == {"statistic": 2.0, "choice": 1.0}
        assert clock.read() == {}
    assert PlayedEvent.made == 6


def segment(total: int, allocated: int, pool: tuple[int, int] = (0, 0), device: int = 0) -> dict[str, object]:
    """A segment of the allocator, as far as `torch.cuda.memory_snapshot` tells of it and we read it."""
    return {"device": device, "total_size": total, "allocated_size": allocated, "segment_pool_id": pool}


def test_what_graphs_hold_counts_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [segment(900, 500), segment(300, 100, (0, 7)), segment(50, 50, (0, 8)), segment(80, 0, (0, 9), 1)]
    called: list[str] = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: called.append(name))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    peak = PeakMemory(torch.device("cuda"))
    assert called == ["empty_cache", "reset_peak_memory_stats"], "graphs that are gone hold nothing"
    assert peak.allocated() == 1000
    assert peak.read() == 1200
    assert PeakMemory(torch.device("cuda:1")).read() == 1080


def of_a_machine_with(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    machine.cache_clear()


REFUSED = {
    (0, "cuda"): "no device 'cuda': torch sees no CUDA device; accepted here: cpu",
    (0, "cuda:7"): "no device 'cuda:7': torch sees no CUDA device; accepted here: cpu",
    (0, "cuda:x"): "no device 'cuda:x': torch sees no CUDA device; accepted here: cpu",
    (2, "cuda:7"): "no device 'cuda:7': torch sees 2 CUDA devices; accepted here: cpu, cuda, cuda:0, cuda:1",
    (2, "cuda:x"): "no device 'cuda:x': torch sees 2 CUDA devices; accepted here: cpu, cuda, cuda:0, cuda:1",
    **{
        (0, name): f"unknown device '{name}'; accepted here: cpu"
        for name in ("xpu", "meta", "mps", "warp", "cpu:1", "")
    },
    (1, "xpu:0"): "unknown device 'xpu:0'; accepted here: cpu, cuda, cuda:0",
}


@pytest.mark.parametrize(("gpus", "name"), REFUSED)
def test_a_device_that_is_not_there_is_refused_everywhere(
    gpus: int, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_a_machine_with(monkeypatch, gpus)
    takers: list[Callable[[], object]] = [
        lambda: torch_device(name),
        lambda: machine(name),
        lambda: tda.kernels.backend(name),
        lambda: tda.load_model("shape:25m", device=name),
        lambda: tda.run_bench(tmp_path / "bench", preset="smoke", device=name),
        lambda: run_profile(tmp_path / "profile", device=name),
        lambda: check_up(name),
    ]
    for taker in takers:
        with pytest.raises(ValueError, match=f"^{re.escape(REFUSED[gpus, name])}$"):
            taker()
    assert list(tmp_path.iterdir()) == []


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    of_a_machine_with(monkeypatch, 2)
    for name in ("cpu", "cuda", "cuda:1"):
        assert torch_device(name) == torch_device(torch.device(name)) == torch.device(name)
