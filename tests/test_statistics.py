"""Estimates from samples, against plain loops and known distributions."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda.records import Case, Commit, Machine, Measurement, Record
from tda.statistics import (
    MIN_GROUPS,
    RESAMPLES,
    bootstrap,
    by_group,
    is_baseline,
    mean,
    median,
    noise_floor,
    paired_difference,
    paired_ratio,
    speedup,
)

MACHINE = Machine(
    cpu="x", cores=2, threads=2, memory_bytes=1, python="3", torch="2", transformers="5", tda="0", system="Linux"
)


def times(samples: list[float], groups: list[int] | None = None) -> Measurement:
    return Measurement.of("decode_ms", samples, groups or range(len(samples)))


def record(measurement: Measurement, method: str = "dense", control: bool = False) -> Record:
    return Record(
        case=Case(model="m", method=method, prompt_tokens=4, new_tokens=4),
        round=0,
        control=control,
        commit=Commit(),
        machine=MACHINE,
        status="ok",
        measurements={"decode_ms": measurement},
        started="2026-01-01T00:00:00Z",
        seconds=1.0,
    )


@pytest.mark.parametrize(("reduce", "plain"), [(median, statistics.median), (mean, statistics.fmean)])
def test_bootstrap_equals_a_plain_loop(reduce: object, plain: object) -> None:
    values = [1.0, 1.3, 0.7, 5.0, 1.1, 0.9, 1.2]
    found = bootstrap(values, reduce, seed=3)
    drawn = np.random.default_rng(3).integers(0, len(values), size=(RESAMPLES, len(values)))
    resampled = sorted(plain([values[place] for place in row]) for row in drawn)

    def percentile(share: float) -> float:
        place = share * (len(resampled) - 1)
        low = math.floor(place)
        return resampled[low] + (place - low) * (resampled[low + 1] - resampled[low])

    assert found.value == pytest.approx(plain(values))
    assert found.low == pytest.approx(percentile(0.025))
    assert found.high == pytest.approx(percentile(0.975))
    assert found.groups == len(values)


@pytest.mark.parametrize("reduce", [median, mean])
def test_intervals_cover_the_truth_about_as_often_as_they_say(reduce: object) -> None:
    """200 experiments of 15 groups around 10: a 95% interval covers it in most of them, and not always."""
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        found = bootstrap(generator.normal(10, 1, size=15).tolist(), reduce, seed=number)
        covered += found.low <= 10 <= found.high
    assert 0.85 <= covered / 200 < 1.0


def test_few_groups_give_no_interval() -> None:
    for count in range(1, MIN_GROUPS):
        found = bootstrap([1.0] * count)
        assert (found.value, found.low, found.high, found.groups) == (1.0, None, None, count)
        assert str(found) == "1"
    assert str(bootstrap([1.0] * MIN_GROUPS)) == "1 [1, 1]"
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


@given(st.lists(st.floats(-1e6, 1e6), min_size=MIN_GROUPS, max_size=20))
def test_interval_lies_within_the_values(values: list[float]) -> None:
    for reduce in (median, mean):
        found = bootstrap(values, reduce)
        slack = 1e-9 * max(map(abs, values))
        assert min(values) - slack <= found.low <= found.high <= max(values) + slack
        assert bootstrap(values, reduce) == found


def test_groups_are_resampled_not_samples() -> None:
    """A hundred repeats of one document are no hundred documents."""
    many = Measurement.of("nll_nats", [1.0] * 100 + [2.0] * 100, [0] * 100 + [1] * 100)
    assert by_group(many) == {0: 1.0, 1: 2.0}
    found = paired_difference(many, Measurement.of("nll_nats", [0.5, 0.5], [0, 1]))
    assert found.groups == 2
    assert found.low is None
    assert found.value == pytest.approx(1.0)


def test_ratio_is_the_median_of_paired_ratios() -> None:
    """Rounds of a slow and a fast machine state: the pairs agree though the medians do not."""
    slow_then_fast = times([10, 20, 40, 80, 160, 320])
    halved = times([5, 10, 20, 40, 80, 160])
    assert paired_ratio(slow_then_fast, halved) == bootstrap([2.0] * 6)
    shuffled = Measurement.of("decode_ms", [160, 5, 80, 10, 40, 20], [5, 0, 4, 1, 3, 2])
    assert paired_ratio(slow_then_fast, shuffled).value == 2.0
    within = Measurement.of("decode_ms", [1, 100, 3, 1, 100, 3], [0, 0, 0, 1, 1, 1])
    assert paired_ratio(within, times([1.0, 1.0])).value == 3.0


def test_only_common_groups_count() -> None:
    one, other = times([1.0, 2.0, 3.0], [0, 1, 7]), times([2.0, 5.0], [1, 9])
    assert paired_ratio(one, other).value == 1.0
    assert paired_ratio(one, other).groups == 1
    assert paired_ratio(one, times([1.0], [3])) is None
    assert paired_difference(one, times([1.0], [3])) is None
    absent = Measurement.absent("decode_ms", "no such thing")
    assert paired_ratio(one, absent) is None
    assert paired_difference(absent, one) is None


def test_speedup_is_dense_over_sparse() -> None:
    dense, sparse = record(times([2.0] * 6)), record(times([1.0] * 6), "griffin")
    assert speedup(sparse, dense).value == 2.0
    assert speedup(dense, sparse).value == 0.5
    assert speedup(sparse, record(Measurement.absent("decode_ms", "masked"))) is None
    assert speedup(sparse, dense, "ttft_ms") is None


def test_noise_floor_bounds_the_interval_of_two_equal_runs() -> None:
    dense = record(times([1.0] * 8))
    control = record(times([1 / 0.98, 1 / 0.99, 1.0, 1.0, 1 / 1.01, 1 / 1.04, 1 / 1.05, 1.0]), control=True)
    ratio = speedup(control, dense)
    floor = noise_floor(control, dense)
    assert floor == max(abs(ratio.low - 1), abs(ratio.high - 1))
    assert 0 < floor <= 0.05
    assert noise_floor(dense, dense) == 0
    few = record(times([1.0] * 4))
    assert noise_floor(few, dense) is None
    assert noise_floor(record(Measurement.absent("decode_ms", "x")), dense) is None


def test_baseline() -> None:
    assert is_baseline(record(times([1.0])))
    assert not is_baseline(record(times([1.0]), control=True))
    assert not is_baseline(record(times([1.0]), "griffin"))
