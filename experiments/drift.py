"""How far TDA's achieved sparsity drifts from the asked one: with prompt length, and on text of another kind.

R is scale-free but not length-free, so thresholds are kept per prompt length. This script measures what that is worth:
each row is one prompt length, with the length buckets and with the cuts of one length alone, on the built-in
evaluation text and on a file of one's own; with a prior (`--prior-tokens`) too, which may make the buckets needless.

    python -m experiments.drift --model ref:swiglu --text shakespeare.txt --out benchmarks/records/drift.csv
"""

import argparse
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import tda
from tda.quality import calibration_batches, evaluation_documents
from tda.quality.documents import Document, encode
from tda.results import write_whole
from tda.statistics import bootstrap

LENGTHS = (1, 8, 32, 64, 128, 200, 256, 448)
CONTINUATION = 64
"""Prompt and continuation together stay within the 512 tokens that the reference models were trained on."""
ONE_LENGTH = 128
CALIBRATION_TOKENS = 512


def of_one_length(thresholds: tda.Thresholds) -> tda.Thresholds:
    """The same artifact as if it had been calibrated for one prompt length."""
    place = thresholds.lengths.index(ONE_LENGTH)
    return thresholds.model_copy(
        update={"lengths": (ONE_LENGTH,), "cuts": tuple((cuts[place],) for cuts in thresholds.cuts)}
    )


def foreign_documents(tokenizer: Any, path: Path, prompt_tokens: int, count: int) -> list[Document]:
    """Passages of a plain text, spread evenly over it."""
    tokens = encode(tokenizer, path.read_text(encoding="utf-8"))
    bos, tokens = tokens[:1], tokens[1:]
    size = prompt_tokens - 1 + CONTINUATION
    starts = torch.linspace(0, len(tokens) - size, count).long().tolist()
    passages = [torch.cat([bos, tokens[start : start + size]]) for start in starts]
    return [
        Document(number, path.name, passage[:prompt_tokens], passage[prompt_tokens:])
        for number, passage in enumerate(passages)
    ]


def measure(
    model: Any, thresholds: tda.Thresholds, method: tda.TDA, documents: list[Document]
) -> dict[str, float | None]:
    """Mean achieved sparsity over layers and documents, and the cost in nats, with their intervals."""
    achieved, cost = [], []
    for start in range(0, len(documents), 8):
        batch = documents[start : start + 8]
        prompts = torch.stack([document.prompt for document in batch])
        continuations = torch.stack([document.continuation for document in batch])
        sparse = tda.score(model, method, prompts, continuations, thresholds)
        dense = tda.score(model, tda.Dense(), prompts, continuations)
        kept = torch.stack([layer.double().mean(1) for layer in sparse.selection]).mean(0)
        achieved += (1 - kept).tolist()
        cost += (sparse.nll - dense.nll)[:, 1:].double().mean(1).tolist()
    share, nats = bootstrap(achieved), bootstrap(cost)
    return {
        "achieved_sparsity": share.value,
        "achieved_low": share.low,
        "achieved_high": share.high,
        "delta_nll_nats": nats.value,
        "delta_low": nats.low,
        "delta_high": nats.high,
    }


def rows(name: str, sparsity: float, prior: float, text: Path | None, count: int) -> Iterator[dict[str, Any]]:
    """One row per text, prompt length and kind of thresholds."""
    model, tokenizer = tda.load_model(name)
    method = tda.TDA(sparsity=sparsity, prior_tokens=prior)
    buckets = tda.calibrate(model, method, calibration_batches(tokenizer, CALIBRATION_TOKENS, 64))
    for prompt_tokens in LENGTHS:
        sources = {"built-in": evaluation_documents(tokenizer, prompt_tokens, CONTINUATION, count)}
        if text is not None:
            sources[text.name] = foreign_documents(tokenizer, text, prompt_tokens, count)
        for source, documents in sources.items():
            for kind, thresholds in (("per length", buckets), (f"of {ONE_LENGTH} tokens", of_one_length(buckets))):
                found = measure(model, thresholds, method, documents)
                row = {"model": name, "sparsity": sparsity, "prior_tokens": prior, "text": source}
                row["prompt_tokens"] = prompt_tokens
                yield {**row, "thresholds": kind, "documents": len(documents), **found}


def main() -> None:
    """Measure, print a table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--prior-tokens", type=float, action="append", help="repeatable; else 0")
    parser.add_argument("--text", type=Path, help="plain text of another kind")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="prompt of")  # the lengths outside the calibrated ones are meant
    cases = itertools.product(options.model, options.prior_tokens or [0.0])
    found = [
        row for name, prior in cases for row in rows(name, options.sparsity, prior, options.text, options.documents)
    ]
    table = pd.DataFrame(found)
    write_whole(options.out, table.to_csv(index=False, float_format="%.4f"))
    shown = table.pivot_table(
        index=["model", "prior_tokens", "text", "thresholds"],
        columns="prompt_tokens",
        values="achieved_sparsity",
        sort=False,
    )
    print(shown.round(3).to_string())


if __name__ == "__main__":
    main()
