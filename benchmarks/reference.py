"""What the reference models are worth: whether they tell methods apart, as large models do.

Every method at four sparsities on held-out text, one model after the other; then what each costs, and each claim of the
README with its figure and interval over documents, and whether it holds.

    python benchmarks/reference.py --out results/reference

results.jsonl, costs.md, claims.md and the SVGs are what benchmarks/records/reference keeps of it.
"""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tda.bench.plan import Plan, Subject
from tda.bench.run import Bench
from tda.records import Measurement, Record, merge
from tda.reporting import build_report
from tda.reporting.text import interval
from tda.results import load, write_whole
from tda.statistics import Estimate, bootstrap, paired_difference

MODELS = ("ref:wide", "ref:swiglu", "ref:relu", "ref:geglu")
SPARSITIES = (0.25, 0.5, 0.75, 0.9)
TDA_TOLERANCE = 0.03


@dataclass(frozen=True)
class Claim:
    """A sentence, the figure behind it, and whether it holds."""

    model: str
    sentence: str
    figure: str
    holds: bool


class Quality:
    """Differences between the cases of one model, in nats a token, paired per document."""

    def __init__(self, model: str, records: list[Record]) -> None:
        self.model = model
        self._nll: dict[tuple[str, float | None], Measurement] = {}
        self.achieved: dict[tuple[str, float | None], float] = {}
        for record in records:
            if record.case.model == model:
                key = (record.case.control or record.case.method, record.case.sparsity)
                self._nll[key] = record.measurements["nll_nats"]
                self.achieved[key] = sum(record.achieved_sparsity) / len(record.achieved_sparsity)

    @property
    def cases(self) -> set[str]:
        """Methods, and the control, that are there at half or have no sparsity."""
        return {name for name, sparsity in self._nll if sparsity in (0.0, 0.5, None)}

    def difference(self, one: str, other: str, sparsity: float) -> Estimate:
        """How much worse `one` is than `other` ("dense" for the dense model); int8 is the same at each sparsity."""
        base = (other, 0.0 if other == "dense" else sparsity)
        own = (one, None if one == "int8" else sparsity)
        found = paired_difference(self._nll[own], self._nll[base])
        assert found is not None
        return found

    def share(self, one: str, other: str, sparsity: float) -> Estimate:
        """What share of the cost of `other` is the cost of `one`; the bounds are those of one - other/2."""
        costs = [self._costs(name, sparsity) for name in (one, other)]
        pairs = bootstrap([a - 0.5 * b for a, b in zip(*costs, strict=True)])
        value = sum(costs[0]) / sum(costs[1])
        return Estimate(value, pairs.low, pairs.high, pairs.groups)

    def _costs(self, name: str, sparsity: float) -> list[float]:
        dense = dict(zip(self._nll["dense", 0.0].groups, self._nll["dense", 0.0].samples, strict=True))
        part = self._nll[name, sparsity]
        return [value - dense[group] for group, value in zip(part.groups, part.samples, strict=True)]


def claims(quality: Quality) -> Iterator[Claim]:
    """The claims of the README about one model."""
    model = quality.model

    def above(estimate: Estimate, bound: float = 0.0) -> bool:
        return estimate.low is not None and estimate.low > bound

    def below(estimate: Estimate, bound: float) -> bool:
        return estimate.high is not None and estimate.high <= bound

    cost = quality.difference("griffin", "dense", 0.25)
    yield Claim(model, "Griffin at .25 costs at most .1 nats", str(cost), below(cost, 0.1))
    half = quality.share("griffin", "random", 0.5)
    yield Claim(
        model, "Griffin at .5 costs at most half of what random does", f"{half.value:.3f} of it", below(half, 0)
    )
    other = quality.difference("cross_domain", "griffin", 0.5)
    yield Claim(model, "another kind's prompt at .5 costs more than the own", str(other), above(other))
    magnitude = quality.difference("magnitude", "griffin", 0.5)
    yield Claim(model, "magnitude at .5 costs more than Griffin", str(magnitude), above(magnitude))
    hurts = quality.difference("griffin", "dense", 0.9)
    yield Claim(model, "Griffin at .9 hurts (more than .5 nats)", str(hurts), above(hurts, 0.5))
    oracle = quality.difference("oracle", "dense", 0.5)
    yield Claim(model, "the oracle at .5 is within .01 nats of dense", str(oracle), below(oracle, 0.01))
    for better, worse in (("oracle", "tt"), ("tt", "random"), ("griffin", "random")):
        apart = quality.difference(worse, better, 0.5)
        yield Claim(model, f"{better} at .5 costs less than {worse}", str(apart), above(apart))
    for sparsity in SPARSITIES[:3]:
        share = quality.achieved["tda", sparsity]
        sentence = f"TDA at {sparsity:g} leaves out what was asked, within {TDA_TOLERANCE:g}"
        yield Claim(model, sentence, f"{share:.3f}", abs(share - sparsity) <= TDA_TOLERANCE)


def costs(quality: Quality) -> Iterator[str]:
    """A row a method, best at half first: nats a token over dense at each sparsity."""
    cases = sorted(quality.cases - {"dense"}, key=lambda name: quality.difference(name, "dense", 0.5).value)
    for name in cases:
        found = (quality.difference(name, "dense", sparsity) for sparsity in SPARSITIES)
        yield f"| {quality.model} | {name} | {' | '.join(interval(one, signed=True) for one in found)} |"


def main() -> None:
    """Measure, write records and report, print costs and claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--read", action="store_true", help="measure nothing, only read the records there")
    options = parser.parse_args()
    records = merge(load(options.out).records) if options.read else measure(options.out, options.documents)
    report = build_report([options.out], options.out)
    for number, name in enumerate(MODELS, start=1):
        drawn = report.index.parent / "figures" / f"quality-1-{number}-quality-delta-nll.svg"
        shutil.copy(drawn, options.out / f"quality-{name.removeprefix('ref:')}.svg")
    qualities = [Quality(name, records) for name in MODELS]
    table = [f"| model | method | {' | '.join(f'{sparsity:g}' for sparsity in SPARSITIES)} |", "|---" * 6 + "|"]
    table += [row for quality in qualities for row in costs(quality)]
    write_whole(options.out / "costs.md", "\n".join(table) + "\n")
    lines = ["| model | claim | figure | holds |", "|---|---|---|---|"]
    for claim in (claim for quality in qualities for claim in claims(quality)):
        lines.append(f"| {claim.model} | {claim.sentence} | {claim.figure} | {'yes' if claim.holds else '**no**'} |")
    write_whole(options.out / "claims.md", "\n".join(lines) + "\n")
    print("\n".join([*table, "", *lines]))
    print(f"\nreport: {report.index}")


def measure(out: Path, documents: int) -> list[Record]:
    """Score every method on each model."""
    subjects = tuple(Subject(name, prompt_tokens=256, new_tokens=128, speed=False) for name in MODELS)
    return Bench(Plan(subjects, sparsities=SPARSITIES, documents=documents), out).run()


if __name__ == "__main__":
    main()
