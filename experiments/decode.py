"""What decode reaches on this machine against what its bytes allow: a table of figures, each with a goal.

    python -m experiments.decode --out results/decode --record benchmarks/records/MACHINE/decode

runs the benches that are still missing in OUT (each goes on where it stopped), profiles a step of each method, and
writes RECORD.csv (figures), RECORD-gap.csv (what keeps a step from its limit) and RECORD.md. Rows of benches that were
not asked for stay in the record as they are. Each machine has a record of its own.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

import tda
from tda.derived import NO_ROUND, Derived, Missing, derive
from tda.device import machine
from tda.kernels import backend
from tda.profiler.records import Profile
from tda.profiler.split import COMPONENTS, gap, split
from tda.records import SPEED, Measurement, Record
from tda.results import write_whole
from tda.statistics import MIN_GROUPS, Estimate, fieller, paired_ratio

SPARSITIES = [0.25, 0.5, 0.75, 0.9]
STEPS = {"models": ["shape:1b"], "sparsities": SPARSITIES, "prompt_tokens": 128, "new_tokens": 64}
HALF: dict[str, Any] = {"methods": ["griffin", "tda"], "sparsities": [0.5]}
RUNS: dict[str, dict[str, Any]] = {
    "griffin": {**STEPS, "methods": ["griffin"]},
    "tda": {**STEPS, "methods": ["tda"]},
    "cats": {**STEPS, "methods": ["cats"], "sparsities": SPARSITIES[1:]},
    "generate": {**HALF, "models": ["shape:1b"], "prompt_tokens": 512, "new_tokens": 256},
    "opt": {**HALF, "models": ["shape:opt-350m"], "prompt_tokens": 128, "new_tokens": 64},
    "gemma": {**HALF, "models": ["shape:gemma-2b"], "prompt_tokens": 128, "new_tokens": 32},
}
"""Benches by name: options of `tda.run_bench`. Few cases each: what is compared must be measured close together."""
COPIES = "-compact"
"""Ends the name of a run over gathered copies of what is kept; the others take what "auto" takes."""
RUNS |= {f"{method}{COPIES}": {**RUNS[method], "execution": "compact"} for method in HALF["methods"]}
SHORT = {
    f"{name}-steps": {**options, "new_tokens": 24}
    for name, options in RUNS.items()
    if options["models"] == STEPS["models"] and len(options["methods"]) == 1
}
"""Short rounds by name: for a machine whose bandwidth does not stay for a minute, few tokens in many rounds."""
PROFILE = "profile"
PROFILED: dict[str, Any] = {
    "models": ["shape:1b"],
    "methods": ["griffin", "tda", "cats"],
    "sparsities": [0.5],
    "prompt_tokens": 128,
    "new_tokens": 64,
    "dtype": "bfloat16",
}
"""What is profiled: options of `tda.run_profile`."""
ALIKE = 1.15
"""The largest stream bandwidth read around the steps of a method and of dense, over the smallest: where a machine's
bandwidth moved more than this, the two did not run on the same machine, and say nothing about each other."""
FEW = f"fewer than {MIN_GROUPS} rounds"
NEAR = 2
"""Rounds that a method's run and dense's may lie apart; the A/A control is a run of dense too."""


@dataclass(frozen=True)
class DecodeGoal:
    """A figure that must reach one bound and strives for another; `most` where smaller is better."""

    run: str
    figure: str
    method: str
    sparsity: float
    must: float
    strive: float
    most: bool = False

    def verdict(self, value: float) -> str:
        """The better bound that a value reaches; "missed" where it reaches none."""
        sign = -1 if self.most else 1
        return next((name for name in ("strive", "must") if sign * value >= sign * getattr(self, name)), "missed")


def _goals() -> Iterator[DecodeGoal]:
    for run in ("griffin", "griffin-steps"):
        yield DecodeGoal(run, "mbu", "dense", 0.0, 0.70, 0.90)
    for method in HALF["methods"]:
        for run in (method, f"{method}{COPIES}"):
            for name in (run, f"{run}-steps"):
                yield DecodeGoal(name, "mbu", method, 0.5, 0.60, 0.85)
                shares = zip(SPARSITIES, (0.80, 0.80, 0.75, 0.70), (0.95, 0.95, 0.92, 0.90), strict=True)
                yield from (
                    DecodeGoal(name, "speedup_efficiency", method, part, must, strive) for part, must, strive in shares
                )
            yield DecodeGoal(run, "break_even_tokens", method, 0.5, 5, 1, most=True)
        yield DecodeGoal("generate", "prefill_ratio", method, 0.5, 1.05, 1.01, most=True)
        yield DecodeGoal(method, "memory_ratio", method, 0.5, 1.01, 1.0, most=True)
        yield DecodeGoal("generate", "promise_kept", method, 0.5, 0.85, 0.97)
        for run in ("opt", "gemma"):
            yield DecodeGoal(run, "speedup_efficiency", method, 0.5, 0.70, 0.90)
    for run in ("cats", "cats-steps"):
        yield from (DecodeGoal(run, "speedup_efficiency", "cats", sparsity, 0.70, 0.90) for sparsity in SPARSITIES[1:])


@dataclass(frozen=True)
class TimedCase:
    """A case in one round."""

    record: Record
    number: int

    def values(self, name: str) -> list[float]:
        """Its samples of a measurement."""
        measured = self.record.measurements.get(name)
        if measured is None:
            return []
        return [sample for group, sample in zip(measured.groups, measured.samples, strict=True) if group == self.number]

    def value(self, name: str) -> float:
        """Their median."""
        return median(self.values(name))

    @property
    def ready_ms(self) -> float:
        """From the prompt to the end of all decode steps, as its parts promise."""
        selection = self.value("selection_ms") if self.values("selection_ms") else 0.0
        return self.value("ttft_ms") + selection + (self.record.case.new_tokens - 1) * self.value("decode_ms")


def runs(record: Record) -> list[TimedCase]:
    """The rounds of a case."""
    return [TimedCase(record, number) for number in sorted(set(record.measurements["decode_ms"].groups))]


def alike(*ran: TimedCase) -> bool:
    """Whether the machine's bandwidth was the same around the steps of some runs."""
    read = [value for one in ran for value in one.values("stream_gb_per_s")]
    return max(read) <= ALIKE * min(read)


