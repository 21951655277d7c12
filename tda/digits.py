"""Numbers as text: the digits that they support, the same in terminal, page and documents."""

import math

from tda.statistics import Estimate

MISSING = "–"
"""What stands where a number is missing; never a zero."""
SMALLEST = 1e-6
"""Nothing that is measured here is known to less."""


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """Write a number with `digits` significant digits and without exponent, e.g. ``"1,230"`` or ``"+0.0041"``."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or math.isnan(value):
        return f"{value + 0.0:g}"
    if abs(value) < SMALLEST:
        return "<1e-6" if value > 0 else ">-1e-6"
    return _fixed(value, digits - 1 - _magnitude(float(f"{value:.{digits}g}")), signed)


def interval(estimate: Estimate, digits: int = 3, *, signed: bool = False, unit: str = "") -> str:
    """Write an estimate with its 95% interval, where it has one that shows at these digits.

    All three numbers end at the place that the width of the interval supports, two digits of it.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    if low is None or high is None:
        return number(value, digits, signed=signed) + unit
    if max(abs(value), abs(low), abs(high)) < SMALLEST:
        return ("0" if low <= 0 <= high else number(value)) + unit
    if not math.isfinite(high - low) or math.isnan(value):
        text, *bounds = (number(part, digits, signed=signed) for part in (value, low, high))
    else:
        text, *bounds = (_fixed(part, _places(value, low, high, digits), signed) for part in (value, low, high))
    return text + unit + (f" [{', '.join(bounds)}]" if bounds != [text, text] else "")


def _places(value: float, low: float, high: float, digits: int) -> int:
    """Decimals at which two digits of the interval's width stand, and no more than `digits` of the value."""
    of_value = digits - 1 - _magnitude(max(abs(value), high - low))
    of_width = 1 - _magnitude(high - low) if high > low else of_value
    return min(of_value, of_width, -_magnitude(SMALLEST))


def _fixed(value: float, places: int, signed: bool) -> str:
    """Round to a decimal place, one left of the point where it is negative; what becomes zero has no sign."""
    rounded = round(value, places)
    return f"{rounded:{'+' if signed else ''},.{max(places, 0)}f}" if rounded else "0"


def _magnitude(value: float) -> int:
    return int(f"{value:e}".split("e")[1])
