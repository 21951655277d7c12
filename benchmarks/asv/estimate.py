"""How long a grid will take on this machine: ``python -m benchmarks.asv.estimate nightly``.

A grid that asv has measured here takes what it took. Any other is tried first: one round of dense and of one calibrated
method on each of its models, whose seconds then stand for those of all its cells.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import tda

from .grid import ROOT, grid
from .machine import this

PILOT = "tda"
RESULTS = ROOT / "results" / "history" / "asv"


def past(preset: str, results: Iterable[Any]) -> tuple[float, str] | None:
    """Seconds and commit of the newest of asv's results that holds a grid; None where none does."""
    measured = f"{preset}.Grid.track_seconds"
    held = [result for result in results if measured in result.get_all_result_keys()]
    for result in sorted(held, key=lambda result: result.date, reverse=True):
        (seconds,) = result.get_result_value(measured, []) or [None]
        if seconds is not None:
            reading = sum(took for name, took in result.duration.items() if name.startswith(f"{preset}."))
            return seconds + reading, result.commit_hash
    return None


def pilot(preset: str, cells: dict[str, Any]) -> float:
    """Seconds of a grid, from one round of a part of it."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"preset": preset, "method": [PILOT], "sparsity": [0.5], "rounds": 1}
        tda.run_bench(folder, **options)
        lines = [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]
    return extrapolate(cells, lines, time.monotonic() - begin)


def extrapolate(cells: dict[str, Any], lines: Sequence[dict[str, Any]], wall: float) -> float:
    """Seconds of a grid whose pilot wrote these lines and took `wall` seconds, loading and calibration included."""
    total: float = wall - sum(line["seconds"] for line in lines)
    for model in dict.fromkeys(line["case"]["model"] for line in lines):
        own = [line for line in lines if line["case"]["model"] == model]
        timed, scored = (sum(cell[0] == model for cell in cells[kind]) for kind in ("timed", "scored"))
        controls = 1 if timed else 0  # a second dense run in each round
        first = median(line["seconds"] for line in own if line["round"] == 0)
        total += first * (scored or timed + controls)
        if timed:
            round_seconds = median(line["seconds"] for line in own if line["round"] > 0)
            total += round_seconds * (timed + controls) * cells["rounds"]
    return total


def main(preset: str) -> None:
    """Print the estimate and what it rests on."""
    from asv.results import iter_results_for_machine

    cells = grid(preset)
    known = past(preset, iter_results_for_machine(str(RESULTS), this()))
    if known is not None:
        seconds, commit = known
        print(f"{preset}: about {seconds / 60:.1f} min, as for commit {commit[:10]} on this machine")
        return
    print(f"{preset} was never measured here; a pilot tells how long it takes ...", flush=True)
    minutes = pilot(preset, cells) / 60
    print(f"{preset}: about {minutes:.1f} min to measure, if each cell costs what dense and {PILOT} do")


if __name__ == "__main__":
    main(sys.argv[1])
