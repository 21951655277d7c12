"""What the reference models are worth: whether they tell methods apart, as large models do.

Every method at four sparsities on held-out text, the three models one after the other; then each claim of the README
with its figure and interval over documents, and whether it holds.

    python benchmarks/reference.py --out benchmarks/records/reference
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tda.bench.plan import Plan, Subject
from tda.bench.run import Bench
from tda.records import Measurement, Record
from tda.reporting import build_report
from tda.statistics import Estimate, bootstrap, mean, paired_difference

MODELS = ("ref:swiglu", "ref:relu", "ref:geglu")
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
                other = record.case.options.get("selection_from")
                key = (other or record.case.method, record.case.sparsity)
                self._nll[key] = record.measurements["nll_nats"]
                self.achieved[key] = sum(record.achieved_sparsity) / len(record.achieved_sparsity)

    def difference(self, one: str, other: str, sparsity: float) -> Estimate:
        """How much worse `one` is than `other` ("dense" for the dense model)."""
        base = (other, 0.0 if other == "dense" else sparsity)
        found = paired_difference(self._nll[one, sparsity], self._nll[base])
        assert found is not None
        return found

    def share(self, one: str, other: str, sparsity: float) -> Estimate:
        """What share of the cost of `other` is the cost of `one`, resampled over documents together."""
        costs = [self._costs(name, sparsity) for name in (one, other)]
        pairs = bootstrap([a - 0.5 * b for a, b in zip(*costs, strict=True)], mean)
        value = sum(costs[0]) / sum(costs[1])
        return Estimate(value, pairs.low, pairs.high, pairs.groups)

    def _costs(self, name: str, sparsity: float) -> list[float]:
        dense = dict(zip(self._nll["dense", 0.0].groups, self._nll["dense", 0.0].samples, strict=True))
        part = self._nll[name, sparsity]
        return [value - dense[group] for group, value in zip(part.groups, part.samples, strict=True)]


def claims(quality: Quality) -> Iterator[Claim]:
    """The claims of the README about one model."""
    model = quality.model

    def above(estimate: Estimate) -> bool:
        return estimate.low is not None and estimate.low > 0

    cost = quality.difference("griffin", "dense", 0.25)
    yield Claim(model, "Griffin at .25 costs at most .1 nats", str(cost), (cost.high or cost.value) <= 0.1)
    half = quality.share("griffin", "random", 0.5)
    holds = half.high is not None and half.high <= 0
    yield Claim(model, "Griffin at .5 costs at most half of what random does", f"{half.value:.3f} of it", holds)
    other = quality.difference("another kind", "griffin", 0.5)
    yield Claim(model, "another kind's prompt at .5 costs more than the own", str(other), above(other))
    magnitude = quality.difference("magnitude", "griffin", 0.5)
    yield Claim(model, "magnitude at .5 costs more than Griffin", str(magnitude), above(magnitude))
    hurts = quality.difference("griffin", "dense", 0.9)
    yield Claim(model, "Griffin at .9 hurts (more than .5 nats)", str(hurts), (hurts.low or 0.0) > 0.5)
    oracle = quality.difference("oracle", "dense", 0.5)
    yield Claim(model, "the oracle at .5 is within .01 nats of dense", str(oracle), (oracle.high or 1.0) <= 0.01)
    for sparsity in SPARSITIES[:3]:
        share = quality.achieved["tda", sparsity]
        sentence = f"TDA at {sparsity:g} leaves out what was asked, within {TDA_TOLERANCE:g}"
        yield Claim(model, sentence, f"{share:.3f}", abs(share - sparsity) <= TDA_TOLERANCE)


def main() -> None:
    """Measure, write records and report, print the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=60)
    options = parser.parse_args()
    subjects = tuple(Subject(name, prompt_tokens=256, new_tokens=128, speed=False) for name in MODELS)
    records = Bench(Plan(subjects, sparsities=SPARSITIES, documents=options.documents), options.out).run()
    report = build_report([options.out], options.out)
    found = [claim for name in MODELS for claim in claims(Quality(name, records))]
    print("| model | claim | figure | holds |\n|---|---|---|---|")
    for claim in found:
        print(f"| {claim.model} | {claim.sentence} | {claim.figure} | {'yes' if claim.holds else '**no**'} |")
    print(f"\nreport: {report.index}")


if __name__ == "__main__":
    main()