def pairs(record: Record, dense: list[Record]) -> list[tuple[TimedCase, TimedCase]]:
    """Each run of a case with the nearest of dense that met the same bandwidth; a run without one says nothing."""
    found = []
    every = [one for baseline in dense for one in runs(baseline)]
    for own in runs(record):
        near = [one for one in every if abs(one.number - own.number) <= NEAR and alike(own, one)]
        if near:
            found.append((own, min(near, key=lambda one: abs(one.number - own.number))))
    return found


def as_rounds(ran: Sequence[TimedCase]) -> Record:
    """Some runs as the rounds of one record, numbered in their order."""
    measurements = {}
    for name in (*SPEED, "stream_gb_per_s"):
        found = [(value, place) for place, one in enumerate(ran) for value in one.values(name)]
        if found:
            measurements[name] = Measurement.of(name, *zip(*found, strict=True))
        elif name in ran[0].record.measurements:
            measurements[name] = ran[0].record.measurements[name]
    return ran[0].record.model_copy(update={"measurements": measurements})


def prefill_ratio(own: Record, dense: Record) -> Derived:
    """Prefill with the method attached over dense."""
    return paired_ratio(own.measurements["prefill_ms"], dense.measurements["prefill_ms"]) or NO_ROUND


def promise_kept(own: Record, dense: Record) -> Derived:
    """Gain through the model's own generate over the gain that prefill, selection and steps promise."""
    both = [(TimedCase(own, ran.number), TimedCase(dense, ran.number)) for ran in runs(own)]
    real = [base.value("generation_ms") / one.value("generation_ms") - 1 for one, base in both]
    return fieller(real, [base.ready_ms / one.ready_ms - 1 for one, base in both])


def figure(name: str, record: Record, dense: list[Record]) -> Derived:
    """A figure over the runs that have a pair; memory is taken once, before the rounds."""
    if name == "memory_ratio":
        own, base = record.samples("peak_memory_bytes"), dense[0].samples("peak_memory_bytes")
        return Estimate(own[0] / base[0], None, None, 1) if own and base else NO_ROUND
    found = pairs(record, dense)
    if not found:
        return Missing(FEW)
    one, other = as_rounds([own for own, _ in found]), as_rounds([base for _, base in found])
    own_figures = {"prefill_ratio": prefill_ratio, "promise_kept": promise_kept}
    return own_figures[name](one, other) if name in own_figures else derive(name, one, other)


def rows(run: str, records: list[Record]) -> Iterator[dict[str, Any]]:
    """The figures of one bench that have a goal."""
    dense = sorted((one for one in records if one.case.method == "dense"), key=lambda one: one.case.control is not None)
    for goal in _goals():
        asked = (goal.method, goal.sparsity)
        own = [one for one in records if (one.case.method, one.case.sparsity) == asked and one.case.control is None]
        if goal.run != run or not own:
            continue
        record = own[0]
        found = figure(goal.figure, record, dense)
        estimate = Estimate(float("nan"), None, None, 0) if isinstance(found, Missing) else found
        yield {
            **asdict(goal),
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "rounds": estimate.groups,
            "rounds_measured": len(runs(record)),
            "verdict": _verdict(goal, found),
            "model": record.case.model,
            "prompt_tokens": record.case.prompt_tokens,
            "new_tokens": record.case.new_tokens,
            "decode_ms": median(record.samples("decode_ms")),
            "dense_ms": median(dense[0].samples("decode_ms")),
            "stream_gb_per_s": median(record.samples("stream_gb_per_s")),
            "ran": f"{record.execution} · {record.backend}",
            "cpu": record.machine.cpu,
            "kernels": record.conditions.get("kernels"),
            "threads": record.machine.threads,
            "torch": record.machine.torch,
            "commit": record.commit.hash,
            "dirty": record.commit.dirty,
        }


