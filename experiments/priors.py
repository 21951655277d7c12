"""What a prior beside the prompt is worth: Griffin and TDA with and without `prior_tokens`, GLASS and static_mean.

Short prompts tell little of which neurons a request needs. Each method is scored on the same documents of each kind of
built-in text, its prior (and cuts) fitted on text of the same kind, of all kinds, and of all other kinds: only the last
is what a stranger's text meets. The number of tokens that a prior is worth is chosen for each model and method on
calibration text that the prior did not see, at a sparsity of 0.5 over all prompt lengths.

    python -m experiments.priors --out results/priors

The folder then holds priors.csv, chosen.csv and priors.md.
"""

import argparse
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import tda
from tda.calibration import calibrate_all
from tda.contracts import Method
from tda.models.reference import PREFIX, shipped
from tda.quality.documents import encode
from tda.reference.text import KINDS, documents
from tda.results import write_whole
from tda.statistics import bootstrap

PROMPTS = (16, 64, 256)
CONTINUATION = 64
SPARSITIES = (0.25, 0.5, 0.75)
TOKENS = (2, 4, 8, 16, 32, 64, 128)
"""What a prior may be worth."""
FITTED_ON = 40
"""Documents that a prior is fitted on, whatever their kinds."""
SOURCES = ("same kind", "all kinds", "all other kinds")
BYTES = 6
"""More than a token of the built-in tokenizer has on average."""


def texts(tokenizer: Any, split: Any, kinds: Sequence[str], tokens: int, count: int, skip: int = 0) -> Tensor:
    """The first tokens of documents, the kinds in turn: int64 [count, tokens]."""
    found = (
        encode(tokenizer, one.text, at_most=tokens) for one in documents(split, kinds=kinds, min_bytes=BYTES * tokens)
    )
    return torch.stack(list(itertools.islice((row for row in found if len(row) == tokens), skip, skip + count)))


def cases(prior: dict[str, float], sparsity: float) -> dict[str, Method]:
    """The methods beside each other, by what the table calls them."""
    return {
        "griffin": tda.Griffin(sparsity=sparsity),
        "tda": tda.TDA(sparsity=sparsity),
        "griffin + prior": tda.Griffin(sparsity=sparsity, prior_tokens=prior["griffin"]),
        "tda + prior": tda.TDA(sparsity=sparsity, prior_tokens=prior["tda"]),
        "glass": tda.GLASS(sparsity=sparsity),
        "static_mean": tda.StaticMean(sparsity=sparsity),
    }


def kind_of_text(source: str, kind: str) -> Sequence[str]:
    """The kinds that a source of a prior for text of one kind holds."""
    return {"same kind": [kind], "all kinds": KINDS}.get(source) or [other for other in KINDS if other != kind]


