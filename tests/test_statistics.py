"""Estimates from samples, against plain formulas and by how often they cover a known truth."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tda.cases import Case, Control
from tda.records import Commit, Machine, Measurement, Record
from tda.statistics import (
    MIN_GROUPS,
    RESAMPLES,
    Estimate,
    arithmetic,
    bootstrap,
    by_group,
    fieller,
    floor,
    geometric,
    is_baseline,
    noise_floor,
    paired_difference,
    paired_ratio,
    perplexity,
    speedup,
    typical,
    unpaired_ratio,
)

MACHINE = Machine(
    cpu="x", cores=2, threads=2, memory_bytes=1, python="3", torch="2", transformers="5", tda="0", system="Linux"
)
VALUES = [1.0, 1.3, 0.7, 5.0, 1.1, 0.9, 1.2]


def times(samples: Sequence[float], groups: Sequence[int] | None = None) -> Measurement:
    return Measurement.of("decode_ms", samples, groups or range(len(samples)))


def record(measurement: Measurement, method: str = "dense", control: Control | None = None) -> Record:
    return Record(
        case=Case(model="m", method=method, control=control, prompt_tokens=4, new_tokens=4),
        round=0,
        commit=Commit(),
        machine=MACHINE,
        status="ok",
        measurements={"decode_ms": measurement},
        started="2026-01-01T00:00:00Z",
        seconds=1.0,
    )


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


# Against plain formulas.


def test_arithmetic_is_the_t_interval() -> None:
    found = arithmetic(VALUES)
    reach = stats.t.ppf(0.975, 6) * statistics.stdev(VALUES) / math.sqrt(7)
    middle = statistics.fmean(VALUES)
    assert (found.value, *bounds(found)) == pytest.approx((middle, middle - reach, middle + reach))
    assert arithmetic([-1.0, 0.0, 1.0, -2.0, 2.0]).value == 0


def test_geometric_is_the_t_interval_of_logarithms() -> None:
    found = geometric(VALUES)
    logs = [math.log(value) for value in VALUES]
    reach = stats.t.ppf(0.975, 6) * statistics.stdev(logs) / math.sqrt(7)
    middle = math.prod(VALUES) ** (1 / 7)
    assert (found.value, *bounds(found)) == pytest.approx((middle, middle / math.exp(reach), middle * math.exp(reach)))


def test_the_inverse_of_a_ratio_has_the_inverse_bounds() -> None:
    found, inverse = geometric(VALUES), geometric([1 / value for value in VALUES])
    assert (inverse.value, *bounds(inverse)) == pytest.approx((1 / found.value, *(1 / b for b in bounds(found)[::-1])))


@pytest.mark.parametrize("estimate", [arithmetic, geometric, bootstrap])
def test_equal_values_are_a_point(estimate: Callable[..., Estimate]) -> None:
    found = estimate([1.1] * 7)
    assert (found.value, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1), abs=1e-15)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_geometric_mean_needs_positive_values(wrong: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        geometric([1.0, wrong])


def test_what_is_typical_is_geometric_where_it_can_be() -> None:
    assert typical([1.0, 4.0]).value == pytest.approx(2.0)
    assert typical([0.0, 4.0]).value == 2.0


def test_bootstrap_equals_a_plain_loop() -> None:
    found = bootstrap(VALUES, seed=3)
    drawn = np.random.default_rng(3).integers(0, len(VALUES), size=(RESAMPLES, len(VALUES)))
    resampled = sorted(statistics.fmean([VALUES[place] for place in row]) for row in drawn)

    def percentile(share: float) -> float:
        place = share * (len(resampled) - 1)
        low = math.floor(place)
        return resampled[low] + (place - low) * (resampled[low + 1] - resampled[low])

    assert (found.value, *bounds(found)) == pytest.approx(
        (statistics.fmean(VALUES), percentile(0.025), percentile(0.975))
    )
    assert found.groups == len(VALUES)
    logs = bootstrap([math.log(value) for value in VALUES])
    shown = perplexity(VALUES)
    assert (shown.value, *bounds(shown)) == pytest.approx(tuple(map(math.exp, (logs.value, *bounds(logs)))))


@pytest.mark.parametrize("estimate", [arithmetic, geometric, bootstrap])
def test_few_groups_give_no_interval(estimate: Callable[..., Estimate]) -> None:
    for count in range(1, MIN_GROUPS):
        found = estimate([1.0] * count)
        assert (found.value, found.low, found.high, found.groups) == (1.0, None, None, count)
        assert str(found) == "1"
    assert str(estimate([1.0] * MIN_GROUPS)) == "1 [1, 1]"
    with pytest.raises(ValueError, match="no values"):
        estimate([])


@given(st.lists(st.floats(-1e6, 1e6), min_size=MIN_GROUPS, max_size=20))
def test_a_bootstrap_lies_within_the_values(values: list[float]) -> None:
    found = bootstrap(values)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= bounds(found)[0] <= bounds(found)[1] <= max(values) + slack
    assert bootstrap(values) == found


def quadratic(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Where ``above - q * below`` is just told from zero, found by trying: signs of the t statistic's excess."""
    limit = stats.t.ppf(0.975, len(above) - 1)

    def excess(q: float) -> float:
        left = [a - q * b for a, b in zip(above, below, strict=True)]
        return abs(statistics.fmean(left)) / (statistics.stdev(left) / math.sqrt(len(left))) - limit

    grid = np.linspace(-2, 4, 4001)
    found = []
    for one, other in itertools.pairwise(grid):
        low, high = float(one), float(other)
        if excess(low) * excess(high) < 0:
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if excess(low) * excess(middle) < 0 else (middle, high)
            found.append(low)
    return found


