"""False alarms and power of the nightly judgement, from measured A/A processes.

``python -m experiments.nightly.false_alarms --export HISTORY`` writes the numbers of every process of a night in which
nothing changed (`experiments.nightly.proof unchanged`) to `benchmarks/records/nightly/aa.csv`. Without arguments it
resamples synthetic nights from that table: a night's processes are neighbours in time in a measured block, as they are
in a real one, and the judgement is that of `tda nightly`. Then a change of known size is put into one series.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tda.bench.planning import plan_of
from tda.changes import detect, drift
from tda.changes.detect import Rules
from tda.changes.effects import prior, resolution
from tda.changes.messages import named
from tda.changes.series import Blocks, BuildKey, Key, numbers
from tda.history.nights import History
from tda.nightly.config import load_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RECORDS = BENCHMARKS / "records" / "nightly"
NIGHTS = 1000
POWER_NIGHTS = 200
COMMITS = 20
CONFIG = load_config(BENCHMARKS / "nightly.toml")
PROOF = load_config(Path(__file__).with_name("proof.toml"))
SIZES = (0.02, 0.05, 0.10, 0.20)
POWER_COMMITS = 6

PlantedChange = Callable[[Key, BuildKey], float]
"""Factor by which a series of a build is changed."""
Process = dict[Key, float]
Pool = list[list[Process]]
"""Measured blocks: the numbers of each process, in the order in which they ran."""


def unchanged(key: Key, build: BuildKey) -> float:
    """No change."""
    return 1.0


def export(history: History) -> pd.DataFrame:
    """Numbers of all processes of the first blocks, one row a process and series."""
    rows = []
    for night in history.nights()[0]:
        for unit in history.units(night.id)[0]:
            if unit.stage == "first" and unit.status == "ok":
                for key, value in numbers(unit.records, unit.grid).items():
                    told = (key.split, str(key.case), key.relative, value)
                    rows.append((night.id, unit.grid, unit.block, unit.order, *told))
    frame = pd.DataFrame(rows, columns=["night", "grid", "block", "order", "split", "case", "relative", "value"])
    return frame[frame["grid"] == "speed"]


def pool(frame: pd.DataFrame) -> Pool:
    """The table as blocks of processes."""
    cases = {str(case): case for grid in PROOF.grids for case in plan_of(grid.options).cases()}
    blocks: Pool = []
    for _, block in frame.groupby(["night", "block"], sort=True):
        processes = []
        for _, process in block.groupby("order", sort=True):
            rows = zip(process["split"], process["case"], process["relative"], process["value"], strict=True)
            processes.append(
                {Key(split, cases[case], bool(relative)): float(value) for split, case, relative, value in rows}
            )
        blocks.append(processes)
    return blocks


def synthetic(
    measured: Pool,
    builds: Sequence[BuildKey],
    blocks: int,
    draw: np.random.Generator,
    change: PlantedChange = unchanged,
) -> Blocks:
    """Blocks of a synthetic night: each takes as many neighbouring processes as it needs from a measured one."""
    made = Blocks()
    for number in range(1, blocks + 1):
        source = measured[draw.integers(len(measured))]
        start = int(draw.integers(len(source)))
        ring = [source[(start + offset) % len(source)] for offset in range(len(builds))]
        for build, process in zip(builds, ring[:: draw.choice((1, -1))], strict=True):
            for key, value in process.items():
                made.put(key, build, number, value * change(key, build))
    return made


def judge(
    measured: Pool, commits: int, draw: np.random.Generator, change: PlantedChange = unchanged
) -> list[detect.Change]:
    """The changes that a night finds: first blocks and fresh ones come from different measured blocks."""
    line = [str(number) for number in range(commits + 1)]
    builds: list[BuildKey] = [("0", "control"), *((commit, "commit") for commit in line)]
    order = draw.permutation(len(measured))
    halves = [[measured[place] for place in half] for half in np.array_split(order, 2)]
    first = synthetic(halves[0], builds, CONFIG.blocks, draw, change)
    pairs, rules = detect.step_pairs(line), Rules(CONFIG.smallest_change)
    priors = detect.noise(first, pairs, "0")
    steps = detect.candidates(first, pairs, priors, rules)
    search = drift.Search(line, "0", priors, CONFIG.blocks, rules)
    candidates = steps + search.candidates([first], steps, ())
    if not candidates:
        return []
    involved = {commit for candidate in candidates for commit in (candidate.pair.old, candidate.pair.new)}
    again: list[BuildKey] = [(commit, "commit") for commit in line if commit in involved]
    fresh = synthetic(halves[1], again, CONFIG.confirm_blocks, draw, change)
    return detect.changes(fresh, detect.confirm(fresh, candidates, priors), priors, rules)


def false_alarms(measured: Pool, nights: int) -> pd.DataFrame:
    """One row a synthetic night in which something was found although nothing changed."""
    rows = []
    for number in range(nights):
        for change in judge(measured, COMMITS, np.random.default_rng(number)):
            row = {"night": number, "split": change.split, "cases": named(change.cases), "size": change.effect.size}
            rows.append({**row, "p": change.p})
    return pd.DataFrame(rows, columns=["night", "split", "cases", "size", "p"])


def power(measured: Pool, nights: int) -> pd.DataFrame:
    """Share of nights in which a change of one series is found at its commit, by size, and the series' A/A floor."""
    rows = []
    for key in sorted(measured[0][0], key=str):
        if key.relative:
            continue  # its ratio to dense moves along
        for size in SIZES:
            found = [_found(measured, key, size, number) for number in range(nights)]
            rows.append({"split": key.split, "case": str(key.case), "size": size, "found": float(np.mean(found))})
        rows[-1]["floor"] = floor(measured, key)
    frame = pd.DataFrame(rows)
    frame["floor"] = frame.groupby(["split", "case"])["floor"].transform("max")
    return frame[["split", "case", "floor", "size", "found"]]


