"""What the reference models are worth: whether they tell methods apart, as large models do.

Every method at four sparsities on held-out text, one model after the other, and the speed of `ref:wide` beside it. Then
what each method costs, how the methods are ordered, how they lie against int8 and dense at equal bytes, and each claim
of the README with its figure and interval over documents, and whether it holds.

    python -m experiments.reference --out results/reference
    python -m experiments.reference --out results/mine --model FOLDER --text FILE --calibration-text FILE

The tables, results.jsonl and the SVGs are what benchmarks/records/reference keeps of it.
"""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tda.bench.plan import Plan, Subject
from tda.bench.presets import WIDE
from tda.bench.run import Bench
from tda.models.load import load_model
from tda.records import Measurement, Record, merge
from tda.results import load, write_whole
from tda.statistics import Estimate, bootstrap, by_group, geometric, paired_difference
from tda.web.report import build_report
from tda.web.report.setting import settings
from tda.web.theme.formatting import MISSING, interval, size

MODELS = (WIDE, "ref:swiglu", "ref:relu", "ref:geglu")
SPARSITIES = (0.25, 0.5, 0.75, 0.9)
TDA_TOLERANCE = 0.03
ROUNDS = 15
SMALLER = {(WIDE, "bfloat16"), ("ref:swiglu", "float32")}
"""Dense models that read fewer bytes than the wide one, on the same documents."""
ORDER = ("oracle", "tt", "cats", "tda", "griffin", "static_mean", "magnitude", "random")
"""Methods from what should lose least to what should lose most."""


@dataclass(frozen=True)
class Claim:
    """A sentence, the figure behind it, and whether it holds."""

    model: str
    sentence: str
    figure: str
    holds: bool

    def __str__(self) -> str:
        return f"| {self.model} | {self.sentence} | {self.figure} | {'yes' if self.holds else '**no**'} |"


class ReferenceQuality:
    """Differences between the cases of one model, in nats a token, paired per document."""

    def __init__(self, model: str, records: list[Record]) -> None:
        self.model = model
        self._nll: dict[tuple[str, float | None], Measurement] = {}
        self.achieved: dict[tuple[str, float | None], float] = {}
        for record in records:
            case = record.case
            if (case.model, case.dtype) == (model, "float32") and case.control != "a_a":
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
        missing = {own, base} - self._nll.keys()
        if missing:
            raise ValueError(f"{self.model}: no record of {' and '.join(f'{name} {level}' for name, level in missing)}")
        found = paired_difference(self._nll[own], self._nll[base])
        if found is None or found.low is None:
            raise ValueError(f"{self.model}: too few documents for an interval; give more --documents")
        return found

    def dense_difference(self, other: Measurement) -> Estimate:
        """How much worse another dense model is than this one."""
        found = paired_difference(other, self._nll["dense", 0.0])
        assert found is not None
        return found

    def share(self, one: str, other: str, sparsity: float) -> Estimate:
        """What share of the cost of `other` is the cost of `one`; the bounds are those of one - other/2."""
        mine, theirs = (self._costs(name, sparsity) for name in (one, other))
        both = [(mine[group], theirs[group]) for group in mine if group in theirs]  # timed documents are scored, too
        pairs = bootstrap([a - 0.5 * b for a, b in both])
        value = sum(a for a, _ in both) / sum(b for _, b in both)
        return Estimate(value, pairs.low, pairs.high, pairs.groups)

    def _costs(self, name: str, sparsity: float) -> dict[int, float]:
        dense, part = by_group(self._nll["dense", 0.0]), by_group(self._nll[name, sparsity])
        return {group: value - dense[group] for group, value in part.items() if group in dense}


def claims(quality: ReferenceQuality) -> Iterator[Claim]:
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


def costs(quality: ReferenceQuality) -> Iterator[str]:
    """A row a method, best at half first: nats a token over dense at each sparsity."""
    cases = sorted(quality.cases - {"dense"}, key=lambda name: (quality.difference(name, "dense", 0.5).value, name))
    for name in cases:
        found = (quality.difference(name, "dense", sparsity) for sparsity in SPARSITIES)
        yield f"| {quality.model} | {name} | {' | '.join(interval(one, signed=True) for one in found)} |"


def order(quality: ReferenceQuality) -> Iterator[str]:
    """A row for each pair of neighbours of `ORDER`: how much more the second costs, and whether that is the order."""
    for better, worse in pairwise(name for name in ORDER if name in quality.cases):
        cells = []
        for sparsity in SPARSITIES:
            found = quality.difference(worse, better, sparsity)
            assert found.low is not None
            assert found.high is not None
            verdict = "as expected" if found.low > 0 else "**reversed**" if found.high < 0 else "tie"
            cells.append(f"{verdict}: {interval(found, signed=True)}")
        yield f"| {quality.model} | {better} < {worse} | {' | '.join(cells)} |"