def test_fieller_bounds_are_where_a_t_test_ends() -> None:
    above, below = [3.0, 2.5, 3.4, 2.9, 3.3, 2.2], [4.0, 3.0, 3.9, 4.4, 3.6, 3.1]
    found = fieller(above, below)
    assert found.value == pytest.approx(sum(above) / sum(below))
    assert list(bounds(found)) == pytest.approx(quadratic(above, below))


def test_fieller_has_no_end_where_what_it_divides_by_may_be_zero() -> None:
    found = fieller([1.0, 1.2, 0.9, 1.1, 1.0], [1.0, -1.5, 2.0, -0.5, 0.5])
    assert bounds(found) == (-math.inf, math.inf)
    assert fieller([1.0, 2.0], [1.0, 2.0]) == Estimate(1.0, None, None, 2)
    with pytest.raises(ValueError, match="zero"):
        fieller([1.0, 2.0], [1.0, -1.0])


def test_an_unpaired_ratio_is_welch_on_logarithms() -> None:
    new, old = [2.0, 2.2, 1.9, 2.4, 2.1, 2.0], [1.0, 1.3, 0.9, 1.1, 1.6]
    found = unpaired_ratio(new, old)
    test = stats.ttest_ind(np.log(new), np.log(old), equal_var=False)
    interval = test.confidence_interval(0.95)
    assert bounds(found) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.value == pytest.approx(math.exp(np.log(new).mean() - np.log(old).mean()))
    assert unpaired_ratio([2.0] * 5, [1.0] * 5) == Estimate(2.0, 2.0, 2.0, 5)
    assert unpaired_ratio([2.0], [1.0] * 9) == Estimate(2.0, None, None, 1)


# How often they cover the truth.

DRAWS = 3000
ROUNDS = (5, 6, 7, 8, 11, 15)


def covered(found: Sequence[Estimate], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in map(bounds, found)]))


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("noise", ["gaussian", "t3"])
def test_a_ratio_is_covered_at_any_number_of_rounds(rounds: int, noise: str) -> None:
    """The percentile bootstrap of the median, used before, covered 0.875 at 7 rounds, the default."""
    draw = np.random.default_rng(rounds)
    size = (DRAWS, rounds)
    drawn = draw.normal(size=size) if noise == "gaussian" else draw.standard_t(3, size=size)
    ratios = 1.4 * np.exp(0.03 * drawn)
    assert 0.93 <= covered([geometric(row) for row in ratios.tolist()], 1.4) <= (0.97 if noise == "gaussian" else 0.98)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fieller_covers_the_ratio_of_means(rounds: int) -> None:
    draw = np.random.default_rng(rounds)
    common = draw.normal(size=(DRAWS, rounds))
    spent = 8 + common + 2 * draw.normal(size=common.shape)
    saved = 5 + 0.5 * common + draw.normal(size=common.shape)
    found = [fieller(*pair) for pair in zip(spent.tolist(), saved.tolist(), strict=True)]
    assert 0.93 <= covered(found, 8 / 5) <= 0.97


def test_fieller_covers_what_is_hard_to_tell_from_zero() -> None:
    draw = np.random.default_rng(0)
    spent, saved = 8 + 2 * draw.normal(size=(DRAWS, 7)), 0.5 + draw.normal(size=(DRAWS, 7))
    assert covered([fieller(*pair) for pair in zip(spent.tolist(), saved.tolist(), strict=True)], 16.0) >= 0.94


@pytest.mark.parametrize("rounds", [5, 7, 11])
def test_unlike_processes_have_a_covered_ratio(rounds: int) -> None:
    draw = np.random.default_rng(rounds)
    new, old = 1.1 * np.exp(0.05 * draw.normal(size=(DRAWS, rounds))), np.exp(0.02 * draw.normal(size=(DRAWS, 9)))
    found = [unpaired_ratio(*pair) for pair in zip(new.tolist(), old.tolist(), strict=True)]
    assert 0.93 <= covered(found, 1.1) <= 0.97


# Groups.


def test_groups_count_and_not_samples() -> None:
    """A hundred repeats of one document are no hundred documents."""
    many = Measurement.of("nll_nats", [1.0] * 100 + [2.0] * 100, [0] * 100 + [1] * 100)
    assert by_group(many) == {0: 1.0, 1: 2.0}
    found = paired_difference(many, Measurement.of("nll_nats", [0.5, 0.5], [0, 1]))
    assert found is not None
    assert (found.groups, found.low) == (2, None)
    assert found.value == pytest.approx(1.0)


