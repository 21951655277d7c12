"""The tables of the documents, filled from the committed records, so that no number in them is copied by hand.

A document holds a block for each table, whose lines are this script's:

    <!-- table: recall -->

    | …

    <!-- end -->

    python -m benchmarks.doc_tables           # writes them
    python -m benchmarks.doc_tables --check   # fails where one is stale

The numbers come from the records under benchmarks/records through what the report shows them with. Each has its 95%
interval, unless that is a point at three digits; a number has the decimals at which half of its
interval has two digits, or fewer.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.reference import ORDER, Quality, table
from tda.records import Record, merge
from tda.results import load, write_whole
from tda.statistics import Estimate, by_group, geometric, item_score
from tda.web.report.comparison import Comparison, settings
from tda.web.theme.formatting import MISSING, number, size

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"
PAGES = ("README.md", "docs/curve.md", "docs/priors.md", "docs/quality.md", "docs/reference-models.md",
         "docs/sweep.md")  # fmt: skip
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = {"griffin": "Griffin", "tda": "TDA", "cats": "CATS", "tt": "TT", "glass": "GLASS", "int8": "`int8`"}
PER_PROMPT = ("griffin", "tda")
"""Methods that select once: a per-token method repays nothing."""
WIDE, SMALL = "ref:wide", ("ref:swiglu", "ref:relu", "ref:geglu")
SLICED = (*SMALL, WIDE)

Rows = Sequence[Sequence[str]]
Table = Callable[[], tuple[Sequence[str], Rows]]
TABLES: dict[str, Table] = {}


def page_table(name: str) -> Callable[[Table], Table]:
    """Register what makes a table: its heads and rows."""

    def register(make: Table) -> Table:
        TABLES[name] = cache(make)
        return make

    return register


# Numbers as text.


def told(found: Estimate | None, *, signed: bool = False, at_most: int = 6) -> str:
    """Write an estimate with its interval, at the decimals at which half of the interval has two digits, or fewer."""
    if found is None:
        return MISSING
    if found.low is None or found.high is None or f"{found.low:.3g}" == f"{found.high:.3g}":
        return number(found.value, signed=signed)
    ends = [bound for bound in (found.low, found.high) if math.isfinite(bound)]
    reach = (max(ends) - min(ends)) / 2 if len(ends) == 2 else max(abs(found.value), 1.0)
    decimals = min(max(1 - math.floor(math.log10(reach)), 0), at_most)
    value, low, high = (_fixed(one, decimals, signed=signed) for one in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _fixed(value: float, decimals: int, *, signed: bool) -> str:
    if value == 0 or math.isinf(value):
        return number(value)
    rounded = Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)  # as decimals of a CSV are
    return f"{rounded:{'+' if signed else ''}f}"


def _of_row(row: "pd.Series[float]", value: str, low: str, high: str) -> Estimate:
    """An estimate that stands in a CSV."""
    lower, upper = (None if math.isnan(row[name]) else float(row[name]) for name in (low, high))
    return Estimate(float(row[value]), lower, upper, groups=int(row["documents"]))


def _only(found: pd.DataFrame, **wanted: object) -> "pd.Series[float]":
    """The one row of a CSV that has these values."""
    for name, value in wanted.items():
        found = found[found[name] == value]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {wanted}")
    return found.iloc[0]


# Records.


@cache
def _records(folder: str) -> tuple[Record, ...]:
    return tuple(merge(load(RECORDS / folder).records))


@cache
def _csv(name: str) -> pd.DataFrame:
    return pd.read_csv(RECORDS / name)


@cache
def _timed() -> dict[tuple[str, float | None], Comparison]:
    """The timed cases of the wide model."""
    (setting,) = (one for one in settings(_records("reference")) if one.model == WIDE and one.timed)
    return {(case.method, case.record.case.sparsity): case for case in setting.timed}


def _case(case: Comparison) -> dict[str, str]:
    """Cells of a timed case."""
    read = by_group(case.record.measurements["weight_bytes_per_token"]).values()
    resident = bool(case.record.flags["cache_resident"].raised)
    repaid = case.method in PER_PROMPT
    return {
        "": " ".join([TITLES[case.method], *([] if case.sparsity is None else [f"{case.record.case.sparsity:g}"])]),
        "weights read a token": size(geometric(list(read)).value) + ", fits the cache" * resident,
        "decode speed-up": told(case.speedup, at_most=2) + ", not trusted" * resident,
        "limit": told(case.estimate("roofline_speedup"), at_most=2),
        "efficiency": told(case.estimate("speedup_efficiency"), at_most=2),
        "ΔNLL (nats a token)": told(case.delta_nll, signed=True),
        "selection repaid after (tokens)": told(case.estimate("break_even_tokens"), at_most=1) if repaid else MISSING,
    }


def _cases(asked: Iterable[tuple[str, float | None]], *left_out: str) -> tuple[Sequence[str], Rows]:
    rows = [{head: cell for head, cell in _case(_timed()[one]).items() if head not in left_out} for one in asked]
    return list(rows[0]), [list(row.values()) for row in rows]


@page_table("axes")
def both_axes() -> tuple[Sequence[str], Rows]:
    """Speed and loss of the wide model, for the README."""
    asked = [("griffin", 0.5), ("tda", 0.5), ("cats", 0.75), ("tt", 0.75), ("int8", None)]
    return _cases(asked, "efficiency")


@page_table("curve")
def curve() -> tuple[Sequence[str], Rows]:
    """Speed and loss of the wide model at each sparsity."""
    asked = [(method, sparsity) for sparsity in (0.25, 0.5, 0.75) for method in ("griffin", "tda", "cats", "tt")]
    return _cases([*asked, ("int8", None)])


def _quality(model: str) -> Quality:
    small_real = model == "stories260K"
    records = list(_records("reference/stories260K" if small_real else "reference"))
    return Quality(records[0].case.model if small_real else model, records)


@page_table("order")
def order() -> tuple[Sequence[str], Rows]:
    """Which of two neighbours in the expected order loses more at 0.5."""
    pairs = list(pairwise(ORDER))
    rows = []
    for model in (WIDE, *SMALL, "stories260K"):
        quality = _quality(model)
        cells = [_sign(quality, *pair) if {*pair} <= quality.cases else MISSING for pair in pairs]
        rows.append([f"`{model}`", *cells])
    return ["", *(", ".join(pair) for pair in pairs)], rows


def _sign(quality: Quality, better: str, worse: str) -> str:
    found = quality.difference(worse, better, 0.5)
    assert found.low is not None
    assert found.high is not None
    return ">" if found.low > 0 else "<" if found.high < 0 else "="


# Recall.

RECALL = (
    *(("dense", 0.0), ("griffin", 0.5), ("tda", 0.5), ("static_mean", 0.5), ("magnitude", 0.5), ("random", 0.5)),
    *(("cats", 0.5), ("oracle", 0.5), ("griffin", 0.75), ("oracle", 0.75)),
)


@page_table("recall")
def recall() -> tuple[Sequence[str], Rows]:
    """Fraction of recall questions that are answered."""
    rows = []
    for method, sparsity in RECALL:
        cells = []
        for model in SMALL:
            case = [
                record
                for record in _records("reference")
                if (record.case.model, record.case.method, record.case.sparsity) == (model, method, sparsity)
                and record.case.control is None
            ]
            found = [value for record in case for value in record.samples("task_recall_accuracy")]
            cells.append(_shared(item_score(found, share=True)) if found else MISSING)
        rows.append([method if method == "dense" else f"{method} {sparsity:g}", *cells])
    return ["accuracy", *(f"`{model}`" for model in SMALL)], rows


def _shared(found: Estimate) -> str:
    """A fraction with two decimals."""
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


# What TDA leaves out.

LENGTHS = (1, 8, 32, 64, 128, 200, 256, 448)


@page_table("drift")
def drift() -> tuple[Sequence[str], Rows]:
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
def prior_drift() -> tuple[Sequence[str], Rows]:
    """What TDA leaves out over prompt lengths with the cuts of 128 tokens, with and without a prior."""
    cases = list(product(("ref:swiglu", "ref:relu"), (0.0, 64.0)))
    rows = []
    for tokens in LENGTHS:
        asked = [{"model": model, "tokens": tokens, "prior_tokens": prior} for model, prior in cases]
        rows.append([str(tokens), *(_left_out("priors/drift.csv", **one, thresholds="of 128 tokens") for one in asked)])
    return ["prompt tokens", *(f"`{model}`, n₀ {prior:g}" for model, prior in cases)], rows


def _left_out(name: str, model: Any, tokens: Any, **wanted: object) -> str:
    row = _only(_csv(name), model=model, sparsity=0.5, prompt_tokens=tokens, **wanted)
    return told(_of_row(row, "achieved_sparsity", "achieved_low", "achieved_high"), at_most=3)


# Priors.

OTHER_KINDS = "all other kinds"
PRIORS = (("griffin", "–"), ("griffin + prior", OTHER_KINDS), ("tda", "–"), ("tda + prior", OTHER_KINDS),
          ("glass", OTHER_KINDS), ("static_mean", OTHER_KINDS))  # fmt: skip


@page_table("priors")
def priors() -> tuple[Sequence[str], Rows]:
    """Loss at 0.5 with a prior from other kinds of text."""
    heads = ["Griffin", "Griffin, prior", "TDA", "TDA, prior", "GLASS", "`static_mean`"]
    return _of_priors(heads, PRIORS, ("delta_nll", "low", "high"))


@page_table("priors-less")
def priors_less() -> tuple[Sequence[str], Rows]:
    """That loss less the one of the same method without a prior."""
    heads = ["Griffin, prior", "TDA, prior", "GLASS less Griffin", "`static_mean` less Griffin"]
    compared = [one for one in PRIORS if one[1] == OTHER_KINDS]
    return _of_priors(heads, compared, ("less", "less_low", "less_high"))


def _of_priors(
    heads: Sequence[str], methods: Sequence[tuple[str, str]], names: tuple[str, str, str]
) -> tuple[Sequence[str], Rows]:
    found = _csv("priors/priors.csv")
    found = found[found.sparsity == 0.5]
    rows = []
    for model in (*SMALL, WIDE):
        for tokens in sorted(found[found.model == model].prompt_tokens.unique()):
            cells = [_only(found, model=model, prompt_tokens=tokens, method=one, prior=prior) for one, prior in methods]
            rows.append([f"`{model}`, {tokens}", *(told(_of_row(cell, *names), signed=True) for cell in cells)])
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


def _sliced(over: str) -> Table:
    """A table of the loss over dense in each slice; dense's own loss in the first row of a model."""

    def make() -> tuple[Sequence[str], Rows]:
        found = _csv("slices/slices.csv")
        found = found[found["over"] == over]
        rows = []
        for model in SLICED:
            own = found[found.model == model]
            methods = list(dict.fromkeys(own[own.value == SLICES[over][-1]].method))
            first = [_only(own, method=methods[0], value=value) for value in SLICES[over]]
            dense = [told(_of_row(row, "dense_nll", "dense_low", "dense_high")) for row in first]
            rows.append([f"`{model}`", "dense, NLL", *dense, *[MISSING] * (over in CHANGES)])
            for method in methods:
                cells = [_only(own, method=method, value=value) for value in SLICES[over]]
                shown = [told(_of_row(row, "delta_nll", "delta_low", "delta_high"), signed=True) for row in cells]
                if over in CHANGES:
                    row = _only(own, method=method, value=CHANGES[over])
                    shown.append(told(_of_row(row, "change_nll", "change_low", "change_high"), signed=True))
                rows.append(["", TITLES.get(method, f"`{method}`"), *shown])
        heads = [value.replace("_", " ") for value in SLICES[over]]
        return ["", "ΔNLL of", *heads, *([CHANGE_HEADS[over]] if over in CHANGES else [])], rows

    return make


