"""The sets that the engine selects, against the formulas in float64."""

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import float64
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

import tda
from tda.contracts import Method, PromptMethod, TokenMethod, keep_top, kept_count
from tda.engine.phases import decode, prefill
from tda.families import find_inputs
from tda.selection import Selection
from tda.thresholds import Thresholds

LENGTHS = (7, 1, 13)
PROMPT_CASES = [case for case in tiny.method_cases() if isinstance(case[1], PromptMethod) and case[1].name != "random"]
TOKEN_CASES = [case for case in tiny.method_cases() if isinstance(case[1], TokenMethod)]
READINGS = [
    tda.TDA(sparsity=0.5, statistic=statistic, source=source)
    for statistic in ("relative", "l2", "max", "contribution")
    for source in ("z", "gate", "up")
]
SHARED = [tda.Griffin(sparsity=0.5, rows="shared"), tda.TDA(sparsity=0.5, rows="shared")]


def select(
    model: Any, method: Method, prompts: Sequence[Tensor], thresholds: Thresholds | None, side: str = "left"
) -> list[Tensor]:
    tokens, mask = tiny.padded(prompts, side)
    with torch.no_grad(), tda.attach(model, method, thresholds, execution="masked") as run:
        prefill(model, tokens, mask)
        return run.selection()


def check_prompt_sets(
    name: str, method: Any, prompts: Sequence[Tensor], selection: Sequence[Tensor], thresholds: Thresholds | None
) -> None:
    reference = tiny.reference(name)
    passes = [reference.run(prompt) for prompt in prompts]
    assert len(selection) == tiny.LAYERS
    for layer, kept in enumerate(selection):
        weights = reference.weights[layer]
        assert kept.shape == (len(prompts), weights.F)
        assert kept.dtype == torch.bool
        rows = [found.layers[layer] for found in passes]
        choices = float64.prompt_choices(method, weights, rows, thresholds, layer)
        for choice, row in zip(choices, kept, strict=True):
            choice.check(row)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", tiny.sampled(PROMPT_CASES), ids=tiny.case_id)
def test_prompt_wise_sets_equal_the_formula(case: tuple[str, Method], side: str) -> None:
    name, method = case
    prompts, thresholds = tiny.prompts(LENGTHS), tiny.thresholds(name, method)
    selection = select(tiny.model(name), method, prompts, thresholds, side)
    check_prompt_sets(name, method, prompts, selection, thresholds)


@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_other_sparsities(name: str, sparsity: float) -> None:
    prompts = tiny.prompts(LENGTHS, seed=1)
    for method in tiny.default_methods(sparsity):
        if isinstance(method, PromptMethod) and method.name != "random":
            thresholds = tiny.thresholds(name, method)
            selection = select(tiny.model(name), method, prompts, thresholds)
            check_prompt_sets(name, method, prompts, selection, thresholds)


@pytest.mark.parametrize("method", READINGS, ids=lambda m: f"{m.statistic}-{m.source}")
def test_readings_of_tda(method: tda.TDA) -> None:
    prompts, thresholds = tiny.prompts(LENGTHS, seed=2), tiny.thresholds("llama", method)
    selection = select(tiny.model("llama"), method, prompts, thresholds)
    check_prompt_sets("llama", method, prompts, selection, thresholds)


@pytest.mark.parametrize("statistic", ["relative", "l2", "max", "contribution"])
def test_readings_of_tda_in_a_plain_ffn(statistic: Any) -> None:
    method = tda.TDA(sparsity=0.5, statistic=statistic)
    prompts, thresholds = tiny.prompts(LENGTHS, seed=3), tiny.thresholds("opt", method)
    selection = select(tiny.model("opt"), method, prompts, thresholds)
    check_prompt_sets("opt", method, prompts, selection, thresholds)


@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.parametrize("method", SHARED, ids=lambda m: m.name)
def test_shared_rows_select_one_set(name: str, method: Method) -> None:
    prompts, thresholds = tiny.prompts(LENGTHS, seed=4), tiny.thresholds(name, method)
    selection = select(tiny.model(name), method, prompts, thresholds)
    assert all(torch.equal(kept, kept[:1].expand_as(kept)) for kept in selection)
    check_prompt_sets(name, method, prompts, selection, thresholds)


WITH_PRIORS = [
    tda.Griffin(sparsity=0.5, prior_tokens=6),
    tda.Griffin(sparsity=0.75, prior_tokens=0.5, rows="shared"),
    tda.TDA(sparsity=0.5, prior_tokens=6),
    tda.TDA(sparsity=0.25, prior_tokens=64, statistic="relative", rows="shared"),
    tda.GLASS(sparsity=0.5, weight=0.3),
    tda.GLASS(sparsity=0.25, weight=0.75, statistic="contribution"),
]


