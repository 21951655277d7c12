"""Estimates from samples, against plain formulas and by how often they cover a known truth."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from tda.cases import Case, Control
from tda.records import Commit, Machine, Measurement, Record
from tda.statistics import (
    MIN_GROUPS,
    RESAMPLES,
    Estimate,
    arithmetic,
    average,
    bootstrap,
    by_group,
    fieller,
    floor,
    geometric,
    is_baseline,
    item_difference,
    item_score,
    noise_floor,
    paired_difference,
    paired_ratio,
    perplexity,
    speedup,
    standard_error,
    typical,
    unpaired_ratio,
    verdict,
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


# Scores of a task.


def wilson(right: int, items: int, z: float) -> tuple[float, float]:
    """Where the score test of a share just ends: roots of (k/n - p)^2 = z^2 p (1 - p) / n."""
    roots = np.roots([1 + z**2 / items, -(2 * right / items + z**2 / items), (right / items) ** 2])
    low, high = sorted(float(root.real) for root in roots)
    return low, high


@pytest.mark.parametrize(("right", "items"), [(0, 5), (1, 5), (5, 5), (7, 10), (0, 300), (299, 300), (123, 300)])
def test_the_score_of_right_and_wrong_items_is_wilsons(right: int, items: int) -> None:
    found = item_score([1.0] * right + [0.0] * (items - right), share=True)
    assert (found.value, found.groups) == (right / items, items)
    assert bounds(found) == pytest.approx(wilson(right, items, stats.norm.ppf(0.975)), abs=1e-9)
    assert 0 <= bounds(found)[0] <= found.value <= bounds(found)[1] <= 1
    assert bounds(found)[0] < bounds(found)[1]


def test_other_scores_have_t_intervals_that_end_where_shares_do() -> None:
    values = [0.9, 1.0, 0.95, 1.0, 0.3]
    low, high = bounds(arithmetic(values))
    assert high > 1
    assert bounds(item_score(values, share=True)) == (low, 1.0)
    assert bounds(item_score(values, share=False)) == (low, high)
    assert bounds(item_score([0.0, 1.0, 1.0, 1.0, 1.0], share=False)) == bounds(arithmetic([0.0, 1.0, 1.0, 1.0, 1.0]))


def test_the_standard_error_is_that_of_the_harness() -> None:
    assert standard_error(VALUES) == pytest.approx(statistics.stdev(VALUES) / math.sqrt(len(VALUES)))
    assert standard_error([1.0]) is None
    with pytest.raises(ValueError, match="no values"):
        standard_error([])


@pytest.mark.parametrize("items", [1, 4])
def test_few_items_have_no_interval(items: int) -> None:
    one = dict.fromkeys(range(items), 1.0)
    assert item_score(list(one.values()), share=True) == Estimate(1.0, None, None, items)
    assert item_difference(one, one, share=True) == Estimate(0.0, None, None, items)
    assert item_difference(one, dict.fromkeys(range(items), 0.5), share=True) == Estimate(0.5, None, None, items)


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[dict[int, float], dict[int, float]]:
    """Scores of a method and of dense with so many items of each kind."""
    mine = [1.0] * (both + gained) + [0.0] * (lost + neither)
    dense = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    return dict(enumerate(mine)), dict(enumerate(dense))


def excess(d: float, gained: int, lost: int, items: int) -> float:
    """Squared score statistic of matched pairs: what is seen, less d, over its variance under the likeliest shares."""

    def against(down: float) -> float:
        up, same = down + d, 1 - 2 * down - d
        shares = [(gained, up), (lost, down), (items - gained - lost, same)]
        return -sum(count * math.log(max(share, 1e-300)) for count, share in shares if count)

    least, most = max(0.0, -d), (1 - d) / 2
    grid = np.linspace(least, most, 2001)
    best = float(grid[int(np.argmin([against(float(down)) for down in grid]))])
    step = (most - least) / 2000
    inner = optimize.minimize_scalar(
        against, bounds=(max(best - step, least), min(best + step, most)), method="bounded", options={"xatol": 1e-12}
    )
    down = float(inner.x)
    return float((gained - lost - items * d) ** 2 / (items * (2 * down + d - d**2)))


@pytest.mark.parametrize("comparisons", [1, 12])
@pytest.mark.parametrize("counts", [(50, 9, 4, 37), (2, 2, 1, 0), (300, 0, 1, 20), (0, 3, 30, 0), (4, 0, 3, 6)])
def test_bounds_of_a_paired_difference_are_where_the_score_test_ends(
    counts: tuple[int, int, int, int], comparisons: int
) -> None:
    _, gained, lost, _ = counts
    mine, dense = pairs(*counts)
    found = item_difference(mine, dense, share=True, comparisons=comparisons)
    back = item_difference(dense, mine, share=True, comparisons=comparisons)
    assert found is not None
    assert back is not None
    assert found.value == pytest.approx((gained - lost) / sum(counts))
    limit = stats.norm.ppf(1 - 0.025 / comparisons) ** 2
    for bound in bounds(found):
        assert excess(bound, gained, lost, sum(counts)) == pytest.approx(limit, rel=1e-3)
    assert bounds(found)[0] < found.value < bounds(found)[1]
    assert bounds(back) == pytest.approx((-bounds(found)[1], -bounds(found)[0]))


def test_bounds_where_all_items_agree_or_all_change_one_way() -> None:
    """The test of a share then, whose bounds are Wilson's."""
    z = stats.norm.ppf(0.975)
    for items in (5, 40, 1000):
        same = item_difference(*pairs(items - 1, 0, 0, 1), share=True)
        worse = item_difference(*pairs(0, 0, items, 0), share=True)
        assert same is not None
        assert worse is not None
        reach = wilson(0, items, z)[1]
        assert reach == pytest.approx(z**2 / (items + z**2))
        assert bounds(same) == pytest.approx((-reach, reach))
        assert bounds(worse)[0] == -1
        assert bounds(worse)[1] > -1 + reach / 2


