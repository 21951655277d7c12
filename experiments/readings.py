"""Which reading of TDA and TT loses least: every statistic and way to share the sparsity among layers.

The papers leave both open. Every reading is scored on the same documents of each reference model, and compared with
Griffin and with the default of before, paired per document.

    python -m experiments.readings --out results/readings

The folder then holds results.jsonl and readings.md.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from tda.bench.plan import Plan, Subject
from tda.bench.run import Bench
from tda.cases import MethodSpec
from tda.methods import build
from tda.models.reference import PREFIX, shipped
from tda.records import Record, merge
from tda.results import load, write_whole
from tda.statistics import paired_difference
from tda.web.theme.formatting import interval

SPARSITIES = (0.25, 0.5, 0.75)
BEFORE = {"tda": "tda:statistic=relative,allocation=equal_error", "tt": "tt:allocation=equal_error"}
"""The defaults of before this was measured."""
STATISTICS = ("relative", "l2", "max", "contribution")
READINGS = (
    *(f"tda:statistic={statistic},allocation={allocation}"
      for statistic, allocation in itertools.product(STATISTICS, ("uniform", "equal_error"))),
    "tt:allocation=uniform",
    "tt:allocation=equal_error",
)  # fmt: skip


def measure(out: Path, models: Sequence[str], documents: int) -> list[Record]:
    """Score every reading, and Griffin, on each model."""
    subjects = tuple(Subject(name, prompt_tokens=256, new_tokens=128, speed=False) for name in models)
    return Bench(Plan(subjects, methods=("griffin", *READINGS), sparsities=SPARSITIES, documents=documents), out).run()


def rows(records: Sequence[Record]) -> Iterator[list[str]]:
    """Model, sparsity, reading, its cost over dense, and over Griffin and the default of before."""
    scored = {(one.case.model, one.case.spec): one for one in records if one.case.control is None}
    dense = {one.case.model: one for one in records if one.case.is_baseline}
    for model, sparsity, text in itertools.product(dense, SPARSITIES, ("griffin", *READINGS)):
        before = BEFORE.get(MethodSpec.parse(text).name, "griffin")
        own, griffin, old = (scored[model, _spec(one, sparsity)] for one in (text, "griffin", before))
        found = [paired_difference(own.measurements["nll_nats"], other.measurements["nll_nats"])
                 for other in (dense[model], griffin, old)]  # fmt: skip
        yield [
            f"`{model}`",
            f"{sparsity:g}",
            f"`{text}`",
            *("–" if one is None else interval(one, signed=True) for one in found),
        ]


def _spec(text: str, sparsity: float) -> MethodSpec:
    """As a record has it: with all its options."""
    return build(MethodSpec.parse(text), (sparsity,))[0].spec


def main() -> None:
    """Measure, write records and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--model", action="append", help="repeatable; else every reference model")
    parser.add_argument("--read", action="store_true", help="measure nothing, only read the records there")
    options = parser.parse_args()
    models = options.model or [PREFIX + name for name in shipped()]
    records = merge(load(options.out).records) if options.read else measure(options.out, models, options.documents)
    head = ["model", "sparsity", "reading", "ΔNLL to dense", "less Griffin's", "less the default's of before"]
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *rows(records))]
    write_whole(options.out / "readings.md", "".join(f"| {line} |\n" for line in lines))


if __name__ == "__main__":
    main()
