"""Where methods lose: quality over the prompt's length, the position, the batch and the kind of text.

Griffin, TDA, CATS, TT and the control static_mean at 0.5 on the reference models, as `tda eval --over` slices it.

    python -m experiments.quality_slices --out benchmarks/records/slices

The folder then holds slices.csv, of which docs/results/quality.md is made (`python -m tools.doc_tables`).
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from tda.bench.plan import Plan, Subject
from tda.bench.prepare import prepare
from tda.models.reference import PREFIX, shipped
from tda.names import Over
from tda.quality import slices
from tda.results import write_whole

METHODS = ("griffin", "tda", "cats", "tt", "static_mean")
SPARSITY = 0.5
PROMPT_TOKENS, NEW_TOKENS = 256, 128


def rows(name: str, documents: int) -> Iterator[dict[str, Any]]:
    """A row for each slicing, method and slice of a model."""
    subject = Subject(name, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS, speed=False)
    plan = Plan((subject,), methods=METHODS, sparsities=(SPARSITY,), documents=documents)
    prepared = prepare(plan, subject)
    methods = [method for method, _ in prepared.methods]
    for over in get_args(Over):
        found = slices(
            over,
            prepared.model,
            prepared.scored,
            methods,
            bos=prepared.tokenizer.bos_token_id,
            questions=prepared.questions,
        )
        for one in found:
            yield {"model": name, "method": one.method.name, "sparsity": SPARSITY, "over": over, **one.row()}
        print(f"{name}: over {over} done", flush=True)


def main() -> None:
    """Measure, and write the CSV; models that are done stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--model", action="append", help="repeatable; else every reference model")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("tda").setLevel(logging.INFO)
    found: list[dict[str, Any]] = []
    for name in options.model or [PREFIX + name for name in shipped()]:
        found += rows(name, options.documents)
        write_whole(options.out / "slices.csv", pd.DataFrame(found).to_csv(index=False, float_format="%.6g"))


if __name__ == "__main__":
    main()