@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.parametrize("method", WITH_PRIORS, ids=lambda m: str(m.spec))
def test_prior_and_prompt_together(name: str, method: Method) -> None:
    prompts, thresholds = tiny.prompts(LENGTHS, seed=5), tiny.thresholds(name, method)
    selection = select(tiny.model(name), method, prompts, thresholds)
    check_prompt_sets(name, method, prompts, selection, thresholds)


def test_the_ends_of_a_prior() -> None:
    """No tokens are the prompt alone, ever more of them the calibration text alone; likewise the weight of ranks."""
    model, prompts = tiny.model("llama"), tiny.prompts((4, 9), seed=6)

    def kept(method: Method) -> list[torch.Tensor]:
        return select(model, method, prompts, tiny.thresholds("llama", method))

    def equal(one: Method, other: Method) -> bool:
        return all(torch.equal(a, b) for a, b in zip(kept(one), kept(other), strict=True))

    assert equal(tda.GLASS(weight=1), tda.Griffin())
    assert equal(tda.GLASS(weight=0), tda.StaticMean())
    assert equal(tda.Griffin(prior_tokens=1e-9), tda.Griffin())
    alone = kept(tda.Griffin(prior_tokens=1e9))
    assert all(torch.equal(layer[0], layer[1]) for layer in alone)
    assert not equal(tda.Griffin(prior_tokens=1e9), tda.Griffin())


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "many", True])
def test_a_prior_is_worth_a_number_of_tokens(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="prior_tokens"):
        tda.Griffin(prior_tokens=value)
    with pytest.raises((ValueError, TypeError), match="weight"):
        tda.GLASS(weight=value)


def test_a_prior_needs_a_reading_by_squares() -> None:
    for statistic in ("l2", "max"):
        with pytest.raises(ValueError, match=f"prior_tokens needs .* got '{statistic}'"):
            tda.TDA(prior_tokens=8, statistic=statistic)


@pytest.mark.parametrize("case", TOKEN_CASES, ids=tiny.case_id)
def test_per_token_sets_equal_the_formula(case: tuple[str, Method]) -> None:
    """The set of a decode step, whose input has passed sparse layers below."""
    name, method = case
    prompts, thresholds = tiny.prompts(LENGTHS), tiny.thresholds(name, method)
    tokens, mask = tiny.padded(prompts)
    fed = tiny.text(len(prompts), 2, seed=9)
    seen = torch.cat([mask, torch.ones_like(fed, dtype=torch.bool)], 1)
    model = tiny.model(name)
    with torch.no_grad(), tda.attach(model, method, thresholds, execution="masked") as run:
        cache = prefill(model, tokens, mask).cache
        decode(model, fed[:, :1], cache, seen[:, :-1])
        decode(model, fed[:, 1:], cache, seen)
        selection = run.selection()
    reference = tiny.reference(name)
    for row, rule in enumerate(float64.rules(method, reference, prompts, thresholds)):
        sequence = torch.cat([prompts[row], fed[row]])
        found = reference.run(sequence, torch.arange(len(sequence)) >= len(prompts[row]), rule)
        for layer, kept in enumerate(selection):
            choices = float64.token_choices(method, reference.weights[layer], found.layers[layer], thresholds, layer)
            choices[-1].check(kept[row])


@pytest.mark.parametrize("bounds", [(0.9, 1.0), (0.0, 0.1), (0.52, 0.52), (0.0, 0.0)])
def test_bounds_of_tda(bounds: tuple[float, float]) -> None:
    prompts = tiny.prompts(LENGTHS, seed=5)
    thresholds = tiny.thresholds("llama", tda.TDA(sparsity=0.5))
    bounded = tda.TDA(sparsity=0.5, min_keep=bounds[0], max_keep=bounds[1])
    selection = select(tiny.model("llama"), bounded, prompts, thresholds)
    if bounds[0] < bounds[1] or bounds[1] == 0:
        check_prompt_sets("llama", bounded, prompts, selection, thresholds)
    counts = torch.stack([kept.sum(1) for kept in selection]).double()
    assert (counts >= bounds[0] * tiny.F - 1).all()
    assert (counts <= bounds[1] * tiny.F + 1e-9).all()


