"""What this machine can do at most: stream bandwidth, matmul rate, and how both grow with threads."""

import math
from collections.abc import Callable, Generator

import torch

from tda.cases import Frozen
from tda.device import Timer, machine
from tda.processor import widens

STREAM_BYTES = 1 << 28
STREAM_PASSES = 3
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
MATMUL_PASSES = 5
LONGEST_S = 5.0
"""After this no new pass is begun, however few there were."""


def stream_bytes(device: torch.device) -> int:
    """Bytes of memory that a `Stream` holds: twice the last-level cache where that is more than the usual buffer."""
    if device.type == "cuda":
        return 8 * STREAM_BYTES  # source and target, float32
    return max(STREAM_BYTES, 2 * (machine("cpu").cache_bytes or 0))


class Stream:
    """Bandwidth of reading a large buffer once (CPU) or of copying it (CUDA, read plus write).

    A CPU reads it by a sum and by the product of its halves, from one place and from two at once: processors differ in
    which is faster. The buffer has 256 MiB (1 GiB on CUDA), or twice the last-level cache where that is more; it lives
    as long as this object.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            source = torch.ones(STREAM_BYTES, device=device)  # float32: four times the bytes
            target = torch.empty_like(source)
            self._bytes = 2 * source.nbytes
            self._ways: tuple[Callable[[], object], ...] = (lambda: target.copy_(source),)
        else:
            halves = torch.ones(2, stream_bytes(device) // 8)
            self._bytes = halves.nbytes
            self._ways = (halves.sum, lambda: torch.dot(halves[0], halves[1]))

    def gb_per_s(self) -> float:
        """The best of three passes in GB/s, over all ways to read."""
        return max(_best_per_ms(self._device, self._bytes, STREAM_PASSES, way) for way in self._ways) / 1e6


def stream_gb_per_s(device: torch.device) -> float:
    """Stream bandwidth in GB/s, with a buffer of its own (see `Stream`)."""
    return Stream(device).gb_per_s()


def _best_per_ms(device: torch.device, amount: float, passes: int, work: Callable[[], object]) -> float:
    """What is got through in a millisecond, where a pass of work gets through `amount`: the best of some passes."""
    clock = Timer(device)
    best, spent_ms = 0.0, 0.0
    for _ in range(passes):
        with clock.timing():
            work()
        best, spent_ms = max(best, amount / clock.ms), spent_ms + clock.ms
        if spent_ms > 1000 * LONGEST_S:
            break
    return best


@torch.no_grad()
def matmul_tflop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a square matrix product in TFLOP/s, two operations a multiply-add: the best of five passes.

    The matrices are 1024 wide on a CPU and 8192 on CUDA, where the product is bound by arithmetic. Where products of
    the type are widened (`tda.processor.widens`), the rate is that of float32, which then runs.
    """
    if device.type == "cpu" and widens(dtype):
        dtype = torch.float32
    size = MATMUL_SIZE[device.type]
    draw = torch.Generator(device).manual_seed(0)
    one, other = (torch.rand(size, size, device=device, generator=draw).to(dtype) for _ in range(2))
    product = torch.empty_like(one)
    return _best_per_ms(device, 2 * size**3, MATMUL_PASSES, lambda: torch.mm(one, other, out=product)) / 1e9


class Scaling(Frozen):
    """What the CPU reaches with so many threads."""

    threads: int
    stream_gb_per_s: float
    matmul_tflop_per_s: float


def thread_scaling() -> Generator[Scaling, None, None]:
    """Measure the CPU's limits (float32) with 1, 2, 4, … threads up to all cores that this process may use."""
    cpu, before = torch.device("cpu"), torch.get_num_threads()
    cores = math.ceil(machine("cpu").usable_cores)
    try:
        for threads in sorted({1 << power for power in range(cores.bit_length())} | {cores}):
            torch.set_num_threads(threads)
            bandwidth, rate = stream_gb_per_s(cpu), matmul_tflop_per_s(cpu, torch.float32)
            yield Scaling(threads=threads, stream_gb_per_s=bandwidth, matmul_tflop_per_s=rate)
    finally:
        torch.set_num_threads(before)
