"""What the machine can do at most."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from tda import limits
from tda.cores import allowed_cores
from tda.device import machine
from tda.limits import matmul_tflop_per_s, stream_gb_per_s, thread_scaling

CPU = torch.device("cpu")


def test_limits_of_a_cpu_are_plausible() -> None:
    assert 0.5 < stream_gb_per_s(CPU) < 2000
    assert 1e-4 < matmul_tflop_per_s(CPU, torch.float32) < 100


def play(monkeypatch: pytest.MonkeyPatch, times_ms: Sequence[float]) -> Iterator[float]:
    """Have passes take these times; those that are left."""
    times = iter(times_ms)

    class Clock:
        def __init__(self, device: torch.device) -> None:
            self.ms = float("nan")

        def timing(self) -> AbstractContextManager[None]:
            self.ms = next(times)
            return nullcontext()

    monkeypatch.setattr(limits, "Timer", Clock)
    monkeypatch.setattr(limits, "MATMUL_SIZE", {"cpu": 10})
    return times


def test_a_rate_is_operations_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [9.0, 4.0, 5.0, 4.5, 8.0])
    assert matmul_tflop_per_s(CPU, torch.bfloat16) == pytest.approx(2 * 10**3 / 4e-3 / 1e12)


def test_slow_passes_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one pass takes seconds, a limit ends in time all the same."""
    left = play(monkeypatch, [4000.0, 3000.0, 1.0])
    assert matmul_tflop_per_s(CPU, torch.float32) == pytest.approx(2 * 10**3 / 3 / 1e12)
    assert list(left) == [1.0]


def test_threads_are_counted_up_and_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def stream(device: torch.device) -> float:
        seen.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(limits, "stream_gb_per_s", stream)
    monkeypatch.setattr(limits, "matmul_tflop_per_s", lambda device, dtype: 2.0)
    before = torch.get_num_threads()
    told = list(thread_scaling())
    assert [one.threads for one in told] == seen == sorted(set(seen))
    assert (seen[0], seen[-1]) == (1, len(allowed_cores()))
    assert torch.get_num_threads() == before

    def fails(device: torch.device) -> float:
        raise RuntimeError("planted")

    monkeypatch.setattr(limits, "stream_gb_per_s", fails)
    with pytest.raises(RuntimeError, match="planted"):
        next(thread_scaling())
    assert torch.get_num_threads() == before


def test_a_quota_leaves_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    held = machine("cpu").model_copy(update={"cores": 64, "allowed_cores": 8, "cpu_quota": 2.5})
    monkeypatch.setattr(limits, "machine", lambda device: held)
    monkeypatch.setattr(limits, "stream_gb_per_s", lambda device: 1.0)
    monkeypatch.setattr(limits, "matmul_tflop_per_s", lambda device, dtype: 2.0)
    assert [one.threads for one in thread_scaling()] == [1, 2, 3]


@pytest.mark.gpu
def test_limits_of_a_gpu_are_plausible() -> None:
    device = torch.device("cuda")
    assert 50 < stream_gb_per_s(device) < 20_000
    assert 1 < matmul_tflop_per_s(device, torch.bfloat16) < 10_000