class PriorStudy:
    """One model's documents and scores.

    Parameters
    ----------
    name : str
        The model.
    count : int
        Documents of each kind that are scored.
    """

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.count = count
        self.model, self.tokenizer = tda.load_model(name)
        self._dense: dict[tuple[int, str, str], tuple[Tensor, Tensor]] = {}

    def fitted(self, methods: Sequence[Method], rows: Tensor) -> list[Method]:
        """Methods, those that need it fitted on documents [N, T]."""
        needy = [method for method in methods if method.needs_fit]
        batches = [{"input_ids": part} for part in rows.split(8)]
        made = dict(zip(map(id, needy), calibrate_all(self.model, needy, batches, progress=False), strict=True))
        return [method.with_thresholds(made[id(method)]) if id(method) in made else method for method in methods]

    def losses(self, method: Method, prompt: int, kind: str, split: Any = "evaluation", skip: int = 0) -> list[float]:
        """Nats a token over dense of each document of a kind, the first token of the continuation left out."""
        key = (prompt, kind, split)
        if key not in self._dense:
            rows = texts(self.tokenizer, split, [kind], prompt + CONTINUATION, self.count, skip)
            self._dense[key] = rows, self._nll(tda.Dense(), rows, prompt)
        rows, dense = self._dense[key]
        return (self._nll(method, rows, prompt) - dense).tolist()

    def _nll(self, method: Method, rows: Tensor, prompt: int) -> Tensor:
        scores = tda.score(self.model, method, rows[:, :prompt], rows[:, prompt:])
        return scores.nll[:, 1:].double().mean(1)

    def choose(self) -> Iterator[dict[str, Any]]:
        """Loss of each worth of a prior on calibration text that the prior did not see."""
        for name, kind in (("griffin", tda.Griffin), ("tda", tda.TDA)):
            methods = [kind(sparsity=0.5, prior_tokens=tokens) for tokens in TOKENS]
            losses: dict[int, list[float]] = {tokens: [] for tokens in TOKENS}
            for prompt in PROMPTS:
                rows = texts(self.tokenizer, "calibration", KINDS, prompt + CONTINUATION, FITTED_ON)
                for tokens, method in zip(TOKENS, self.fitted(methods, rows), strict=True):
                    for text in KINDS:  # behind the documents that the prior is from
                        losses[tokens] += self.losses(method, prompt, text, "calibration", skip=FITTED_ON)
            for tokens, found in losses.items():
                yield {"model": self.name, "method": name, "prior_tokens": tokens, "delta_nll": sum(found) / len(found)}

    def rows(self, prior: dict[str, float], prompt: int) -> Iterator[dict[str, Any]]:
        """A row for each sparsity, method and source of its prior."""
        losses: dict[tuple[float, str, str], list[float]] = {}
        for kind, source in itertools.product(KINDS, SOURCES):
            rows = texts(self.tokenizer, "calibration", kind_of_text(source, kind), prompt + CONTINUATION, FITTED_ON)
            wanted = {
                (sparsity, name): method
                for sparsity in SPARSITIES
                for name, method in cases(prior, sparsity).items()
                if source == "all kinds" or name not in ("griffin", "tda")
            }
            for (sparsity, name), method in zip(wanted, self.fitted(list(wanted.values()), rows), strict=True):
                told = "–" if name in ("griffin", "tda") else source
                losses.setdefault((sparsity, name, told), []).extend(self.losses(method, prompt, kind))
        for (sparsity, name, source), found in losses.items():
            own = bootstrap(found)
            base = losses[sparsity, "tda" if name.startswith("tda") else "griffin", "–"]
            less = bootstrap([one - other for one, other in zip(found, base, strict=True)])
            yield {
                "model": self.name,
                "prompt_tokens": prompt,
                "sparsity": sparsity,
                "method": name,
                "prior": source,
                "documents": len(found),
                **dict(zip(("delta_nll", "low", "high"), (own.value, own.low, own.high), strict=True)),
                **dict(zip(("less", "less_low", "less_high"), (less.value, less.low, less.high), strict=True)),
            }


def table(found: pd.DataFrame) -> Iterator[str]:
    """Lines of a table in Markdown: a row for each prompt length and case, a column for each sparsity."""
    yield (
        "| model | prompt | method | prior | "
        + " | ".join(f"ΔNLL at {s:g}, and less the base" for s in SPARSITIES)
        + " |"
    )
    yield "|" + "---|" * (4 + len(SPARSITIES))
    for (model, prompt, method, prior), part in found.groupby(
        ["model", "prompt_tokens", "method", "prior"], sort=False
    ):
        cells = []
        for sparsity in SPARSITIES:
            (row,) = part[part.sparsity == sparsity].to_dict("records")
            less = "" if prior == "–" else f"; {row['less']:+.3f} [{row['less_low']:+.3f}, {row['less_high']:+.3f}]"
            cells.append(f"{row['delta_nll']:+.3f}{less}")
        yield f"| `{model}` | {prompt} | {method} | {prior} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, write records and table; models that are done stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=6, help="of each kind")
    parser.add_argument("--model", action="append", help="repeatable; else every reference model")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="prompt of")  # lengths between the calibrated ones are meant
    options.out.mkdir(parents=True, exist_ok=True)
    chosen, found = [], []
    for name in options.model or [PREFIX + name for name in shipped()]:
        bench = PriorStudy(name, options.documents)
        tried = pd.DataFrame(bench.choose())
        best = tried.loc[tried.groupby("method").delta_nll.idxmin()]
        prior = dict(zip(best.method, best.prior_tokens, strict=True))
        chosen.append(tried)
        for prompt in PROMPTS:
            found.append(pd.DataFrame(bench.rows(prior, prompt)))
            write_whole(options.out / "chosen.csv", pd.concat(chosen).to_csv(index=False, float_format="%.5f"))
            write_whole(options.out / "priors.csv", pd.concat(found).to_csv(index=False, float_format="%.5f"))
            write_whole(options.out / "priors.md", "".join(f"{line}\n" for line in table(pd.concat(found))))
            print(f"{name}, prompts of {prompt} tokens: done", flush=True)


if __name__ == "__main__":
    main()
