"""Tables and sentences of the reference models: speed and loss, order of methods, recall."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise

from experiments.reference import ORDER, ReferenceQuality
from tda.statistics import Estimate, by_group, geometric, item_score
from tda.web.report.comparison import ComparedCase
from tda.web.report.setting import settings
from tda.web.theme.formatting import MISSING, size
from tools.doc_tables.source import SMALL, TITLES, WIDE, TableRows, page_table, records_of, told

PER_PROMPT = ("griffin", "tda")
"""Methods that select once: a per-token method repays nothing."""


@cache
def _timed() -> dict[tuple[str, float | None], ComparedCase]:
    """The timed cases of the wide model."""
    (setting,) = (one for one in settings(records_of("reference")) if one.model == WIDE and one.timed)
    return {(case.method, case.record.case.sparsity): case for case in setting.timed}


def _case(case: ComparedCase) -> dict[str, str]:
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


def _cases(asked: Iterable[tuple[str, float | None]], *left_out: str) -> tuple[Sequence[str], TableRows]:
    rows = [{head: cell for head, cell in _case(_timed()[one]).items() if head not in left_out} for one in asked]
    return list(rows[0]), [list(row.values()) for row in rows]


@page_table("axes")
def both_axes() -> tuple[Sequence[str], TableRows]:
    """Speed and loss of the wide model, for the README."""
    asked = [("griffin", 0.5), ("tda", 0.5), ("cats", 0.75), ("tt", 0.75), ("int8", None)]
    return _cases(asked, "efficiency")


@page_table("curve")
def curve() -> tuple[Sequence[str], TableRows]:
    """Speed and loss of the wide model at each sparsity."""
    asked = [(method, sparsity) for sparsity in (0.25, 0.5, 0.75) for method in ("griffin", "tda", "cats", "tt")]
    return _cases([*asked, ("int8", None)])


def _quality(model: str) -> ReferenceQuality:
    small_real = model == "stories260K"
    records = list(records_of("reference/stories260K" if small_real else "reference"))
    return ReferenceQuality(records[0].case.model if small_real else model, records)


@page_table("order")
def order() -> tuple[Sequence[str], TableRows]:
    """Which of two neighbours in the expected order loses more at 0.5."""
    pairs = list(pairwise(ORDER))
    rows = []
    for model in (WIDE, *SMALL, "stories260K"):
        quality = _quality(model)
        cells = [_sign(quality, *pair) if {*pair} <= quality.cases else MISSING for pair in pairs]
        rows.append([f"`{model}`", *cells])
    return ["", *(", ".join(pair) for pair in pairs)], rows


def _sign(quality: ReferenceQuality, better: str, worse: str) -> str:
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
def recall() -> tuple[Sequence[str], TableRows]:
    """Fraction of recall questions that are answered."""
    rows = []
    for method, sparsity in RECALL:
        cells = []
        for model in SMALL:
            case = [
                record
                for record in records_of("reference")
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


# Sentences.


@cache
def phrases() -> dict[str, list[str]]:
    """What the prose of a page must say, number for number."""
    wide, real = _quality(WIDE), _quality("stories260K")
    (setting,) = (one for one in settings(records_of("reference")) if one.model == WIDE and one.timed)
    assert setting.baseline is not None
    assert setting.noise_floor is not None
    mbu, floor = told(setting.baseline.estimate("mbu"), at_most=2), f"{setting.noise_floor:.0%}"
    griffin = wide.difference("griffin", "dense", 0.5)
    half, small = (
        next(
            record.measurements["nll_nats"]
            for record in records_of("reference")
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
        "docs/results/curve.md": [
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
