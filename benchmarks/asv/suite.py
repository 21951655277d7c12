"""What asv tracks of each commit: one interleaved matrix is measured, then every value is looked up in it.

The environment variable TDA_PRESET names the grid. Lower is better everywhere. The name of a benchmark begins with its
preset: presets ask for unlike requests, which must not share a series.
"""

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from asv_runner.benchmarks.mark import SkipNotImplemented

from .cells import DISTANCE, GridCell, MissingError, RunTable, per_group, ratio_to_dense, tabulate
from .grid import grid
from .run import RESULTS, run

VERSION = "9"
"""Raised when measuring changes the numbers of unchanged code; `python -m tools.version_lint` watches over it."""
PRESET = os.environ.get("TDA_PRESET", "smoke")
GRID = grid(PRESET)
HANG_S = 24 * 3600
"""Longer than any grid takes: ends what hangs, not what is slow."""

Samples = dict[str, Any]
LookUp = Callable[[Any, RunTable, GridCell], dict[int, float]]


def track(unit: str) -> Callable[[LookUp], Callable[..., Samples | None]]:
    """Make a benchmark of a look-up.

    It gives one sample per round or document, null with the reason on stderr where the machine cannot give the
    quantity, and fails where the cell failed.
    """

    def decorate(look_up: LookUp) -> Callable[..., Samples | None]:
        @functools.wraps(look_up)
        def benchmark(self: Any, table: RunTable, model: str, method: str, sparsity: float) -> Samples | None:
            try:
                samples = look_up(self, table, (model, method, sparsity))
            except MissingError as reason:
                print(reason, file=sys.stderr)
                return None
            return {"samples": list(samples.values()), "number": 1}

        benchmark.unit = unit  # type: ignore[attr-defined]
        benchmark.benchmark_name = f"{PRESET}.{look_up.__qualname__}"  # type: ignore[attr-defined]
        return benchmark

    return decorate


def setup_cache() -> RunTable:
    """Measure the whole grid. Shared by all benchmarks: asv calls it once."""
    begin = time.monotonic()
    folder = Path("records")
    stopped = run(folder, PRESET)
    if not (folder / RESULTS).is_file():
        raise RuntimeError(f"nothing was measured: {stopped}")
    return tabulate((folder / RESULTS).read_text(), stopped, time.monotonic() - begin)


setup_cache.timeout = HANG_S  # type: ignore[attr-defined]
version = VERSION
timeout = 60
param_names = ["model", "method", "sparsity"]


def axes(cells: list[list[Any]]) -> list[list[Any]]:
    """The values of each parameter."""
    return [list(dict.fromkeys(values)) for values in zip(*cells, strict=True)]


def gaps(cells: list[list[Any]]) -> list[tuple[Any, ...]]:
    """Combinations of parameters that are no cells: dense with a sparsity, say."""
    return [combination for combination in itertools.product(*axes(cells)) if list(combination) not in cells]


class _Timed:
    params: ClassVar = axes(GRID["timed"])
    skip_params: ClassVar = gaps(GRID["timed"])


class _Scored:
    params: ClassVar = axes(GRID["scored"])
    skip_params: ClassVar = gaps(GRID["scored"])


class Speed(_Timed):
    """Times of a request; a sample is a round's, of decode the round's median step."""

    @track("ms")
    def track_prefill_ms(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """The prompt's pass, statistic included."""
        return per_group(table, cell, "prefill_ms")

    @track("ms")
    def track_selection_ms(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """Choice, lists and gather, once per prompt after its first token."""
        if cell[1] == "dense":
            raise SkipNotImplemented("dense selects nothing")
        return per_group(table, cell, "selection_ms")

    @track("ms")
    def track_statistic_ms(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """What the method's statistic takes within prefill."""
        if cell[1] == "dense":
            raise SkipNotImplemented("dense takes no statistic")
        return per_group(table, cell, "statistic_ms")

    @track("ms")
    def track_decode_ms(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """One decode step."""
        return per_group(table, cell, "decode_ms")

    @track("ratio")
    def track_decode_to_dense(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """Decode step over dense's of the same round: below 1 is a gain. Dense has its A/A control's here."""
        return ratio_to_dense(table, cell, "decode_ms")

    @track("ms")
    def track_generation_ms(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """A whole request through the model's own generate."""
        return per_group(table, cell, "generation_ms")


class Memory(_Timed):
    """Bytes held and bytes read."""

    @track("bytes")
    def track_peak_memory_bytes(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """Peak while a first request runs: allocator on CUDA, resident set on CPU."""
        return per_group(table, cell, "peak_memory_bytes")

    @track("bytes")
    def track_weight_bytes_per_token(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """Weights that one decode step must read."""
        return per_group(table, cell, "weight_bytes_per_token")


class Gpu(_Timed):
    """What the driver tells of the decode steps."""

    @track("%")
    def track_idle_percent(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """Share of time in which no kernel ran."""
        busy = per_group(table, cell, "gpu_utilization_percent")
        return {group: 100 - percent for group, percent in busy.items()}

    @track("J")
    def track_energy_j_per_token(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """Energy of a decoded token."""
        return per_group(table, cell, "energy_j_per_token")


class Quality(_Scored):
    """Text with a method attached; a sample is a document's, so asv shows the median document."""

    @track("ratio")
    def track_perplexity(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """Perplexity of a document's sparse tokens."""
        return per_group(table, cell, "perplexity")

    @track("nats/token")
    def track_kl_to_dense_nats(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """KL(dense || method)."""
        return per_group(table, cell, "kl_to_dense_nats")

    @track("share")
    def track_top1_disagreement(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """Share of tokens whose most likely one differs from dense's."""
        return per_group(table, cell, "top1_disagreement")

    @track("share")
    def track_sparsity_distance(self, table: RunTable, cell: GridCell) -> dict[int, float]:
        """How far the achieved sparsity, mean over layers, is from the asked one."""
        return per_group(table, cell, DISTANCE)


class Grid:
    """The matrix itself."""

    param_names: ClassVar[list[str]] = []

    def track_seconds(self, table: RunTable) -> float:
        """What measuring the whole grid took: the estimate of the next run rests on it."""
        if table["stopped"] is not None:
            raise RuntimeError(table["stopped"])
        return table["seconds"]

    track_seconds.unit = "seconds"  # type: ignore[attr-defined]
    track_seconds.benchmark_name = f"{PRESET}.{track_seconds.__qualname__}"  # type: ignore[attr-defined]
