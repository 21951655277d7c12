"""Measure the blocks of a model's shapes on the card at hand, with the weights not in its L2 cache."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor, nn

from tda.kernels.triton import interpreted
from tda.kernels.triton.down import DOWN, down
from tda.kernels.triton.launch import Kernel, Tile
from tda.kernels.triton.rows import ROWS, Lists, Rule, rows
from tda.kernels.triton.tuning import candidates, key_of
from tda.view import FFN, Linear

FRACTIONS = (0.5, 0.25)
"""Kept fractions that kernels over lists are measured at: those of sparsities 0.5 and 0.75."""
KernelClock = Callable[[Callable[[], None]], float]


def clock(work: Callable[[], None]) -> float:
    """Median time of some work in ms; Triton overwrites the L2 cache before each repetition."""
    return float(triton.testing.do_bench(work, warmup=5, rep=20, return_mode="median"))


@dataclass(frozen=True)
class TuningTask:
    """A kernel on a shape.

    Attributes
    ----------
    kernel, form
        What is launched.
    weight : Tensor
        What it reads: [N, K].
    matrices : int
        How many of this size it reads.
    fractions : tuple of float
        Kept fractions that it is measured at.
    run : callable
        Launches it once with a block, where a fraction is kept.
    """

    kernel: Kernel
    form: str
    weight: Tensor
    matrices: int
    fractions: tuple[float, ...]
    run: Callable[[Tile, float], None]

    @property
    def has_choice(self) -> bool:
        """Whether its weights are aligned: else one block serves all that is."""
        sizes = self.weight.shape[1], self.weight.stride(0), self.weight.data_ptr()
        aligned = self.weight.stride(1) == 1 and all(size % 16 == 0 for size in sizes)
        return aligned or interpreted()

    @property
    def key(self) -> str:
        """As `tda.kernels.triton.tuning` knows it."""
        return key_of(self.kernel, self.form, self.weight.dtype, self.weight.shape)

    def nbytes(self, fraction: float) -> float:
        """Bytes of weights that it reads."""
        return self.matrices * fraction * self.weight.nbytes


@dataclass(frozen=True)
class Tried:
    """What a block reached, at each of the task's fractions."""

    block: Tile
    ms: tuple[float, ...]
    gb_per_s: tuple[float, ...]


@dataclass(frozen=True)
class Tuned:
    """What was found for a shape.

    Attributes
    ----------
    task : TuningTask
        What was measured.
    tried : tuple of Tried
        Every block, the default first.
    """

    task: TuningTask
    tried: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        """The block that takes least over all fractions."""
        return min(self.tried, key=lambda one: sum(one.ms))

    def evidence(self) -> dict[str, Any]:
        """What is kept of it: losers too."""
        tried = [{"block": list(one.block), "ms": one.ms, "gb_per_s": one.gb_per_s} for one in self.tried]
        return {
            "block": list(self.best.block),
            "fractions": self.task.fractions,
            "tried": tried,
            "torch": torch.__version__,
        }


def tasks(ffns: Sequence[FFN], linears: Iterable[Linear]) -> list[TuningTask]:
    """What decode launches for a model of these networks and other linears, each shape once, the largest first.

    Weights lie in rows, as attaching lays them.
    """
    found: dict[str, TuningTask] = {}
    for task in (task for one in (*map(_of_linear, linears), *map(_of_ffn, ffns)) for task in one):
        if task.has_choice:
            found.setdefault(task.key, task)
    return sorted(found.values(), key=lambda task: -task.nbytes(1.0))


def _of_linear(linear: Linear) -> Iterator[TuningTask]:
    x, y = _vector(linear.in_features, linear.weight), _vector(linear.out_features, linear.weight)
    yield TuningTask(ROWS, "linear", linear.weight, 1, (1.0,), lambda block, fraction: rows(x, linear, y, block=block))


