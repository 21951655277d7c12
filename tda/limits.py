"""What this machine can do at most: stream bandwidth, matmul rate, and how both grow with threads."""

import os

import torch

from tda.device import Stopwatch
from tda.records import Frozen

STREAM_BYTES = 1 << 28
STREAM_PASSES = 3
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
MATMUL_PASSES = 5


def stream_gb_per_s(device: torch.device) -> float:
    """Bandwidth of reading a large buffer once (CPU) or of copying it (CUDA, read plus write), in GB/s.

    The best of three passes over 256 MiB (1 GiB on CUDA), far more than caches hold.
    """
    size = STREAM_BYTES * (4 if device.type == "cuda" else 1)
    source = torch.ones(size // 8, dtype=torch.int64, device=device)
    target = torch.empty_like(source) if device.type == "cuda" else None
    clock = Stopwatch(device)
    best = 0.0
    for _ in range(STREAM_PASSES):
        with clock.timing():
            if target is None:
                source.sum()
            else:
                target.copy_(source)
        moved = source.nbytes * (1 if target is None else 2)
        best = max(best, moved / clock.ms / 1e6)
    return best


@torch.no_grad()
def matmul_tflop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a square matrix product in TFLOP/s, two operations a multiply-add: the best of five passes.

    The matrices are 1024 wide on a CPU and 8192 on CUDA, where the product is bound by arithmetic.
    """
    size = MATMUL_SIZE[device.type]
    draw = torch.Generator(device).manual_seed(0)
    one, other = (torch.rand(size, size, device=device, generator=draw).to(dtype) for _ in range(2))
    product = torch.empty_like(one)
    clock = Stopwatch(device)
    best = 0.0
    for _ in range(MATMUL_PASSES):
        with clock.timing():
            torch.mm(one, other, out=product)
        best = max(best, 2 * size**3 / clock.ms / 1e9)
    return best


class Scaling(Frozen):
    """What the CPU reaches with so many threads."""

    threads: int
    stream_gb_per_s: float
    matmul_tflop_per_s: float


def thread_scaling() -> list[Scaling]:
    """Measure the CPU's limits (float32) with 1, 2, 4, … threads up to all cores that this process may use."""
    cores, cpu, before = len(os.sched_getaffinity(0)), torch.device("cpu"), torch.get_num_threads()
    found = []
    try:
        for threads in sorted({1 << power for power in range(cores.bit_length())} | {cores}):
            torch.set_num_threads(threads)
            bandwidth, rate = stream_gb_per_s(cpu), matmul_tflop_per_s(cpu, torch.float32)
            found.append(Scaling(threads=threads, stream_gb_per_s=bandwidth, matmul_tflop_per_s=rate))
    finally:
        torch.set_num_threads(before)
    return found
