"""A sweep that is killed at random: what of its records is lost or doubled, and whether it ends.

    python -m experiments.sweep_soak --kills 50        # about 15 minutes on two cores; needs the repository's tests

Sweeps of three models run on a cluster of two machines, which are processes here. At random moments one process is
killed: a worker that measures, the Ray task that looks after it, a whole machine (another one joins then), or the
driver, whose command is then given again. A sweep that ends makes place for the next one. After each kill, and at the
end of each sweep, its records are held against those before, and against those of a sweep that nobody disturbed.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from tda.device import commit
from tests import sweeps

RECORD = Path(__file__).parents[1] / "benchmarks" / "records" / "sweep" / "soak.csv"
MODELS = [*sweeps.MODELS, "-m", "ref:geglu"]
WHAT = ("worker", "task", "machine", "driver")
AT_START = 0.25
"""Share of the kills meant for a driver that are made while it starts."""
PAUSE_S = (0.5, 9.0)
"""Seconds between two kills, at least and at most."""


class Soak:
    """Sweeps one after another, killed until there were kills enough."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.doubled: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.ended, self.unlike, self.unnamed = 0, 0, 0

    def run(self, wanted: int) -> None:
        """Kill so often, and let the last sweep end."""
        self._undisturbed = self._whole()
        with sweeps.nodes() as self.cluster:
            while self.kills.total() < wanted:
                self._one(self.folder / f"out-{self.ended}", wanted)

    def _whole(self) -> Counter[tuple[str, str, int]]:
        out = self.folder / "undisturbed"
        code, said = sweeps.run([*MODELS, *sweeps.TIMED, "--out", out], "undisturbed")
        if code != 0:
            raise SystemExit(said)
        return sweeps.good(out)

    def _one(self, out: Path, wanted: int) -> None:
        """A sweep to its end, however often it has to be told."""
        before: Counter[tuple[str, str, int]] = Counter()
        last = "nothing"
        while True:
            words: list[str | Path] = [*MODELS, *sweeps.TIMED, "--ray-address", self.cluster.address, "--out", out]
            with sweeps.start(words, self.cluster.mark) as process:
                while process.poll() is None:
                    if self.kills.total() >= wanted:
                        process.wait()
                        break
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(self.random.uniform(*PAUSE_S))
                        break
                    before = self._checked(out, before, last)
                    last = self._kill(process) or last
                said = process.communicate()[0] if process.stdout else ""
            before = self._checked(out, before, last)
            if process.returncode in (0, 1):
                break
            if process.returncode != -9:
                raise SystemExit(f"the sweep ended with exit code {process.returncode}: {said[-3000:]}")
        self._end(out)

    def _kill(self, process: "subprocess.Popen[str]") -> str | None:
        """Kill one of the processes that there are now, and say which; mostly none while nothing is measured yet."""
        workers = sweeps.workers(self.cluster.mark)
        what = self.random.choice(WHAT)
        if not workers and (what != "driver" or self.random.random() > AT_START):
            return None
        with suppress(psutil.Error, StopIteration):
            if what == "driver":
                process.kill()
            else:
                worker = self.random.choice(workers)
                if what == "worker":
                    worker.kill()
                elif what == "task":
                    parent = worker.parent()
                    assert parent is not None, "a worker has the task that started it"
                    parent.kill()
                else:
                    self.cluster.kill(self.cluster.raylet_of(worker))
                    self.cluster.nodes.append(self.cluster.add())
            self.kills[what] += 1
            print(f"{time.strftime('%H:%M:%S')} kill {self.kills.total()}: {what}", flush=True)
        return what

    def _checked(self, out: Path, before: Counter[tuple[str, str, int]], last: str) -> Counter[tuple[str, str, int]]:
        """Count what was there before and is not now, and what is there twice, under the kill that came last."""
        now = sweeps.good(out)
        self.lost[last] += (before - now).total()
        self.doubled[last] += sum(count - 1 for count in now.values()) - sum(count - 1 for count in before.values())
        return now

    def _end(self, out: Path) -> None:
        """Hold a sweep that has ended against the undisturbed one: what it lacks must be named as failed."""
        self.ended += 1
        failed = sweeps.failures(out)
        for record in failed:
            self.failures[record.failure.kind if record.failure else record.status] += 1
        lacking = self._undisturbed - sweeps.good(out)
        self.unlike += bool(sweeps.good(out) - self._undisturbed)
        named = {record.case.key for record in failed}
        self.unnamed += sum(1 for case, _, _ in lacking if case not in named)

    def rows(self) -> list[dict[str, object]]:
        """What each kind of kill did to records, a row a kind; below them all together."""
        rows: list[dict[str, object]] = [
            {"killed": what, "times": self.kills[what], "records_lost": self.lost[what],
             "records_doubled": self.doubled[what]} for what in WHAT
        ]  # fmt: skip
        every = {"killed": "all", "times": self.kills.total(), "records_lost": self.lost.total(),
                 "records_doubled": self.doubled.total()}  # fmt: skip
        told = {"sweeps_ended": self.ended, "sweeps_unlike": self.unlike, "cells_lacking_unnamed": self.unnamed}
        kinds = " ".join(f"{kind}:{count}" for kind, count in sorted(self.failures.items()))
        return [*rows, {**every, **told, "failure_records": kinds, "commit": commit().hash}]


def main() -> None:
    """Kill, and write the table of outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tda-soak-") as folder:
        soak = Soak(Path(folder), options.seed)
        soak.run(options.kills)
    rows = soak.rows()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)
    if soak.lost.total() or soak.doubled.total() or soak.unlike or soak.unnamed:
        sys.exit(1)


if __name__ == "__main__":
    main()
