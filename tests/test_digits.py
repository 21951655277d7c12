"""Numbers as text: as many digits as are known, never an exponent."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda.digits import SMALLEST, interval, number
from tda.statistics import Estimate

VALUES = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        ((0.191, 0.0433, 0.377), "+0.19 [+0.04, +0.38]"),
        ((1.7567, 1.7012, 1.8149), "+1.76 [+1.70, +1.81]"),
        ((-2.78e-9, -6e-9, 1e-9), "0"),
        ((3e-9, 1e-9, 5e-9), "<1e-6"),
        ((0.0003, -0.02, 0.02), "0 [-0.020, +0.020]"),
        ((12345.0, 8800.0, 15800.0), "+12,300 [+8,800, +15,800]"),
        ((50.0, 0.0, math.inf), "+50.0 [0, ∞]"),
        ((-2.78e-9, None, None), ">-1e-6"),
    ],
)
def test_an_interval_ends_where_its_width_does(estimate: tuple[float, float, float], text: str) -> None:
    assert interval(Estimate(*estimate, 7), signed=True) == text


@given(VALUES, st.floats(0, 1e9), st.floats(0, 1e9))
def test_no_number_pretends_to_more_than_is_known(value: float, below: float, above: float) -> None:
    estimate = Estimate(value, value - below, value + above, 7)
    text = interval(estimate)
    shown = [float(part.replace(",", "")) for part in re.findall(r"-?[\d,]*\.?\d+(?!e)", text.replace("1e-6", ""))]
    assert "e+" not in text
    assert not re.search(r"-0(\.0*)?(?![.\d])", text), "zero has no sign"
    assert all(part == 0 or abs(part) >= SMALLEST / 2 for part in shown)
    width = below + above
    if shown and width > 0:
        step = max(width, abs(value) * 1e-2, SMALLEST)
        assert abs(shown[0] - value) <= step


@given(VALUES)
def test_a_number_is_written_within_its_digits(value: float) -> None:
    text = number(value)
    assert "e" not in text.replace("1e-6", "")
    if abs(value) >= SMALLEST:
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.005)