class TestRandom:
    def sets(self, method: Method, prompts: Sequence[Tensor], side: str = "left") -> list[Tensor]:
        return select(tiny.model("llama"), method, prompts, None, side)

    def test_same_prompt_same_set_alone_in_a_batch_and_padded_on_either_side(self) -> None:
        prompts = tiny.prompts(LENGTHS)
        batch, right = (self.sets(tda.Random(sparsity=0.5), prompts, side) for side in ("left", "right"))
        for row, prompt in enumerate(prompts):
            alone = self.sets(tda.Random(sparsity=0.5), [prompt])
            for layer in range(tiny.LAYERS):
                assert torch.equal(alone[layer][0], batch[layer][row])
                assert torch.equal(alone[layer][0], right[layer][row])

    def test_prompts_layers_and_seeds_differ(self) -> None:
        one, other = tiny.prompts((9, 9))
        both = self.sets(tda.Random(sparsity=0.5), [one, other])
        assert not torch.equal(both[0][0], both[0][1])
        assert not torch.equal(both[0][0], both[1][0])
        assert not torch.equal(both[0], self.sets(tda.Random(sparsity=0.5, seed=1), [one, other])[0])

    def test_count_is_exact_and_no_neuron_is_preferred(self) -> None:
        prompts = list(tiny.text(300, 3, seed=6))
        kept = torch.cat(self.sets(tda.Random(sparsity=0.25), prompts))
        assert (kept.sum(1) == tiny.F - float64.left_out(0.25, tiny.F)).all()
        share = kept.double().mean(0)  # 600 draws a neuron: standard deviation .018
        assert (share - 0.75).abs().max() < 0.08


def test_one_token_prompts_select_from_their_own_token() -> None:
    """Public GRIFFIN silently keeps the neurons of the prompt before."""
    model, method = tiny.model("llama"), tda.Griffin(sparsity=0.5)
    with torch.no_grad(), tda.attach(model, method) as run:
        sets = []
        for prompt in ([[5]], [[6]], [[5]]):
            prefill(model, torch.tensor(prompt))
            sets.append(torch.cat(run.selection()))
    assert torch.equal(sets[0], sets[2])
    assert not torch.equal(sets[0], sets[1])
    check_prompt_sets("llama", method, [torch.tensor([6])], list(sets[1].unsqueeze(1)), None)


def test_an_all_zero_activation_row_counts_as_zero() -> None:
    """ReLU under a strongly negative bias: no neuron is active for any token."""
    model = tiny.build("opt")
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.bias.fill_(-1e4)
    prompts = tiny.prompts(LENGTHS)
    for method in (tda.Griffin(sparsity=0.5), tda.Griffin(sparsity=0.5, rows="shared")):
        kept = select(model, method, prompts, None)[0]
        first = torch.arange(tiny.F) < kept_count(0.5, tiny.F)
        assert torch.equal(kept, first.expand_as(kept)), "all scores tie at 0, so the lower indices are kept"
    for statistic in ("relative", "l2", "max", "contribution"):
        method = tda.TDA(sparsity=0.5, statistic=statistic)
        batches = [{"input_ids": tiny.text(4, 32)}]
        thresholds = tda.calibrate(model, method, batches, progress=False)
        tokens, mask = tiny.padded(prompts)
        with torch.no_grad(), tda.attach(model, method, thresholds) as run:
            logits, cache = prefill(model, tokens, mask)
            seen = torch.cat([mask, torch.ones(3, 1, dtype=torch.bool)], 1)
            logits = decode(model, tokens[:, -1:], cache, seen)
            assert logits.isfinite().all()
            assert all(share == share for share in run.achieved_sparsity())


def test_a_zero_row_among_others_leaves_their_statistic_alone() -> None:
    from tda.prompt_statistics import RelativeMaximum, RelativeSquares, Squares

    a = torch.randn(2, 5, tiny.F)
    a[0, 2] = 0
    mask = torch.ones(2, 5, dtype=torch.bool)
    without = a[:1, [0, 1, 3, 4]]
    for kind in (RelativeSquares, Squares, RelativeMaximum):
        one, other = kind(), kind()
        one.add(a, mask)
        other.add(without, mask[:1, :4])
        torch.testing.assert_close(one.value()[:1], other.value())


def test_ties_keep_the_lower_index() -> None:
    assert keep_top(torch.tensor([0.0, 1, 0, 1, 0]), 3).tolist() == [True, True, False, True, False]
    assert keep_top(torch.zeros(300), 7).nonzero().flatten().tolist() == list(range(7))


@given(
    scores=arrays.arrays("float32", (3, 17), elements=st.integers(0, 4).map(float)),
    count=st.integers(0, 17),
)
def test_keep_top_equals_a_sort_in_python(scores: Any, count: int) -> None:
    kept = keep_top(torch.from_numpy(scores), count)
    for row, found in zip(scores.tolist(), kept, strict=True):
        assert torch.equal(float64.Choice(torch.tensor(row), count=count).kept(), found)


@given(sparsity=st.floats(0, 1, exclude_max=True), F=st.integers(1, 20000))
def test_how_many_are_left_out(sparsity: float, F: int) -> None:
    kept = kept_count(sparsity, F)
    assert F - kept == float64.left_out(sparsity, F)
    assert 0 <= kept <= F
    assert abs((F - kept) - sparsity * F) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("sparsity", "F", "kept"), [(0.5, 53, 26), (0.5, 172, 86), (0.25, 10, 7), (0.99, 4, 0), (0, 9, 9)]
)
def test_known_counts(sparsity: float, F: int, kept: int) -> None:
    assert kept_count(sparsity, F) == kept


