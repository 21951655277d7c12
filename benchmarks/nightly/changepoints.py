"""Trial of change-point libraries on planted series: ruptures, apache-otava and asv's own step detection.

A series is what a history of nights gives for one metric: commits × blocks of log ratios to an anchor, noise per block,
every tenth block with three times the noise. (What the anchor's own noise adds to all commits of a night alike is left
out: within a night it moves no step, between two nights it looks like one.) Penalties and p-values are set on series
without a change so that 1% of them raise an alarm; each library's default is shown beside that. Two rules of ours come
after every library alike: two opposite changes around one commit are a bad point, no step; and a step or a ramp is what
fits the levels better (BIC).

    python benchmarks/nightly/changepoints.py --out benchmarks/records/changepoints.csv

apache-otava wants numpy 2.2 and cannot live beside this package; without it, its rows are left out. With it:

    python -m venv otava && otava/bin/pip install apache-otava==0.8.0 ruptures==1.1.10 asv==0.6.6 pandas
    otava/bin/python benchmarks/nightly/changepoints.py --out benchmarks/records/changepoints.csv
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import ruptures
from asv.step_detect import detect_steps
from numpy.typing import NDArray

try:
    from otava.analysis import compute_change_points
except ImportError:
    compute_change_points = None

Values = NDArray[np.float64]
BLOCKS = 8
BURST_SHARE, BURST_FACTOR = 0.1, 3.0
TRIM = 0.2
"""Share of a commit's blocks cut off at either end in a trimmed mean."""
FALSE_ALARMS = 0.01
WEAKEST, STRICTEST = 0.25, 512.0


@dataclass(frozen=True)
class Planted:
    """What a series really does: log levels, and the first commits at a new level (of a ramp: its first and last)."""

    kind: Literal["none", "steps", "drift", "bad point"]
    levels: Values  # [commits]
    changes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Series:
    """Log ratios to the anchor, as measured."""

    blocks: Values  # [commits, blocks]

    @cached_property
    def means(self) -> Values:
        """Mean of each commit, in units of its standard error [commits]."""
        return np.asarray(self.blocks.mean(1) / math.sqrt(self.blocks.var(1, ddof=1).mean() / BLOCKS))

    @cached_property
    def trimmed(self) -> Values:
        """Trimmed mean of each commit, in units of its standard error after Yuen [commits]."""
        cut = int(TRIM * BLOCKS)
        kept = np.sort(self.blocks, axis=1)[:, cut : BLOCKS - cut]
        spread = np.clip(self.blocks, kept[:, :1], kept[:, -1:]).var(1, ddof=1).mean() * (BLOCKS - 1)
        count = BLOCKS - 2 * cut
        return np.asarray(kept.mean(1) / math.sqrt(spread / (count * (count - 1))))

    @cached_property
    def scaled(self) -> Values:
        """Every block in units of the standard deviation of a block [commits, blocks]."""
        return self.blocks / math.sqrt(self.blocks.var(1, ddof=1).mean())


Draw = np.random.Generator


def nothing(commits: int, draw: Draw) -> Planted:
    """No change."""
    return Planted("none", np.zeros(commits))


def step(size: float) -> Callable[[int, Draw], Planted]:
    """One step at any commit but the first."""

    def plant(commits: int, draw: Draw) -> Planted:
        place = int(draw.integers(1, commits))
        return Planted("steps", np.where(np.arange(commits) >= place, math.log1p(size), 0.0), (place,))

    return plant


def two_steps(size: float) -> Callable[[int, Draw], Planted]:
    """A step and, at least three commits later, its opposite."""

    def plant(commits: int, draw: Draw) -> Planted:
        up = int(draw.integers(1, commits - 3))
        down = int(draw.integers(up + 3, commits))
        places = np.arange(commits)
        return Planted("steps", np.where((places >= up) & (places < down), math.log1p(size), 0.0), (up, down))

    return plant


def drift(slope: float, length: int) -> Callable[[int, Draw], Planted]:
    """The same small step at each of `length` commits in a row."""

    def plant(commits: int, draw: Draw) -> Planted:
        long = min(length, commits - 1)
        first = int(draw.integers(1, commits - long + 1))
        steps = np.clip(np.arange(commits) - first + 1, 0, long)
        return Planted("drift", np.asarray(math.log1p(slope) * steps), (first, first + long - 1))

    return plant


def bad_point(size: float, *, last: bool = False) -> Callable[[int, Draw], Planted]:
    """One commit off in all its blocks: inside the series, or its newest."""

    def plant(commits: int, draw: Draw) -> Planted:
        place = commits - 1 if last else int(draw.integers(1, commits - 1))
        return Planted("bad point", np.where(np.arange(commits) == place, math.log1p(size), 0.0))

    return plant


