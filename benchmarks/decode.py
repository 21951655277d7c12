"""What decode reaches on this machine against what its bytes allow: a table of figures, each with a goal.

    python benchmarks/decode.py --out results/decode --record benchmarks/records/decode

runs the benches that are still missing in OUT (each goes on where it stopped), then writes RECORD.csv and RECORD.md.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

import tda
from tda.records import Record
from tda.results import write_whole
from tda.statistics import bootstrap, is_baseline

SPARSITIES = [0.25, 0.5, 0.75, 0.9]
STEPS = {"model": ["shape:1b"], "sparsity": SPARSITIES, "prompt_tokens": 128, "new_tokens": 64}
HALF = {"method": ["griffin", "tda"], "sparsity": [0.5]}
RUNS: dict[str, dict[str, Any]] = {
    "griffin": {**STEPS, "method": ["griffin"]},
    "tda": {**STEPS, "method": ["tda"]},
    "cats": {**STEPS, "method": ["cats"], "sparsity": SPARSITIES[1:]},
    "generate": {**HALF, "model": ["shape:1b"], "prompt_tokens": 512, "new_tokens": 256},
    "opt": {**HALF, "model": ["shape:opt-350m"], "prompt_tokens": 128, "new_tokens": 64},
    "gemma": {**HALF, "model": ["shape:gemma-2b"], "prompt_tokens": 128, "new_tokens": 32},
}
"""Benches by name: options of `tda.run_bench`. Few cases each: what is compared must be measured close together."""
ALIKE = 1.15
"""The largest stream bandwidth read around the steps of a method and of dense, over the smallest: where a machine's
bandwidth moved more than this within a round, the two did not run on the same machine, and the round says nothing."""


@dataclass(frozen=True)
class Goal:
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


def _goals() -> Iterator[Goal]:
    yield Goal("griffin", "bandwidth_share", "dense", 0.0, 0.70, 0.90)
    for method in ("griffin", "tda"):
        yield Goal(method, "bandwidth_share", method, 0.5, 0.60, 0.85)
        for sparsity, must, strive in zip(SPARSITIES, (0.80, 0.80, 0.75, 0.70), (0.95, 0.95, 0.92, 0.90), strict=True):
            yield Goal(method, "gain_share", method, sparsity, must, strive)
        yield Goal(method, "break_even_tokens", method, 0.5, 5, 1, most=True)
        yield Goal("generate", "prefill_ratio", method, 0.5, 1.05, 1.01, most=True)
        yield Goal(method, "memory_ratio", method, 0.5, 1.01, 1.0, most=True)
        yield Goal("generate", "promise_kept", method, 0.5, 0.85, 0.97)
        for run in ("opt", "gemma"):
            yield Goal(run, "gain_share", method, 0.5, 0.70, 0.90)
    for sparsity in SPARSITIES[1:]:
        yield Goal("cats", "gain_share", "cats", sparsity, 0.70, 0.90)


def steady(record: Record, dense: Record) -> set[int]:
    """Rounds in which the machine's bandwidth was the same around the steps of a case and of dense."""
    streams = [_values(one, "stream_gb_per_s") for one in (record, dense)]
    found = set()
    for number in streams[0].keys() & streams[1].keys():
        read = [value for one in streams for value in one[number]]
        if max(read) <= ALIKE * min(read):
            found.add(number)
    return found


def _values(record: Record, name: str) -> dict[int, list[float]]:
    """Samples of each round."""
    measured = record.measurements[name]
    found: dict[int, list[float]] = {}
    for group, sample in zip(measured.groups, measured.samples, strict=True):
        found.setdefault(group, []).append(sample)
    return found


def _typical(record: Record, name: str, rounds: set[int]) -> dict[int, float]:
    return {number: median(values) for number, values in _values(record, name).items() if number in rounds}


def _measured(name: str) -> Callable[[Record, Record, set[int]], list[float]]:
    return lambda record, dense, rounds: list(_typical(record, name, rounds).values())


def _ratio(name: str) -> Callable[[Record, Record, set[int]], list[float]]:
    def figure(record: Record, dense: Record, rounds: set[int]) -> list[float]:
        own, base = _typical(record, name, rounds), _typical(dense, name, rounds)
        return [own[number] / base[number] for number in own.keys() & base.keys()]

    return figure