for _over in SLICES:
    page_table(f"over-{_over}")(_sliced(_over))


@page_table("left-out")
def left_out() -> tuple[Sequence[str], Rows]:
    """What TDA leaves out in the slices where that is not what was asked."""
    found = _csv("slices/slices.csv")
    found = found[found.method == "tda"]
    columns = [(over, value) for over in ("length", "batch", "kind") for value in SLICES[over] if value != "recall"]
    rows = []
    for model in SLICED:
        shares = [_only(found, model=model, over=over, value=value)["achieved_sparsity"] for over, value in columns]
        rows.append([f"`{model}`", *(f"{one:.2f}" for one in shares)])
    words = [f"prompt {value}" if over == "length" else value.replace("_", " ") for over, value in columns]
    return ["", *words], rows


# Sentences.


@cache
def phrases() -> dict[str, list[str]]:
    """What the prose of a page must say, number for number."""
    wide, real = _quality(WIDE), _quality("stories260K")
    (setting,) = (one for one in settings(_records("reference")) if one.model == WIDE and one.timed)
    assert setting.baseline is not None
    assert setting.noise_floor is not None
    mbu, floor = told(setting.baseline.estimate("mbu"), at_most=2), f"{setting.noise_floor:.0%}"
    griffin = wide.difference("griffin", "dense", 0.5)
    half, small = (
        next(
            record.measurements["nll_nats"]
            for record in _records("reference")
            if (record.case.model, record.case.dtype, record.case.control) == (*found, None)
            and record.case.method == "dense"
        )
        for found in ((WIDE, "bfloat16"), ("ref:swiglu", "float32"))
    )
    times = [
        one.difference("random", "dense", 0.5).value / one.difference("griffin", "dense", 0.5).value
        for one in (wide, real)
    ]
    bound = f"Dense reads its weights at {mbu} of the stream bandwidth"
    return {
        "README.md": [bound, f"within the A/A floor of {floor} says nothing"],
        "docs/curve.md": [
            bound,
            f"within the A/A floor of {floor} says nothing",
            f"in bfloat16 reads 52.2 MB and loses {told(wide.dense_difference(half), signed=True)} nats",
            f"`ref:swiglu` reads 7.35 MB a token and loses {told(wide.dense_difference(small), signed=True)} nats",
            f"loses {told(wide.difference('cats', 'dense', 0.9), signed=True)}, TDA and Griffin at 0.5",
            f"beats it on `stories260K`**: {told(real.difference('tt', 'oracle', 0.5), signed=True)} at 0.5",
            f"random loses {times[0]:.0f} times as much as Griffin, on `stories260K` {times[1]:.2f} times",
            f"Griffin at 0.5 loses {told(real.difference('griffin', 'dense', 0.5), signed=True)} nats there and "
            f"{told(griffin, signed=True)} here",
        ],
    }