CASES: dict[str, Callable[[int, Draw], Planted]] = {
    "no change": nothing,
    "step 3%": step(0.03),
    "step 5%": step(0.05),
    "step 10%": step(0.10),
    "5% up and down": two_steps(0.05),
    "drift 2% × 5": drift(0.02, 5),
    "drift .5% × 20": drift(0.005, 20),
    "bad point 10%": bad_point(0.10),
    "bad last point 10%": bad_point(0.10, last=True),
}


def measure(planted: Planted, noise: float, draw: Draw) -> Series:
    """Add the noise of blocks, bursts included, to what was planted."""
    shape = (len(planted.levels), BLOCKS)
    bursts = np.where(draw.random(shape) < BURST_SHARE, BURST_FACTOR, 1.0)
    return Series(planted.levels[:, None] + noise * bursts * draw.standard_normal(shape))


# A search is a series made ready; called with how strict to be (a penalty, say), it gives the first commits at a new
# level. The stricter, the fewer.
Search = Callable[[float], list[int]]


def pelt(signal: Callable[[Series], Values], min_size: int = 1) -> Callable[[Series], Search]:
    """Exact segmentation by mean at a penalty: ruptures' C code of PELT with a squared cost ("linear" kernel)."""

    def prepare(series: Series) -> Search:
        search = ruptures.KernelCPD(kernel="linear", min_size=min_size).fit(signal(series))
        return lambda penalty: [int(place) for place in search.predict(pen=penalty)[:-1]]

    return prepare


def pelt_clinear(series: Series) -> Search:
    """PELT with continuous straight pieces, made for drift; a piece has three commits at least."""
    search = ruptures.Pelt(model="clinear", min_size=3, jump=1).fit(series.trimmed)
    return lambda penalty: [int(place) for place in search.predict(pen=penalty)[:-1]]


def otava(series: Series) -> Search:
    """Hunter's e-divisive with t-tests; strictness is -log10 of its p-value.

    It gets a list: an array is not cut into its windows, and a series longer than one window then fails.
    """
    values = np.exp(series.blocks.mean(1)).tolist()
    return lambda strictness: [
        int(point.index) for point in compute_change_points(values, max_pvalue=10.0**-strictness)[0]
    ]


def asv(series: Series) -> Search:
    """What `asv publish` does; strictness is the smallest step that counts, in standard errors of a commit.

    It gets ratios: of steps that are tiny beside the values it may miss one.
    """
    ratios = np.exp(series.blocks.mean(1))
    error = float(np.std(series.blocks.mean(1)) / np.std(series.means))
    found = detect_steps(ratios.tolist())
    sizes = {int(new[0]): abs(new[2] - old[2]) / error for old, new in itertools.pairwise(found)}
    return lambda strictness: [place for place, size in sizes.items() if size > strictness]


@dataclass(frozen=True)
class Library:
    """One way to search, with its own rules of strictness by number of commits beside the calibrated one."""

    name: str
    prepare: Callable[[Series], Search]
    own_rules: Mapping[str, Callable[[int], float]]


LIBRARIES = [
    Library("ruptures l2, means", pelt(lambda series: series.means), {}),
    Library(
        "ruptures l2, trimmed means",
        pelt(lambda series: series.trimmed),
        {
            "BIC, 2 ln n": lambda commits: 2 * math.log(commits),
            "3 ln n": lambda commits: 3 * math.log(commits),
            "9 + ln n": lambda commits: 9 + math.log(commits),
        },
    ),
    Library("ruptures l2, trimmed, min 2", pelt(lambda series: series.trimmed, min_size=2), {}),
    Library("ruptures l2, blocks", pelt(lambda series: series.scaled), {}),
    Library("ruptures clinear, trimmed", pelt_clinear, {}),
    Library("asv, means", asv, {"default": lambda _: 0.0}),
]
if compute_change_points is not None:
    LIBRARIES.append(Library("otava, means", otava, {"default p .001": lambda _: 3.0}))


def without_bad_points(places: Sequence[int], levels: Values) -> list[int]:
    """Drop two changes around a single commit if the level returns: that is a warning."""
    kept = list(places)
    for one, other in itertools.pairwise(places):
        if other == one + 1 and one in kept:
            start = max((place for place in kept if place < one), default=0)
            stop = min((place for place in kept if place > other), default=len(levels))
            before, after = levels[start:one].mean(), levels[other:stop].mean()
            if abs(after - before) < abs(levels[one] - before) / 2:
                kept = [place for place in kept if place not in (one, other)]
    return kept