def _of_ffn(ffn: FFN) -> Iterator[TuningTask]:
    """Every way in which methods read a network; the function of the activation does not matter."""
    for linear in ffn.linears:
        yield from _of_linear(linear)
    x = _vector(ffn.up.in_features, ffn.up.weight)
    z = torch.ones(1, ffn.F, device=x.device)
    y = _vector(ffn.down.out_features, x)
    kept = torch.zeros(1, ffn.F, dtype=torch.uint8, device=x.device)
    lists = {fraction: _lists(ffn.F, fraction, x.device) for fraction in FRACTIONS}
    gated = ffn.gate is not None
    first, second, words = (ffn.gate or ffn.up), (ffn.up if gated else None), ("gate_up" if gated else "up")
    matrices, rule = 1 + gated, Rule(kept, 0.0, z[0])

    def listed(block: Tile, fraction: float) -> None:
        rows(x, first, z, act="silu", second=second, lists=lists[fraction], block=block)

    def ruled(block: Tile, fraction: float) -> None:
        rows(x, first, z, act="silu", second=second, rule=rule, block=block)

    yield TuningTask(ROWS, f"listed_{words}", first.weight, matrices, FRACTIONS, listed)
    yield TuningTask(ROWS, f"rule_{words}", first.weight, matrices, (1.0,), ruled)
    if gated:

        def gate(block: Tile, fraction: float) -> None:
            rows(x, first, z, act="silu", rule=rule, block=block)

        def times(block: Tile, fraction: float) -> None:
            rows(x, ffn.up, z, lists=lists[fraction], times=True, block=block)

        yield TuningTask(ROWS, "rule_up", first.weight, 1, (1.0,), gate)
        yield TuningTask(ROWS, "listed_times", ffn.up.weight, 1, FRACTIONS, times)
    laid = _in_columns(ffn.down)

    def downward(block: Tile, fraction: float) -> None:
        down(z, laid, lists[fraction], y, block=block)

    yield TuningTask(DOWN, "split", laid.weight.t(), 1, FRACTIONS, downward)


def _vector(size: int, like: Tensor) -> Tensor:
    return torch.ones(1, size, dtype=like.dtype, device=like.device)


def _lists(F: int, fraction: float, device: torch.device) -> Lists:
    """A random choice of neurons, the same in every run."""
    drawn = torch.randperm(F, generator=torch.Generator().manual_seed(0))[: round(fraction * F)].sort().values
    lists = Lists.empty(1, F, device)
    lists.index[0, : len(drawn)] = drawn.int().to(device)
    lists.counts.fill_(len(drawn))
    return lists


def _in_columns(linear: Linear) -> Linear:
    """A linear of equal weights that lie as those of an attached method do: a row for each input."""
    module = nn.Linear(1, 1, linear.bias is not None, device="meta")
    module.weight = nn.Parameter(linear.weight.detach().t().contiguous().t(), requires_grad=False)
    if linear.bias is not None:
        module.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return Linear(module)


@torch.no_grad()
def tune(wanted: Sequence[TuningTask], budget_s: float, clock: KernelClock = clock) -> Iterator[Tuned | TuningTask]:
    """Measure every block of each task in turn; a task that there was no time for comes back as it is.

    Parameters
    ----------
    wanted : sequence of TuningTask
        What is measured, the most important first.
    budget_s : float
        After so many seconds no further block is tried.
    clock : callable
        Time of some work in ms.
    """
    end = time.monotonic() + budget_s
    for task in wanted:
        tried: list[Tried] = []
        blocks = candidates(task.kernel)
        for block in blocks:
            if time.monotonic() > end:
                break
            ms = tuple(clock(partial(task.run, block, fraction)) for fraction in task.fractions)
            rates = tuple(task.nbytes(one) / took / 1e6 for one, took in zip(task.fractions, ms, strict=True))
            tried.append(Tried(block, ms, rates))
        yield Tuned(task, tuple(tried)) if len(tried) == len(blocks) else task