# Sweeps.


@page_table("sweep-cost")
def sweep_cost() -> tuple[Sequence[str], Rows]:
    """What a sweep on one machine costs beside a bench."""
    found = _csv("sweep/cost.csv")

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
def sweep_soak() -> tuple[Sequence[str], Rows]:
    """What random kills did to the records of sweeps."""
    found = _csv("sweep/soak.csv")
    heads = ["killed", "times", "records lost", "records doubled"]
    rows = [[str(row[name]) for name in ("killed", "times", "records_lost", "records_doubled")]
            for _, row in found.iterrows()]  # fmt: skip
    return heads, rows


# Pages.


def filled(text: str, page: str = "a page") -> str:
    """A page whose blocks hold what the records say.

    Raises
    ------
    ValueError
        If a block has no end or a table is unknown.
    """
    if text.count("<!-- table:") != len(BLOCK.findall(text)):
        raise ValueError(f"{page}: a block has no <!-- end -->, or the name of its table is malformed")

    def fill(block: re.Match[str]) -> str:
        begin, name, end = block.groups()
        if name not in TABLES:
            raise ValueError(f"{page}: no table is called {name!r}; there are {', '.join(TABLES)}")
        heads, rows = TABLES[name]()
        lines = table(list(heads), [f"| {' | '.join(row)} |" for row in rows])
        return f"{begin}\n{lines}\n{end}"

    return BLOCK.sub(fill, text)


def stale(root: Path = ROOT) -> list[str]:
    """What on the pages is not what the records say: of each page the first line of a table, and sentences."""
    found = []
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        wanted = filled(text, page)
        if wanted != text:
            lines = zip(text.splitlines(), wanted.splitlines(), strict=False)
            old, new = next((pair for pair in lines if pair[0] != pair[1]), ("", ""))
            found.append(f"{page} holds\n  {old}\nwhere the records say\n  {new}")
        prose = " ".join(text.split())
        found += [f"{page} must say\n  {phrase}" for phrase in phrases().get(page, []) if phrase not in prose]
    return found


def main() -> None:
    """Fill the tables, or fail where one is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    try:
        if options.check:
            told_stale = stale()
            if told_stale:
                how = "`python -m benchmarks.doc_tables` writes the tables; sentences are written by hand"
                raise SystemExit("\n".join([*told_stale, how]))
            return
        for page in PAGES:
            text = (ROOT / page).read_text(encoding="utf-8")
            if filled(text, page) != text:
                write_whole(ROOT / page, filled(text, page))
                print(f"{page}: written")
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
