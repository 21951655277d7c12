"""How long a grid of asv will take on this machine: ``python -m tools.forecast_asv nightly``.

A grid that asv has measured here takes what it took. Any other is tried first: one round of every method at one
sparsity, whose seconds stand for those of its other sparsities and rounds.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from asv.results import iter_results_for_machine

from benchmarks.asv import suite
from benchmarks.asv.grid import ROOT, grid
from benchmarks.asv.machine import this
from tools.forecast import Piece, told, whole

SPARSITY = 0.5
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
    with tempfile.TemporaryDirectory() as folder:
        call = f"import tda; tda.run_bench({folder!r}, preset={preset!r}, sparsities=[{SPARSITY}], rounds=1)"
        begin = time.monotonic()
        subprocess.run([sys.executable, "-c", call], cwd=ROOT, check=True)
        wall = time.monotonic() - begin
        lines = [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]
    return whole(wall, pieces(cells, lines)) + values(cells) * reading()


def pieces(cells: dict[str, Any], lines: Iterable[dict[str, Any]]) -> Iterator[Piece]:
    """Each line of a pilot stands for all sparsities of its method on its model, and a timed one for all rounds."""
    sparsities = {kind: Counter((model, method) for model, method, _ in cells[kind]) for kind in ("timed", "scored")}
    for line in lines:
        place = line["case"]["model"], line["case"]["method"]
        if line["round"] == 0:
            yield line["seconds"], max(sparsities["scored"][place], sparsities["timed"][place])
        else:
            yield line["seconds"], sparsities["timed"][place] * cells["rounds"]


def values(cells: dict[str, Any]) -> int:
    """How many values asv asks for, each in a process: combinations of parameters that are no cells too."""
    kinds = {"timed": suite._Timed, "scored": suite._Scored}
    return sum(
        math.prod(map(len, suite.axes(cells[kind]))) * sum(name.startswith("track_") for name in vars(shown))
        for kind, base in kinds.items()
        for shown in base.__subclasses__()
    )


def reading() -> float:
    """Seconds of a process that imports the suite, as each does that reads a value."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "from benchmarks.asv import suite"], cwd=ROOT, check=True)
    return time.monotonic() - begin


def main(preset: str) -> None:
    """Print the estimate and what it rests on."""
    cells = grid(preset)
    known = past(preset, iter_results_for_machine(str(RESULTS), this()))
    if known is not None:
        seconds, commit = known
        print(f"{preset}: about {seconds / 60:.1f} min, as for commit {commit[:10]} on this machine")
        return
    print(f"{preset} was never measured here; a pilot tells how long it takes ...", flush=True)
    print(told(f"{preset}, once the commit is installed", pilot(preset, cells)))


if __name__ == "__main__":
    main(sys.argv[1])