def test_large_models_in_bfloat16_sum_in_float32() -> None:
    """4096 equal tokens: a bfloat16 sum would stop growing at 256."""
    from tda.prompt_statistics import RelativeSquares

    a = torch.ones(1, 4096, 4, dtype=torch.bfloat16)
    statistic = RelativeSquares()
    statistic.add(a, torch.ones(1, 4096, dtype=torch.bool))
    torch.testing.assert_close(statistic.value(), torch.full((1, 4), 1024.0))


# The sets as one value.


def test_a_selection_counts_itself() -> None:
    sets = torch.rand(3, 2, 53) < 0.3
    found, stacked = Selection(sets), Selection.stacked(sets.to(torch.uint8))
    assert torch.equal(found.counts, sets.sum(2))
    assert torch.equal(found.left_out, 1 - sets.double().mean(2))
    assert torch.equal(found.left_out, stacked.left_out)
    assert all(map(torch.equal, found, stacked))
    assert found.union() == sets.any(1).double().mean(1).tolist()


def test_rows_of_selections() -> None:
    found = Selection([torch.rand(2, size) < 0.5 for size in (53, 20)])
    order = torch.tensor([1, 1])
    assert not found.rows_alike
    assert found.take(order).rows_alike
    assert [found.take(order).digest(row) for row in (0, 1)] == [found.digest(1)] * 2
    both = Selection.together([found, found.take(order)])
    assert [both.digest(row) for row in range(4)] == [found.digest(row) for row in (0, 1, 1, 1)]


AXES = {"gate": "out", "up": "out", "down": "in"}


@pytest.mark.parametrize(
    ("method", "read"),
    [
        (tda.Griffin(), ("gate", "up", "down")),
        (tda.CATS(), ("up", "down")),
        (tda.TT(sparsity=0.5), ("down",)),
        (tda.Oracle(), ()),
        (tda.Dense(), ()),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else None,
)
def test_a_selection_says_where_it_lies_and_what_is_read_there(method: Method, read: tuple[str, ...]) -> None:
    """Bytes by hand: a row of gate and up with its bias for each kept neuron; a column of down, and its whole bias."""
    model = tiny.model("llama")
    with torch.no_grad(), tda.attach(model, method, tiny.thresholds("llama", method), execution="masked") as run:
        cache = prefill(model, tiny.text(2, 9)).cache
        decode(model, tiny.text(2, 1), cache)
        found = run.selection()
    for layer, sites in enumerate(found.sites):
        assert [(site.layer, site.projection, site.axis, site.expert) for site in sites] == [
            (layer, name, AXES[name], None) for name in read
        ]
    rows = 4 * (tiny.D + 1)
    for layer, kept in enumerate(found):
        for row, share in enumerate(kept):
            count = int(share.sum())
            counts = {name: count if name in read else tiny.F for name in AXES}
            wanted = (counts["gate"] + counts["up"]) * rows + counts["down"] * 4 * tiny.D + 4 * tiny.D
            assert float(found.nbytes[layer, row]) == pytest.approx(wanted)
    assert repr(found).startswith("Selection of 2 places and 2 rows, mean share kept of each place: ")
    assert found.digest(0, 1) == Selection(found[1:]).digest(0)
    assert found.take(torch.tensor([1])).sites == found.sites == Selection.together([found, found]).sites


def test_a_copy_of_a_selection_is_of_the_sets_alone() -> None:
    model = tiny.model("llama")
    with torch.no_grad(), tda.attach(model, tda.Griffin()) as run:
        model(tiny.text(1, 9), **tiny.on(model, tiny.new_cache(model)))
        found = run.selection()
        for copied in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
            assert all(map(torch.equal, copied, found))
            with pytest.raises(ValueError, match="which linears these sets"):
                _ = copied.nbytes


def test_sites_of_experts_and_of_linears_have_addresses_of_their_own() -> None:
    model = tiny.model("mixtral")
    with torch.no_grad(), tda.attach(model, tda.Griffin()) as run:
        model(tiny.text(1, 9), **tiny.on(model, tiny.new_cache(model)))
        sites = [site for place in run.selection().sites for site in place]
    assert {(site.layer, site.expert) for site in sites} == {(layer, e) for layer in range(2) for e in range(4)}
    assert len(set(sites)) == len(sites) == 2 * 4 * 3
    places = find_inputs(tiny.model("llama"))
    paths = [site.projection for place in places for site in tda.TEAL().sites(place)]
    assert paths[:4] == [f"self_attn.{name}_proj" for name in "qkvo"]
    assert {site.axis for place in places for site in tda.TEAL().sites(place)} == {"in"}
