"""Numbers as text, the same in figures, table and sentences."""

import math

from tda.statistics import Estimate

MISSING = "–"
"""What stands where a number is missing; never a zero."""


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """Write a number with `digits` significant digits and without exponent, e.g. ``"1,230"`` or ``"+0.0041"``."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or math.isnan(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits}g}")
    decimals = max(digits - 1 - _magnitude(rounded), 0)
    return f"{rounded:{'+' if signed else ''},.{decimals}f}"


def _magnitude(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


def interval(estimate: Estimate, digits: int = 3, *, signed: bool = False, unit: str = "") -> str:
    """Write an estimate with its 95% interval, where it has one that shows at these digits."""
    text = number(estimate.value, digits, signed=signed)
    if estimate.low is None or estimate.high is None:
        return text + unit
    low, high = (number(bound, digits, signed=signed) for bound in (estimate.low, estimate.high))
    return text + unit + (f" [{low}, {high}]" if (low, high) != (text, text) else "")


def share(value: float) -> str:
    """Write a share as it was asked, e.g. ``"0.5"`` or ``"0.125"``."""
    return f"{value:.3g}"


def size(count: float) -> str:
    """Write bytes in decimal units, e.g. ``"144 MB"``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{number(count)} B"


def shortened(words: str, letters: int) -> str:
    """Cut a name that would not fit, and mark the cut."""
    return words if len(words) <= letters else f"{words[: letters - 1]}…"


def listed(words: list[str]) -> str:
    """Join words as in a sentence: ``"a, b and c"``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
