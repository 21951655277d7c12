"""What follows from raw samples, against plain formulas over rounds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tda.cases import Case
from tda.derived import DERIVED, NO_DENSE, NO_ROUND, Missing, derive, efficiency_of, repaid
from tda.records import Commit, Measurement, Record
from tda.statistics import Estimate
from tests.test_statistics import DRAWS, MACHINE, bounds, covered

PREFILL = {"dense": [80.0, 82.0, 79.0, 85.0, 81.0, 80.0], "griffin": [81.5, 82.5, 80.5, 86.0, 83.5, 81.0]}
STEP = {"dense": [10.0, 10.4, 9.8, 10.9, 10.1, 10.0], "griffin": [6.0, 6.3, 6.1, 6.4, 6.0, 5.9]}
CHOSEN = [1.0, 1.2, 0.9, 1.1, 1.0, 1.3]
ROUNDS = range(1, 7)


def record(method: str, **changes: Sequence[float] | None) -> Record:
    """A case of six rounds, a sample a round; None leaves a measurement out, () leaves it empty."""
    values: dict[str, Any] = {
        "prefill_ms": PREFILL[method],
        "decode_ms": STEP[method],
        "weight_bytes_per_token": [4e8 if method == "dense" else 2e8] * 6,
        "bytes_per_token": [5e8 if method == "dense" else 2.5e8] * 6,
        "stream_gb_per_s": [50.0] * 6,
        "selection_ms": () if method == "dense" else CHOSEN,
        **changes,
    }
    return Record(
        case=Case(model="m", method=method, sparsity=0.0 if method == "dense" else 0.5, prompt_tokens=4, new_tokens=4),
        round=6,
        commit=Commit(),
        machine=MACHINE,
        status="ok",
        measurements={
            name: Measurement.of(name, given, list(ROUNDS)[: len(given)])
            if given
            else Measurement.absent(name, "nothing is chosen per prompt")
            for name, given in values.items()
            if given is not None
        },
        started="2026-01-01T00:00:00Z",
        seconds=1.0,
    )


DENSE, GRIFFIN = record("dense"), record("griffin")


def known(name: str, of: Record = GRIFFIN, dense: Record | None = DENSE) -> Estimate:
    found = derive(name, of, dense)
    assert isinstance(found, Estimate), found
    return found


def reason(name: str, of: Record = GRIFFIN, dense: Record | None = DENSE) -> str:
    found = derive(name, of, dense)
    assert isinstance(found, Missing), found
    return found.reason


def test_prefill_overhead_is_paired_and_may_be_negative() -> None:
    added = np.subtract(PREFILL["griffin"], PREFILL["dense"])
    found = known("prefill_overhead_ms")
    reach = stats.t.ppf(0.975, 5) * added.std(ddof=1) / math.sqrt(6)
    assert (found.value, *bounds(found)) == pytest.approx((added.mean(), added.mean() - reach, added.mean() + reach))
    assert known("prefill_overhead_ms", record("griffin", prefill_ms=[70.0] * 6)).value < 0
    assert "this dense run" in reason("prefill_overhead_ms", DENSE)


def test_speedup_efficiency_has_the_bounds_of_the_speed_up() -> None:
    logs = np.log(np.divide(STEP["dense"], STEP["griffin"]))
    reach = stats.t.ppf(0.975, 5) * logs.std(ddof=1) / math.sqrt(6)
    expected = [(math.exp(logs.mean() + by) - 1) / (2 - 1) for by in (0, -reach, reach)]
    found = known("speedup_efficiency")
    assert known("roofline_speedup") == Estimate(2.0, 2.0, 2.0, 6)
    assert [found.value, *bounds(found)] == pytest.approx(expected)
    assert efficiency_of(Estimate(1.5, None, None, 3), 3.0) == Estimate(0.25, None, None, 3)
    assert "no gain" in reason("speedup_efficiency", DENSE)


def test_mbu_is_of_the_bandwidth_of_the_round() -> None:
    shares = [2e8 / (step / 1000) / 50e9 for step in STEP["griffin"]]
    assert known("mbu").value == pytest.approx(stats.gmean(shares))


def test_break_even_is_what_is_spent_over_what_is_saved() -> None:
    spent = np.add(np.subtract(PREFILL["griffin"], PREFILL["dense"]), CHOSEN)
    saved = np.subtract(STEP["dense"], STEP["griffin"])
    found = known("break_even_tokens")
    assert found.value == pytest.approx(spent.mean() / saved.mean())
    for bound in bounds(found):  # where a t test of spent - q * saved is just significant
        left = spent - bound * saved
        assert abs(left.mean()) / (left.std(ddof=1) / math.sqrt(6)) == pytest.approx(stats.t.ppf(0.975, 5))
    per_token = record("griffin", selection_ms=())
    assert known("break_even_tokens", per_token).value == pytest.approx((spent - CHOSEN).mean() / saved.mean())


def test_break_even_is_never_negative() -> None:
    found = known("break_even_tokens", record("griffin", prefill_ms=[70.0] * 6))
    assert (found.value, *bounds(found)) == (0, 0, 0)
    unsure = known("break_even_tokens", record("griffin", prefill_ms=[75.0, 90.0, 79.0, 80.0, 88.0, 78.0]))
    assert unsure.low == 0
    assert unsure.high is not None
    assert unsure.high > unsure.value > 0


def test_what_may_never_be_repaid_has_no_upper_bound() -> None:
    found = repaid([1.0] * 6, [1.0, -1.5, 2.0, -0.5, 0.5, 0.1])
    assert isinstance(found, Estimate)
    assert (found.low, found.high) == (0.0, math.inf)
    assert (
        reason("break_even_tokens", record("griffin", decode_ms=[11.0] * 6)) == "decode is not faster than dense here"
    )


def test_few_rounds_give_no_interval() -> None:
    few = record("griffin", decode_ms=STEP["griffin"][:3])
    assert known("break_even_tokens", few).low is None
    assert known("speedup_efficiency", few).low is None
    assert known("break_even_tokens", few).groups == 3


def test_what_cannot_be_derived_says_why() -> None:
    for name in DERIVED:
        assert derive(name, GRIFFIN, None) == NO_DENSE
        absent = record("griffin", decode_ms=(), prefill_ms=(), bytes_per_token=())
        assert reason(name, absent) == "nothing is chosen per prompt", "the measurement's own reason"
    assert reason("roofline_speedup", record("griffin", bytes_per_token=None)) == "bytes_per_token was not recorded"
    assert reason("break_even_tokens", record("griffin", selection_ms=None)) == "selection_ms was not recorded"
    assert reason("break_even_tokens", DENSE).startswith("nothing is left out")
    apart = DENSE.model_copy(update={"measurements": {"prefill_ms": Measurement.of("prefill_ms", [80.0], [9])}})
    assert derive("prefill_overhead_ms", GRIFFIN, apart) == NO_ROUND


@pytest.mark.parametrize("rounds", [5, 7, 11])
def test_break_even_is_covered(rounds: int) -> None:
    """Medians of passes and steps of each round, a state of the machine common to what a round holds."""
    draw = np.random.default_rng(rounds)
    state = 1 + 0.02 * draw.normal(size=(DRAWS, rounds))
    spent = state * (1.5 + 0.3 * draw.normal(size=state.shape)) + 0.4
    saved = state * (4 + 0.15 * draw.normal(size=state.shape))
    found = [repaid(*pair) for pair in zip(spent.tolist(), saved.tolist(), strict=True)]
    assert 0.93 <= covered([one for one in found if isinstance(one, Estimate)], 1.9 / 4) <= 0.97
