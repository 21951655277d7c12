"""Tables of studies whose results stand in CSVs: drift, priors, slices, sweeps."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from tda.web.theme.formatting import MISSING
from tools.doc_tables.source import (
    SMALL,
    TITLES,
    WIDE,
    MakeTable,
    TableRows,
    csv_of,
    estimate_of,
    only_row,
    page_table,
    told,
)

SLICED = (*SMALL, WIDE)


# What TDA leaves out.

LENGTHS = (1, 8, 32, 64, 128, 200, 256, 448)


@page_table("drift")
def drift() -> tuple[Sequence[str], TableRows]:
    """What TDA leaves out over prompt lengths, with its cuts per length and with those of one length."""
    cases = list(product(("built-in", "shakespeare.txt"), ("per length", "of 128 tokens")))
    heads = [f"{text.removesuffix('.txt')} text, cuts {kind}" for text, kind in cases]
    rows = [
        [
            str(tokens),
            *(_left_out("drift.csv", "ref:swiglu", tokens, text=text, thresholds=kind) for text, kind in cases),
        ]
        for tokens in LENGTHS
    ]
    return ["prompt tokens", *heads], rows


@page_table("prior-drift")
def prior_drift() -> tuple[Sequence[str], TableRows]:
    """What TDA leaves out over prompt lengths with the cuts of 128 tokens, with and without a prior."""
    cases = list(product(("ref:swiglu", "ref:relu"), (0.0, 64.0)))
    rows = []
    for tokens in LENGTHS:
        asked = [{"model": model, "tokens": tokens, "prior_tokens": prior} for model, prior in cases]
        rows.append([str(tokens), *(_left_out("priors/drift.csv", **one, thresholds="of 128 tokens") for one in asked)])
    return ["prompt tokens", *(f"`{model}`, n₀ {prior:g}" for model, prior in cases)], rows


def _left_out(name: str, model: Any, tokens: Any, **wanted: object) -> str:
    row = only_row(csv_of(name), model=model, sparsity=0.5, prompt_tokens=tokens, **wanted)
    return told(estimate_of(row, "achieved_sparsity", "achieved_low", "achieved_high"), at_most=3)


# Priors.

OTHER_KINDS = "all other kinds"
PRIORS = (("griffin", "–"), ("griffin + prior", OTHER_KINDS), ("tda", "–"), ("tda + prior", OTHER_KINDS),
          ("glass", OTHER_KINDS), ("static_mean", OTHER_KINDS))  # fmt: skip


@page_table("priors")
def priors() -> tuple[Sequence[str], TableRows]:
    """Loss at 0.5 with a prior from other kinds of text."""
    heads = ["Griffin", "Griffin, prior", "TDA", "TDA, prior", "GLASS", "`static_mean`"]
    return _of_priors(heads, PRIORS, ("delta_nll", "low", "high"))


@page_table("priors-less")
def priors_less() -> tuple[Sequence[str], TableRows]:
    """That loss less the one of the same method without a prior."""
    heads = ["Griffin, prior", "TDA, prior", "GLASS less Griffin", "`static_mean` less Griffin"]
    compared = [one for one in PRIORS if one[1] == OTHER_KINDS]
    return _of_priors(heads, compared, ("less", "less_low", "less_high"))


def _of_priors(
    heads: Sequence[str], methods: Sequence[tuple[str, str]], names: tuple[str, str, str]
) -> tuple[Sequence[str], TableRows]:
    found = csv_of("priors/priors.csv")
    found = found[found.sparsity == 0.5]
    rows = []
    for model in (*SMALL, WIDE):
        for tokens in sorted(found[found.model == model].prompt_tokens.unique()):
            cells = [
                only_row(found, model=model, prompt_tokens=tokens, method=one, prior=prior) for one, prior in methods
            ]
            rows.append([f"`{model}`, {tokens}", *(told(estimate_of(cell, *names), signed=True) for cell in cells)])
    return ["model, prompt tokens", *heads], rows


# Slices.

SLICES: dict[str, tuple[str, ...]] = {
    "length": ("16", "64", "256"),
    "position": ("2-4", "5-16", "17-64", "65-128"),
    "batch": ("per_row", "shared by 2", "shared by 4", "shared by 8"),
    "kind": ("prose", "code-like", "reasoning-like", "recall"),
}
CHANGES = {"length": "16", "position": "65-128", "batch": "shared by 8"}
"""The slice whose difference to the base stands in the last column."""
CHANGE_HEADS = {"length": "16 less 256", "position": "65-128 less 2-4", "batch": "shared by 8 less per row"}


def _sliced(over: str) -> MakeTable:
    """A table of the loss over dense in each slice; dense's own loss in the first row of a model."""

    def make() -> tuple[Sequence[str], TableRows]:
        found = csv_of("slices/slices.csv")
        found = found[found["over"] == over]
        rows = []
        for model in SLICED:
            own = found[found.model == model]
            methods = list(dict.fromkeys(own[own.value == SLICES[over][-1]].method))
            first = [only_row(own, method=methods[0], value=value) for value in SLICES[over]]
            dense = [told(estimate_of(row, "dense_nll", "dense_low", "dense_high")) for row in first]
            rows.append([f"`{model}`", "dense, NLL", *dense, *[MISSING] * (over in CHANGES)])
            for method in methods:
                cells = [only_row(own, method=method, value=value) for value in SLICES[over]]
                shown = [told(estimate_of(row, "delta_nll", "delta_low", "delta_high"), signed=True) for row in cells]
                if over in CHANGES:
                    row = only_row(own, method=method, value=CHANGES[over])
                    shown.append(told(estimate_of(row, "change_nll", "change_low", "change_high"), signed=True))
                rows.append(["", TITLES.get(method, f"`{method}`"), *shown])
        heads = [value.replace("_", " ") for value in SLICES[over]]
        return ["", "ΔNLL of", *heads, *([CHANGE_HEADS[over]] if over in CHANGES else [])], rows

    return make