def test_a_ratio_is_paired() -> None:
    """Rounds of a slow and a fast machine state: the pairs agree though the times do not."""
    slow_then_fast = times([10, 20, 40, 80, 160, 320])
    halved = times([5, 10, 20, 40, 80, 160])
    assert paired_ratio(slow_then_fast, halved) == Estimate(2.0, 2.0, 2.0, 6)
    shuffled = Measurement.of("decode_ms", [160, 5, 80, 10, 40, 20], [5, 0, 4, 1, 3, 2])
    assert paired_ratio(slow_then_fast, shuffled) == Estimate(2.0, 2.0, 2.0, 6)
    within = paired_ratio(Measurement.of("decode_ms", [1, 100, 3, 1, 100, 3], [0, 0, 0, 1, 1, 1]), times([1.0, 1.0]))
    assert within == Estimate(3.0, None, None, 2)


def test_only_common_groups_count() -> None:
    one, other = times([1.0, 2.0, 3.0], [0, 1, 7]), times([2.0, 5.0], [1, 9])
    assert paired_ratio(one, other) == Estimate(1.0, None, None, 1)
    assert paired_ratio(one, times([1.0], [3])) is None
    assert paired_difference(one, times([1.0], [3])) is None
    absent = Measurement.absent("decode_ms", "no such thing")
    assert paired_ratio(one, absent) is None
    assert paired_difference(absent, one) is None


# Records.


def test_speedup_is_dense_over_sparse() -> None:
    dense, sparse = record(times([2.0] * 6)), record(times([1.0] * 6), "griffin")
    assert speedup(sparse, dense) == Estimate(2.0, 2.0, 2.0, 6)
    assert speedup(dense, sparse) == Estimate(0.5, 0.5, 0.5, 6)
    assert speedup(sparse, record(Measurement.absent("decode_ms", "masked"))) is None
    assert speedup(sparse, dense, "ttft_ms") is None


def test_the_floor_of_two_runs_alone_is_their_t_interval() -> None:
    dense = record(times([1.0] * 6))
    ratios = [0.98, 1.01, 1.02, 0.99, 1.0, 1.0]
    floor = noise_floor(record(times(ratios), control="a_a"), dense)
    logs = [math.log(ratio) for ratio in ratios]
    assert floor == pytest.approx(math.expm1(stats.t.ppf(0.975, 5) * statistics.stdev(logs) / math.sqrt(6)))


def test_the_floor_is_no_less_than_what_the_control_differs_by() -> None:
    dense = record(times([1.0] * 6))
    assert noise_floor(record(times([1.05] * 6), control="a_a"), dense) == pytest.approx(0.05)
    assert noise_floor(dense, dense) == 0


def test_no_floor_without_rounds_enough() -> None:
    few, dense = record(times([1.0] * 4)), record(times([1.0] * 8))
    assert noise_floor(few, few) is None
    assert noise_floor(record(Measurement.absent("decode_ms", "x")), dense) is None
    assert noise_floor(dense, dense, [few, record(Measurement.absent("decode_ms", "x"))]) == 0


@pytest.mark.parametrize("methods", [1, 8])
@pytest.mark.parametrize("rounds", [5, 7])
def test_unchanged_methods_stay_within_the_floor(rounds: int, methods: int) -> None:
    """One of eight lay beyond the floor in 23% of benches of 7 rounds, before their number counted."""
    draw = np.random.default_rng(rounds)
    state = 0.05 * draw.normal(size=(DRAWS, 1, rounds))  # of the machine, common to a round
    logs = state + 0.03 * draw.normal(size=(DRAWS, 2 + methods, rounds))
    means = logs.mean(2)
    farthest = np.abs(means[:, 2:] - means[:, :1]).max(1)
    floors = np.array([floor(bench, methods) for bench in np.exp(logs)])
    assert 0.005 <= np.mean(farthest > np.log1p(floors)) <= 0.06


def test_a_noisy_method_does_not_make_more_of_the_floor_wrong() -> None:
    """Noise that is not alike in all cases: one of eight has twice the others'."""
    draw = np.random.default_rng(0)
    spread = np.array([1, 1, 1, 1, 1, 2, 1, 1, 1, 1])[:, None]
    logs = 0.03 * spread * draw.normal(size=(DRAWS, 10, 7))
    means = logs.mean(2)
    farthest = np.abs(means[:, 2:] - means[:, :1]).max(1)
    assert np.mean(farthest > np.log1p([floor(bench, 8) for bench in np.exp(logs)])) <= 0.07


def test_baseline() -> None:
    assert is_baseline(record(times([1.0])))
    assert not is_baseline(record(times([1.0]), control="a_a"))
    assert not is_baseline(record(times([1.0]), "griffin"))