def calibrate(library: Library, commits: int, count: int, seed: int) -> float:
    """Least strictness at which no more than `FALSE_ALARMS` of the series without a change raise an alarm."""
    draw = np.random.default_rng([seed, commits])
    null = [measure(nothing(commits, draw), 0.02, draw) for _ in range(count)]
    searches = [(library.prepare(series), series.trimmed) for series in null]
    low, high = WEAKEST, STRICTEST
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        alarms = sum(bool(without_bad_points(search(middle), levels)) for search, levels in searches)
        low, high = (middle, high) if alarms > FALSE_ALARMS * count else (low, middle)
    return high


@cache
def _forms(commits: int) -> tuple[Values, NDArray[np.bool_]]:
    """Every step and ramp of a series, centred and of length one [forms, commits], and whether it is a ramp."""
    pairs = [(start, stop) for start in range(commits - 1) for stop in range(start + 1, commits)]
    places = np.arange(commits)
    forms = np.array([np.clip((places - start) / (stop - start), 0, 1) for start, stop in pairs])
    forms -= forms.mean(1, keepdims=True)
    return forms / np.linalg.norm(forms, axis=1, keepdims=True), np.array([b - a > 1 for a, b in pairs])


def is_ramp(levels: Values) -> bool:
    """Whether the best ramp explains the levels better than the best step, which has one parameter less."""
    forms, ramps = _forms(len(levels))
    gains = (forms @ levels) ** 2 - ramps * math.log(len(levels))
    return bool(ramps[np.argmax(gains)])


def judge(planted: Planted, found: Sequence[int], levels: Values) -> dict[str, float]:
    """How right a search was, as zeros and ones; what does not apply is left out."""
    verdict = {"found": float(bool(found))}
    if planted.kind in ("steps", "drift"):
        verdict["called_drift"] = float(bool(found) and is_ramp(levels))
    if planted.kind == "drift":
        first, last = planted.changes
        within = [first - 1 <= place <= last + 1 for place in found]
        verdict |= {"near": float(any(within)), "elsewhere": float(not all(within))}
    if planted.kind == "steps":
        distances = [min((abs(place - true) for place in found), default=99) for true in planted.changes]
        elsewhere = any(min(abs(place - true) for true in planted.changes) > 1 for place in found)
        verdict |= {"exact": float(max(distances) == 0), "near": float(max(distances) <= 1)}
        verdict["elsewhere"] = float(elsewhere)
    return verdict


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per library, rule, number of commits, noise and case: shares of series."""
    for library, commits in itertools.product(LIBRARIES, options.commits):
        rules = {name: rule(commits) for name, rule in library.own_rules.items()}
        rules["1% false alarms"] = calibrate(library, commits, options.calibration, options.seed)
        for case, noise in itertools.product(CASES, options.noise):
            count = options.calibration if case == "no change" else options.series
            draw = np.random.default_rng([options.seed, commits, list(CASES).index(case), round(1000 * noise)])
            for rule, shares in try_case(library, rules, case, commits, noise, count, draw).items():
                row = {"library": library.name, "rule": rule, "strictness": rules[rule], "commits": commits}
                yield {**row, "noise": noise, "case": case, "series": count, **shares}


def try_case(
    library: Library, rules: Mapping[str, float], case: str, commits: int, noise: float, count: int, draw: Draw
) -> dict[str, dict[str, float]]:
    """Shares of verdicts of each rule on the same series."""
    verdicts: dict[str, list[dict[str, float]]] = {rule: [] for rule in rules}
    for _ in range(count):
        planted = CASES[case](commits, draw)
        series = measure(planted, noise, draw)
        search = library.prepare(series)
        for rule, strictness in rules.items():
            found = without_bad_points(search(strictness), series.trimmed)
            verdicts[rule].append(judge(planted, found, series.trimmed))
    return {
        rule: {name: float(np.mean([verdict[name] for verdict in held])) for name in held[0]}
        for rule, held in verdicts.items()
    }


SHOWN = (
    ("found", "Share of series with a change (no change, bad points: each is an error)"),
    ("exact", "Every planted step at its very commit"),
    ("near", "Every planted step within one commit; a drift within its span"),
    ("called_drift", "Called a drift (of a step: an error)"),
    ("elsewhere", "A change where none was planted, beside those planted"),
)


def main() -> None:
    """Try all libraries, print tables and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.02, 0.04], help="of one block")
    parser.add_argument("--series", type=int, default=100, help="of each planted case")
    parser.add_argument("--calibration", type=int, default=1000, help="series without a change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    if compute_change_points is None:
        print("otava left out: it is not installed here; see --help")
    table = pd.DataFrame(rows(options))
    options.out.write_text(table.to_csv(index=False, float_format="%.4g"))
    for column, title in SHOWN:
        shown = table.dropna(subset=[column])
        print(f"\n{title}; %, mean over the noises")
        pivot = shown.pivot_table(column, ["commits", "library", "rule"], "case", sort=False)
        print((100 * pivot).round(1).to_string())


if __name__ == "__main__":
    main()