def floor(measured: Pool, key: Key) -> float:
    """What between-process A/A noise stays within at the level at which a night takes a step for a candidate."""
    steps = [
        np.array([np.log(block[place + 1][key] / block[place][key]) for block in measured if len(block) > place + 1])
        for place in range(len(measured[0]) - 1)
    ]
    noise = prior(steps)
    assert noise is not None
    return resolution(noise, CONFIG.blocks).floor(1 - detect.CANDIDATE)


def _found(measured: Pool, key: Key, size: float, number: int) -> bool:
    at = POWER_COMMITS // 2

    def change(other: Key, build: BuildKey) -> float:
        same = other.split == key.split and other.case == key.case
        return 1 + size if same and int(build[0]) >= at else 1.0

    changes = judge(measured, POWER_COMMITS, np.random.default_rng(number), change)
    return any(one.pair.new == str(at) and key.case in one.cases and one.split == key.split for one in changes)


def main() -> int:
    """Export, or simulate and write both tables; exit 1 if the budget is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, metavar="HISTORY", help="write the table of this history's processes")
    options = parser.parse_args()
    table = RECORDS / "aa.csv"
    if options.export is not None:
        RECORDS.mkdir(parents=True, exist_ok=True)
        export(History(options.export)).to_csv(table, index=False, float_format="%.6g")
        return 0
    measured, begin = pool(pd.read_csv(table)), time.monotonic()
    alarms = false_alarms(measured, NIGHTS)
    alarms.to_csv(RECORDS / "false_alarms.csv", index=False, float_format="%.4g")
    share = alarms["night"].nunique() / NIGHTS
    print(alarms.to_string(index=False))
    print(f"{NIGHTS} nights of {COMMITS} commits: {share:.1%} with a false finding (budget {detect.FAMILY:.0%})")
    curve = power(measured, POWER_NIGHTS)
    curve.to_csv(RECORDS / "power.csv", index=False, float_format="%.4g")
    print(curve.to_string(index=False))
    print(f"{time.monotonic() - begin:.0f} s")
    return 1 if share > detect.FAMILY else 0


if __name__ == "__main__":
    sys.exit(main())