def axes(records: list[Record], wide: ReferenceQuality) -> Iterator[str]:
    """A row for each timed case, most bytes first, then those of `SMALLER`, which have no speed here."""
    timed = [case for setting in settings(records) for case in setting.timed]
    for case in sorted(timed, key=lambda case: -_bytes(case.record)):
        names = ("speedup", "roofline_speedup", "speedup_efficiency", "break_even_tokens")
        found = [*map(case.estimate, names), None if case.is_dense else case.delta_nll]
        cells = [MISSING if one is None else interval(one, signed=one is case.delta_nll) for one in found]
        yield f"| {case.label} | {size(_bytes(case.record))} | {' | '.join(cells)} | {'; '.join(case.warnings)} |"
    for record in records:
        measured = record.case
        if measured.method == "dense" and measured.control is None and (measured.model, measured.dtype) in SMALLER:
            model = load_model(measured.model, dtype=measured.dtype).model
            read = size(sum(weights.nbytes for weights in model.parameters()))
            cells = [*[MISSING] * 4, interval(wide.dense_difference(record.measurements["nll_nats"]), signed=True)]
            yield f"| {measured.model}, dense, {measured.dtype} | {read} | {' | '.join(cells)} | |"


def _bytes(record: Record) -> float:
    """What the limit of a speed-up is of: prompts keep different numbers of neurons."""
    return geometric(list(by_group(record.measurements["weight_bytes_per_token"]).values())).value


def main() -> None:
    """Measure, write records, report and tables, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--model", help="measure the quality of this one in place of the reference models")
    parser.add_argument("--text", type=Path, help="JSONL to score it on")
    parser.add_argument("--calibration-text", type=Path, help="JSONL that thresholds are made from")
    parser.add_argument("--read", action="store_true", help="measure nothing, only read the records there")
    options = parser.parse_args()
    own = (options.model, options.text, options.calibration_text)
    if any(own) and not all(own):
        parser.error("--model, --text and --calibration-text go together")
    try:
        if not options.read:
            for plan in plans(options.documents) if options.model is None else [of_one(options)]:
                Bench(plan, options.out).run()
        write(options.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def write(out: Path) -> None:
    """Write report and tables of the records in a folder, and print the tables."""
    records = merge(load(out).records)
    report = build_report([out], out)
    scored = [setting for setting in settings(records) if setting.scored]  # each has a figure
    models = {setting.model: number for number, setting in enumerate(scored, start=1)}
    qualities = [ReferenceQuality(name, records) for name in models]
    sparsities = [f"{sparsity:g}" for sparsity in SPARSITIES]
    tables = {"costs": table(["model", "method", *sparsities], [row for each in qualities for row in costs(each)])}
    tables["order"] = table(["model", "pair", *sparsities], [row for each in qualities for row in order(each)])
    if tuple(models) == MODELS:
        figures = report.index.parent / "figures"
        for name, number in models.items():
            drawn = figures / f"quality-1-{number}-quality-delta-nll.svg"
            shutil.copy(drawn, out / f"quality-{name.removeprefix('ref:')}.svg")
        shutil.copy(figures / "tradeoff-1-1-tradeoff-joint-speedup.svg", out / "joint-wide.svg")
        heads = [
            "case",
            "weights read a token",
            "speed-up",
            "limit",
            "efficiency",
            "repaid after (tokens)",
            "ΔNLL",
            "doubt",
        ]
        tables["axes"] = table(heads, list(axes(records, qualities[0])))
        rows = [str(claim) for quality in qualities for claim in claims(quality)]
        tables["claims"] = table(["model", "claim", "figure", "holds"], rows)
    for name, text in tables.items():
        write_whole(out / f"{name}.md", text)
        print(text)
    print(f"report: {report.index}")


def table(heads: list[str], rows: list[str]) -> str:
    """Write a table in Markdown."""
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows]) + "\n"


def plans(documents: int) -> list[Plan]:
    """Every method on each model: the wide one on both axes, the dense one in half the bytes, then the small ones."""
    wide = Subject(WIDE, prompt_tokens=256, new_tokens=128)
    small = tuple(Subject(name, prompt_tokens=256, new_tokens=128, speed=False) for name in MODELS[1:])
    half = Subject(WIDE, prompt_tokens=256, new_tokens=128, dtype="bfloat16", speed=False)
    return [
        Plan((wide,), sparsities=SPARSITIES, documents=documents, rounds=ROUNDS, recall=False),
        Plan((half,), methods=("dense",), documents=documents, recall=False),
        Plan(small, sparsities=SPARSITIES, documents=documents),
    ]


def of_one(options: argparse.Namespace) -> Plan:
    """The quality of a model of one's own."""
    subject = Subject(options.model, prompt_tokens=128, new_tokens=64, speed=False)
    texts = {"text": options.text, "calibration_text": options.calibration_text}
    return Plan((subject,), sparsities=SPARSITIES, documents=options.documents, recall=False, **texts)


if __name__ == "__main__":
    main()