for _over in SLICES:
    page_table(f"over-{_over}")(_sliced(_over))


@page_table("left-out")
def left_out() -> tuple[Sequence[str], TableRows]:
    """What TDA leaves out in the slices where that is not what was asked."""
    found = csv_of("slices/slices.csv")
    found = found[found.method == "tda"]
    columns = [(over, value) for over in ("length", "batch", "kind") for value in SLICES[over] if value != "recall"]
    rows = []
    for model in SLICED:
        shares = [only_row(found, model=model, over=over, value=value)["achieved_sparsity"] for over, value in columns]
        rows.append([f"`{model}`", *(f"{one:.2f}" for one in shares)])
    words = [f"prompt {value}" if over == "length" else value.replace("_", " ") for over, value in columns]
    return ["", *words], rows


# Sweeps.


@page_table("sweep-cost")
def sweep_cost() -> tuple[Sequence[str], TableRows]:
    """What a sweep on one machine costs beside a bench."""
    found = csv_of("sweep/cost.csv")

    def row(what: str, name: str, form: str, scale: float = 1.0) -> list[str]:
        values = found[name] * scale
        low, middle, high = (f"{value:{form}}" for value in (values.min(), values.median(), values.max()))
        return [what, f"{middle} ({low} to {high})"]

    rows = [
        row("`tda bench`: seconds from the command to the first record", "bench_first_record_s", ".1f"),
        row("`tda sweep`, its own Ray started too: the same", "sweep_first_record_s", ".1f"),
        row("`tda sweep` beside `tda bench`: ms more for each cell", "overhead_ms_per_cell", ".1f"),
        row(
            f"two workers, four equal groups of quality alone ({found.group_s.median():.0f} s each): idle (%)",
            "idle_share",
            ".1f",
            100,
        ),
    ]
    return [f"{len(found)} runs on {found.cpu[0]}, {found.cores[0]} cores", "median (lowest to highest)"], rows


@page_table("sweep-soak")
def sweep_soak() -> tuple[Sequence[str], TableRows]:
    """What random kills did to the records of sweeps."""
    found = csv_of("sweep/soak.csv")
    heads = ["killed", "times", "records lost", "records doubled"]
    rows = [[str(row[name]) for name in ("killed", "times", "records_lost", "records_doubled")]
            for _, row in found.iterrows()]  # fmt: skip
    return heads, rows