def memory_ratio(record: Record, dense: Record, rounds: set[int]) -> list[float]:
    """Peak memory with the method attached over dense; taken once, before the rounds."""
    own, base = record.samples("peak_memory_bytes"), dense.samples("peak_memory_bytes")
    return [own[0] / base[0]] if own and base else []


def promise_kept(record: Record, dense: Record, rounds: set[int]) -> list[float]:
    """Gain through the model's own generate over the gain that prefill, selection and steps promise; per round."""
    names = ("ttft_ms", "decode_ms", "generation_ms")
    own, base = ({name: _typical(one, name, rounds) for name in names} for one in (record, dense))
    steps = record.case.new_tokens - 1
    kept = []
    for number in own["generation_ms"].keys() & base["generation_ms"].keys():
        first, second = (one["ttft_ms"][number] + steps * one["decode_ms"][number] for one in (base, own))
        real = base["generation_ms"][number] / own["generation_ms"][number]
        kept.append((real - 1) / (first / second - 1))
    return kept


FIGURES: dict[str, Callable[[Record, Record, set[int]], list[float]]] = {
    "bandwidth_share": _measured("bandwidth_share"),
    "gain_share": _measured("gain_share"),
    "break_even_tokens": _measured("break_even_tokens"),
    "prefill_ratio": _ratio("prefill_ms"),
    "memory_ratio": memory_ratio,
    "promise_kept": promise_kept,
}


def rows(run: str, records: list[Record]) -> Iterator[dict[str, Any]]:
    """The figures of one bench that have a goal."""
    dense = next(record for record in records if is_baseline(record))
    for goal in _goals():
        found = [one for one in records if (one.case.method, one.case.sparsity) == (goal.method, goal.sparsity)]
        found = [one for one in found if not one.control]
        if goal.run != run or not found:
            continue
        record = found[0]
        rounds = steady(record, dense)
        values = FIGURES[goal.figure](record, dense, rounds)
        estimate = bootstrap(values) if values else None
        value = estimate.value if estimate is not None else float("nan")
        yield {
            **asdict(goal),
            "value": value,
            "low": estimate.low if estimate is not None else None,
            "high": estimate.high if estimate is not None else None,
            "rounds": len(values),
            "rounds_measured": len(_values(dense, "decode_ms")),
            "verdict": goal.verdict(value),
            "model": record.case.model,
            "prompt_tokens": record.case.prompt_tokens,
            "new_tokens": record.case.new_tokens,
            "decode_ms": median(record.samples("decode_ms")),
            "dense_ms": median(dense.samples("decode_ms")),
            "stream_gb_per_s": median(dense.samples("stream_gb_per_s")),
            "ran": f"{record.execution} · {record.backend}",
            "cpu": record.machine.cpu,
            "threads": record.machine.threads,
            "torch": record.machine.torch,
            "commit": record.commit.hash,
            "dirty": record.commit.dirty,
        }


def markdown(table: pd.DataFrame) -> str:
    """The table for readers."""
    lines = [
        "| figure | method | model | value | rounds | must | strive | reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        bounds = f"{row.must:g} | {row.strive:g}"
        interval = "" if pd.isna(row.low) else f" [{row.low:.3g}, {row.high:.3g}]"
        method = row.method if row.method == "dense" else f"{row.method} {row.sparsity:g}"
        where = f"{row.model}, {row.prompt_tokens}+{row.new_tokens}"
        rounds = f"{row.rounds} of {row.rounds_measured}"
        value = f"{row.value:.3g}{interval}"
        lines.append(f"| {row.figure} | {method} | {where} | {value} | {rounds} | {bounds} | {row.verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/decode"))
    parser.add_argument("--record", type=Path, default=Path("benchmarks/records/decode"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--run", choices=RUNS, action="append", help="only these benches")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    for name in options.run or RUNS:
        records = tda.run_bench(options.out / name, rounds=options.rounds, dtype="bfloat16", **RUNS[name])
        found += rows(name, records)
    table = pd.DataFrame(found)
    write_whole(options.record.with_suffix(".csv"), table.to_csv(index=False, float_format="%.5g"))
    write_whole(options.record.with_suffix(".md"), markdown(table))
    print(markdown(table))


if __name__ == "__main__":
    main()