def _verdict(goal: DecodeGoal, found: Derived) -> str:
    """The bound that a figure reaches, or why it has none; memory needs no rounds."""
    if isinstance(found, Missing):
        return found.reason
    return goal.verdict(found.value) if goal.figure == "memory_ratio" or found.groups >= MIN_GROUPS else FEW


def gaps(profiles: list[Profile]) -> Iterator[dict[str, Any]]:
    """What keeps each profiled method's step from its limit, in ms by component."""
    dense = next(one for one in profiles if one.case.method == "dense")
    for one in profiles:
        if one is not dense:
            found = gap(one, dense)
            told = {"method": one.case.method, "sparsity": one.case.sparsity, "dense_ms": split(dense).total}
            told |= {"step_ms": found.method.total, "limit_ms": found.at_limit.total}
            told |= dict(zip(COMPONENTS, found.components, strict=True))
            yield told | {"commit": one.commit.hash, "dirty": one.commit.dirty}


def gap_markdown(table: pd.DataFrame) -> str:
    """The table of `gaps` for readers."""
    columns = ["method", "step_ms", "limit_ms", *COMPONENTS]
    lines = [
        "What keeps a step from its limit, in ms, from one profile of `shape:1b`, prompt 128. At the limit every",
        "component of the dense step would shrink as the bytes do; where one does not, the difference stands here",
        "(they add up to `step_ms` less `limit_ms`). A large part that is not explained says that the profiled pass",
        "met another bandwidth than the timed one; then the split of that row says nothing.",
        "",
    ]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in table.to_dict("records"):
        cells = [f"{row['method']} {row['sparsity']:g}", *(f"{row[name]:.3g}" for name in columns[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


CONDITIONS = """\
# What decode reaches against what its bytes allow

{cpu}, {threads} threads, torch {torch}; bfloat16, batch 1. The baseline is dense on the same kernels. A value is the
mean over runs, each paired with the nearest run of dense (A/A control included) around which the machine's stream
bandwidth was the same within {percent:.0f}%; "rounds" says how many runs had such a pair, and the brackets are the 95%
interval over them. Runs named `-steps` are short rounds: 24 new tokens each, in three times as many rounds.

Kernels: {kernels}. Commits: {commits}.

"""


def markdown(table: pd.DataFrame) -> str:
    """The table of figures for readers, with the conditions that all of it has in common."""
    not_told = pd.Series(["not recorded"])
    common = {name: table.get(name, not_told).iloc[-1] for name in ("cpu", "threads", "torch", "kernels")}
    commits = ", ".join(f"{commit[:10]}" for commit in dict.fromkeys(table["commit"]))
    lines = [
        "| run | figure | method | model | value | rounds | must | strive | reached |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        bounds = f"{row.must:g} | {row.strive:g}"
        low, high = float(str(row.low)), float(str(row.high))
        interval = "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]"
        method = row.method if row.method == "dense" else f"{row.method} {row.sparsity:g}"
        where = f"{row.model}, {row.prompt_tokens}+{row.new_tokens}"
        rounds = f"{row.rounds} of {row.rounds_measured}"
        value = f"{row.value:.3g}{interval}"
        cells = [row.run, row.figure, method, where, value, rounds, bounds, row.verdict]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return CONDITIONS.format(percent=100 * (ALIKE - 1), commits=commits, **common) + "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/decode"))
    parser.add_argument("--record", type=Path, default=Path("results/decode/record"))
    parser.add_argument("--rounds", type=int, default=8, help="of a bench; short rounds are three times as many")
    parser.add_argument("--run", choices=(*RUNS, *SHORT, PROFILE), action="append", help="only these")
    options = parser.parse_args()
    figures = options.record.with_suffix(".csv")
    held = pd.read_csv(figures) if figures.is_file() else pd.DataFrame()
    for column, here in (("cpu", machine("cpu").cpu), ("kernels", str(backend()))):
        others = {told for told in held.get(column, ()) if isinstance(told, str)} - {here}  # older ones tell no kernels
        if others:
            parser.error(f"{figures} holds figures of {', '.join(others)}; give --record a place for those of {here}")
    gap_figures = options.record.with_name(f"{options.record.name}-gap.csv")
    for name in options.run or (*RUNS, *SHORT, PROFILE):
        if name == PROFILE:
            _write(gap_figures, pd.DataFrame(gaps(tda.run_profile(options.out / name, **PROFILED))))
            continue
        rounds, asked = (3 * options.rounds, SHORT[name]) if name in SHORT else (options.rounds, RUNS[name])
        records = tda.run_bench(options.out / name, rounds=rounds, dtype="bfloat16", **asked)
        table = pd.DataFrame(rows(name, records))
        if figures.is_file():
            held = pd.read_csv(figures)
            table = pd.concat([held[held["run"] != name], table])
        _write(figures, table)
    parts = [(figures, markdown), (gap_figures, gap_markdown)]
    text = "\n".join(told(pd.read_csv(path)) for path, told in parts if path.is_file())
    write_whole(options.record.with_suffix(".md"), text)
    print(text)


def _write(path: Path, table: pd.DataFrame) -> None:
    write_whole(path, table.to_csv(index=False, float_format="%.5g"))


if __name__ == "__main__":
    main()
