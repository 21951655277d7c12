"""The records and CSVs that tables are made of, numbers as they stand there, and the list of tables."""

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import pandas as pd

from tda.records import Record, merge
from tda.results import load
from tda.statistics import Estimate
from tda.web.theme.formatting import MISSING, number

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "records"
TITLES = {"griffin": "Griffin", "tda": "TDA", "cats": "CATS", "tt": "TT", "glass": "GLASS", "int8": "`int8`"}
WIDE, SMALL = "ref:wide", ("ref:swiglu", "ref:relu", "ref:geglu")

TableRows = Sequence[Sequence[str]]
MakeTable = Callable[[], tuple[Sequence[str], TableRows]]
TABLES: dict[str, MakeTable] = {}


def page_table(name: str) -> Callable[[MakeTable], MakeTable]:
    """Register what makes a table: its heads and rows."""

    def register(make: MakeTable) -> MakeTable:
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


def estimate_of(row: "pd.Series[float]", value: str, low: str, high: str) -> Estimate:
    """An estimate that stands in a CSV."""
    lower, upper = (None if math.isnan(row[name]) else float(row[name]) for name in (low, high))
    return Estimate(float(row[value]), lower, upper, groups=int(row["documents"]))


def only_row(found: pd.DataFrame, **wanted: object) -> "pd.Series[float]":
    """The one row of a CSV that has these values."""
    for name, value in wanted.items():
        found = found[found[name] == value]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {wanted}")
    return found.iloc[0]


# Records.


@cache
def records_of(folder: str) -> tuple[Record, ...]:
    """Records of a folder, rounds joined."""
    return tuple(merge(load(RECORDS / folder).records))


@cache
def csv_of(name: str) -> pd.DataFrame:
    """A CSV beside them."""
    return pd.read_csv(RECORDS / name)
