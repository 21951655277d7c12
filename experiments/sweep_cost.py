"""What a sweep costs beside a bench: time to the first record, time a cell more, and how long its workers idle.

    python -m experiments.sweep_cost          # a quiet machine of two cores or more; about 15 minutes

Both run the same quality-only matrix of one model, in turn; the difference of what they take beyond their first record,
over the cells after it, is what Ray and the way back over it cost a cell. Then two workers share four equal groups:
what of their time no group takes is idle. All of it is of one thread a worker, on a Ray that the sweep starts.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tda.device import commit, machine
from tda.models import load_model
from tda.results import read_lines, results_path
from tda.sweep.done import GROUPS, Done

RECORD = Path(__file__).parents[1] / "benchmarks" / "records" / "sweep" / "cost.csv"
METHODS = ["--method", "griffin", "--method", "magnitude", "--method", "random", "--method", "oracle"]
SIZES = ["-s", "0.25", "-s", "0.5", "-s", "0.75", "--prompt-tokens", "64", "--new-tokens", "16", "--documents", "8",
         "--calibration-documents", "4", "--rounds", "0"]  # fmt: skip
LONGER = ["--documents", "160"]
EQUAL, WORKERS = 4, 2


class CommandTimes(NamedTuple):
    """Seconds of a command until its first record and until its last one, and how many there were."""

    first_s: float
    rest_s: float
    records: int


def run(command: str, words: Sequence[str], out: Path) -> CommandTimes:
    """Run a command of `tda` and watch its records come."""
    path = results_path(out)
    began, times = time.monotonic(), list[float]()
    with subprocess.Popen(
        [sys.executable, "-m", "tda.cli.main", command, *words, "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while process.poll() is None:
            count = path.read_bytes().count(b"\n") if path.is_file() else 0
            times += [time.monotonic() - began] * (count - len(times))
            time.sleep(0.005)
    if process.returncode != 0 or not times:
        raise SystemExit(f"tda {command} ended with exit code {process.returncode} and {len(times)} records")
    return CommandTimes(times[0], times[-1] - times[0], len(times))


def idle_share(folder: Path) -> tuple[float, float]:
    """Share of the workers' time from the first begin to the last end that no group takes, and how long a group is."""
    models = []
    for number in range(EQUAL):
        loaded: Any = load_model("ref:swiglu")
        models.append(folder / f"model-{number}")
        loaded.model.save_pretrained(models[-1])
        loaded.tokenizer.save_pretrained(models[-1])
    words = [word for one in models for word in ("-m", str(one))]
    run("sweep", [*words, *METHODS, *SIZES, *LONGER], folder / "out")
    done, _ = read_lines(folder / "out" / GROUPS, Done)
    begins = [datetime.fromisoformat(one.started).timestamp() for one in done]
    ends = [begin + one.seconds for begin, one in zip(begins, done, strict=True)]
    busy = sum(one.seconds for one in done)
    return 1 - busy / (WORKERS * (max(ends) - min(begins))), busy / len(done)


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="how often each is measured")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    rows = []
    for number in range(options.times):
        with tempfile.TemporaryDirectory(prefix="tda-cost-") as place:
            ran = {}
            for command in ("bench", "sweep") if number % 2 else ("sweep", "bench"):
                budget = ["--budget", "none"] if command == "bench" else []
                ran[command] = run(command, ["-m", "ref:swiglu", *METHODS, *SIZES, *budget], Path(place) / command)
            idle, length = idle_share(Path(place))
        bench, sweep = ran["bench"], ran["sweep"]
        rows.append(
            {
                "bench_first_record_s": round(bench.first_s, 2),
                "sweep_first_record_s": round(sweep.first_s, 2),
                "overhead_ms_per_cell": round((sweep.rest_s - bench.rest_s) / (sweep.records - 1) * 1000, 2),
                "idle_share": round(idle, 4),
                "group_s": round(length, 1),
                "cells": sweep.records,
            }
        )
        print(rows[-1], flush=True)
    here = machine("cpu")
    told = {"cpu": here.cpu, "cores": here.cores, "commit": commit().hash, "dirty": commit().dirty}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *told])
        writer.writeheader()
        writer.writerows([{**row, **told} for row in rows])
    for name in list(rows[0])[:-1]:
        print(f"{name}: median {statistics.median(row[name] for row in rows):g}")


if __name__ == "__main__":
    main()