def test_with_many_items_it_is_the_adjusted_wald_interval_of_agresti_and_min() -> None:
    counts = [count + 0.5 for count in (1200, 300, 260, 240)]
    _, up, down, _ = (count / 2002 for count in counts)
    error = math.sqrt((up + down - (up - down) ** 2) / 2002)
    found = item_difference(*pairs(1200, 300, 260, 240), share=True)
    assert found is not None
    assert bounds(found) == pytest.approx((up - down - 1.96 * error, up - down + 1.96 * error), abs=2e-4)


def test_other_differences_are_t_and_never_narrower_than_agreement_allows() -> None:
    draw = np.random.default_rng(0)
    mine, dense = (dict(enumerate(draw.uniform(0.0, 1.0, 40).tolist())) for _ in range(2))
    apart = [mine[place] - dense[place] for place in mine]
    for comparisons in (1, 12):
        found = item_difference(mine, dense, share=True, comparisons=comparisons)
        assert found is not None
        reach = stats.t.ppf(1 - 0.025 / comparisons, 39) * statistics.stdev(apart) / math.sqrt(40)
        middle = statistics.fmean(apart)
        assert bounds(found) == pytest.approx((middle - reach, middle + reach))
    same = item_difference(mine, mine, share=True)
    assert same is not None
    reach = wilson(0, 40, stats.norm.ppf(0.975))[1]
    assert bounds(same) == pytest.approx((-reach, reach))
    in_nats = item_difference(mine, mine, share=False)
    assert in_nats is not None
    assert bounds(in_nats) == (0, 0)


def test_items_are_paired_by_number() -> None:
    mine, dense = {3: 0.25, 1: 0.5, 9: 1.0}, {1: 0.0, 3: 0.25, 4: 1.0}
    assert item_difference(mine, dense, share=True) == Estimate(0.25, None, None, 2)
    assert item_difference(mine, {7: 1.0}, share=True) is None


def joint(p: float, q: float, correlation: float) -> list[float]:
    """Shares of items that both, only the method, only dense and neither gets right."""
    both = p * q + correlation * math.sqrt(p * (1 - p) * q * (1 - q))
    return [both, p - both, q - both, 1 - p - q + both]


SHARES = [(0.5, 0.5, 0.0), (0.5, 0.5, 0.9), (0.7, 0.65, 0.6), (0.7, 0.72, 0.8), (0.9, 0.9, 0.5), (0.25, 0.3, 0.4),
          (0.95, 0.9, 0.65), (0.6, 0.3, 0.3), (0.7, 0.6, 0.78)]  # fmt: skip
"""Of the method, of dense, and the correlation of their items; in the last one, hardly an item is won."""


@pytest.mark.parametrize("items", [5, 20, 100, 400])
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("comparisons", [1, 12])
def test_paired_differences_cover_the_truth(shares: tuple[float, float, float], items: int, comparisons: int) -> None:
    cells = joint(*shares)
    assert min(cells) >= 0
    drawn = np.random.default_rng(items).multinomial(items, cells, size=20_000)
    kinds, times_seen = np.unique(drawn[:, 1:3], axis=0, return_counts=True)
    truth = shares[0] - shares[1]
    hits = 0
    for (gained, lost), seen in zip(kinds.tolist(), times_seen.tolist(), strict=True):
        found = item_difference(*pairs(items - gained - lost, gained, lost, 0), share=True, comparisons=comparisons)
        assert found is not None
        low, high = bounds(found)
        hits += seen * (low <= truth <= high)
    assert 1 - hits / len(drawn) <= {1: 0.06, 12: 0.007}[comparisons]


@pytest.mark.parametrize(("comparisons", "least"), [(1, 0.94), (12, 0.992)])
@pytest.mark.parametrize("items", [5, 20, 100])
@pytest.mark.parametrize("touched", [0.02, 0.3, 1.0])
def test_differences_of_partial_scores_cover_the_truth(
    touched: float, items: int, comparisons: int, least: float
) -> None:
    """F1 and its like: few items change, and those by unlike amounts."""
    draw = np.random.default_rng(items)
    size = (DRAWS, items)
    apart = np.where(draw.random(size) < touched, draw.beta(2, 2, size) - 0.6, 0.0)
    dense = draw.uniform(0.6, 0.61, size)
    found = []
    for row, base in zip(apart, dense, strict=True):
        mine, other = dict(enumerate((base + row).tolist())), dict(enumerate(base.tolist()))
        one = item_difference(mine, other, share=True, comparisons=comparisons)
        assert one is not None
        found.append(one)
    assert covered(found, -0.1 * touched) >= least


def test_differences_that_are_held_together_are_all_covered() -> None:
    """Twelve methods that share the dense run: with 95% no difference misses its truth."""
    draw, items, methods = np.random.default_rng(3), 200, 12
    dense = (draw.random((1500, items)) < 0.6).astype(float)
    right = 0
    for answers in dense:
        flipped = draw.random((methods, items)) < 0.1
        base = dict(enumerate(answers.tolist()))
        rows = np.where(flipped, 1 - answers, answers)
        found = [
            item_difference(dict(enumerate(row.tolist())), base, share=True, comparisons=methods) for row in rows[:4]
        ]
        right += all(one is not None and bounds(one)[0] <= 0.1 * (1 - 2 * 0.6) <= bounds(one)[1] for one in found)
    assert right / len(dense) >= 0.95


@pytest.mark.parametrize(
    ("bounded", "margin", "said"),
    [
        ((-0.009, 0.01), 0.01, "as good as dense"),
        ((0.001, 0.009), 0.01, "as good as dense"),
        ((-0.011, 0.009), 0.01, "cannot tell"),
        ((0.001, 0.02), 0.01, "better"),
        ((-0.02, -0.001), 0.01, "worse"),
        ((-0.02, 0.0), 0.01, "cannot tell"),
        ((0.001, 0.009), None, "better"),
        ((0.0, 0.0), None, "cannot tell"),
        ((None, None), 0.01, "cannot tell"),
    ],
)
def test_verdicts(bounded: tuple[float | None, float | None], margin: float | None, said: str) -> None:
    low, high = bounded
    assert verdict(Estimate(0.0, low, high, 9), margin, "higher") == said
    turned = {"better": "worse", "worse": "better"}.get(said, said)
    assert verdict(Estimate(0.0, low, high, 9), margin, "lower") == turned


def test_an_average_adds_what_is_below_and_above_by_squares() -> None:
    found = average([Estimate(0.4, 0.3, 0.6, 30), Estimate(0.6, 0.6 - 0.24, 0.6 + 0.15, 20)])
    assert (found.value, found.groups) == (0.5, 20)
    assert bounds(found) == pytest.approx((0.5 - 0.26 / 2, 0.5 + 0.25 / 2))
    assert average([Estimate(0.4, 0.3, 0.6, 30), Estimate(0.6, None, None, 2)]) == Estimate(0.5, None, None, 2)


def test_an_average_of_tasks_covers_the_truth() -> None:
    draw, shares = np.random.default_rng(0), (0.95, 0.5, 0.2)
    drawn = [(draw.random((DRAWS, items)) < p).tolist() for p, items in zip(shares, (60, 100, 40), strict=True)]
    found = [
        average([item_score([float(v) for v in row], share=True) for row in rows]) for rows in zip(*drawn, strict=True)
    ]
    assert 0.935 <= covered(found, float(np.mean(shares))) <= 0.97


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


def test_an_interval_that_is_no_number_says_nothing() -> None:
    broken = Estimate(float("nan"), float("nan"), float("nan"), 8)
    for better in ("higher", "lower"):
        assert verdict(broken, 0.01, better) == "cannot tell"


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_a_share_lies_within_0_and_1(value: float) -> None:
    with pytest.raises(ValueError, match="a share lies between 0 and 1"):
        item_score([1.0, 0.0, 1.0, 1.0, value], share=True)
