"""A whole decode step in C equals the model's own decode, whatever else happens to the cache between steps."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from guarded import Guards
from model_state import same, state
from torch import Tensor, nn

import tda
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.engine.run import Run
from tda.families import family_of, find_ffns
from tda.kernels.activations import UndescribedError
from tda.kernels.native import key_values, library
from tda.kernels.native.describe import feed_forward
from tda.kernels.native.step import Step
from tda.kernels.weights import Weights, lay_rows
from tda.view import Linear

pytestmark = pytest.mark.usefixtures("kernels_in_c")

OWN = tda.Dense(dense_kernel="own")
STEPS = 12


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that the caches held before each whole step that ran."""
    seen: list[int] = []
    whole = Step.__call__

    def counting(self: Step, token: Tensor, position: Tensor, cache: Any, mask: Tensor | None = None) -> Any:
        seen.append(int(position))
        return whole(self, token, position, cache, mask)

    monkeypatch.setattr(Step, "__call__", counting)
    return seen


@contextmanager
def stepping(model: Any, method: Method = OWN, **options: Any) -> Iterator[Run]:
    """A method attached whose decode runs in whole steps."""
    with torch.no_grad(), tda.attach(model, method, **options) as run:
        assert run.attachment.decoding.step is not None, run.backend
        yield run


def step_logits(model: Any, cache: Any, tokens: Tensor) -> Tensor:
    """Logits of tokens [1, T], fed one by one: [1, T, V]."""
    return torch.cat([decode(model, token.view(1, 1), cache) for token in tokens[0]], 1)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max()


def same_cache(ours: Any, theirs: Any, tolerance: float = 2e-5) -> None:
    """What two caches show is the same."""
    assert ours.get_seq_length() == theirs.get_seq_length()
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        close(one.keys, other.keys, tolerance)
        close(one.values, other.values, tolerance)


@pytest.mark.parametrize("growing", [True, False], ids=["every-token", "own-windows"])
@pytest.mark.parametrize("name", tiny.names())
def test_steps_equal_the_models_own(name: str, growing: bool, steps: list[int]) -> None:
    """All families; caches that keep every token, and those that let windows slide."""
    from transformers import DynamicCache

    model, prompt, fed = tiny.model(name), tiny.text(1, 9), tiny.text(1, STEPS, seed=5)
    ours, theirs = (DynamicCache() if growing else tiny.new_cache(model) for _ in range(2))
    with torch.no_grad():
        prefill(model, prompt, cache=theirs)
        expected = step_logits(model, theirs, fed)
    with stepping(model):
        prefill(model, prompt, cache=ours)
        steps.clear()
        found = step_logits(model, ours, fed)
    assert steps == list(range(9, 9 + STEPS))
    close(found, expected)
    same_cache(ours, theirs)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [8, 72], ids="{} wide".format)
@pytest.mark.parametrize("heads", [(3, 3), (4, 1), (12, 2)], ids="{0[0]} heads on {0[1]}".format)
def test_heads_that_share_keys(heads: tuple[int, int], head_dim: int, dtype: torch.dtype) -> None:
    """Any number of heads on a key, of any width, over more tokens than are scored together; scores are capped."""
    shape = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": head_dim}
    model = tiny.build("gemma2", **shape, attn_logit_softcapping=2.0, attn_implementation="eager")
    prompt, fed = tiny.text(1, 40), tiny.text(1, 4, seed=5)
    with torch.no_grad():
        expected = step_logits(model, prefill(model, prompt).cache, fed)
    narrow = model.to(dtype)
    with stepping(narrow):
        found = step_logits(narrow, prefill(narrow, prompt).cache, fed)
    close(found, expected, 2e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("name", tiny.names())
def test_bfloat16_is_as_near_to_float32_as_the_models_own(name: str) -> None:
    exact, model = tiny.build(name), tiny.build(name).to(torch.bfloat16)
    for wide, narrow in zip(exact.parameters(), model.parameters(), strict=True):
        wide.data.copy_(narrow.data)
    prompt, fed = tiny.text(1, 9), tiny.text(1, 4, seed=5)
    with torch.no_grad():
        expected = step_logits(exact, prefill(exact, prompt).cache, fed)
        theirs = step_logits(model, prefill(model, prompt).cache, fed)
    with stepping(model):
        ours = step_logits(model, prefill(model, prompt).cache, fed)
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).abs().mean() <= 1.2 * (theirs - expected).abs().mean()


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["llama", "opt-post-norm", "gemma2"])
def test_scratch_is_exactly_as_large_as_said(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt, guards = tiny.model(name), tiny.text(1, 9), Guards()
    monkeypatch.setattr(library, "ensure_scratch", lambda held, floats: guards.empty((floats,)))
    before = torch.get_num_threads()
    with torch.no_grad():
        expected = step_logits(model, prefill(model, prompt).cache, tiny.text(1, 4, seed=5))
    torch.set_num_threads(threads)
    try:
        with stepping(model) as run:
            cache, step = prefill(model, prompt).cache, run.attachment.decoding.step
            assert step is not None
            decode(model, tiny.text(1, 4, seed=5)[:, :1], cache)
            for token in range(1, 4):
                found = decode(model, tiny.text(1, 4, seed=5)[:, token : token + 1], cache)
                guards.check()
                close(found, expected[:, token : token + 1])
    finally:
        torch.set_num_threads(before)


def cropped(model: Any, cache: Any) -> Any:
    cache.crop(-2)
    return cache


def continued(model: Any, cache: Any) -> Any:
    """Two tokens at once are no step: the model's own code appends them."""
    decode(model, tiny.text(1, 2, seed=8), cache)
    return cache


def reordered(model: Any, cache: Any) -> Any:
    cache.reorder_cache(torch.tensor([0]))
    return cache


def changed(model: Any, cache: Any) -> Any:
    """Written to in place, through what the cache shows."""
    for layer in cache.layers:
        layer.keys.mul_(0.5)
        layer.values.add_(0.1)
    return cache


def replaced_and_back(model: Any, cache: Any) -> Any:
    """What was shown before a step is put back after it."""
    shown = [(layer.keys, layer.values) for layer in cache.layers]
    decode(model, tiny.text(1, 1, seed=9), cache)
    for layer, (keys, values) in zip(cache.layers, shown, strict=True):
        layer.keys, layer.values = keys, values
    return cache


def copied(model: Any, cache: Any) -> Any:
    """The original goes on with other tokens, and the copy is what counts."""
    taken = copy.deepcopy(cache)
    decode(model, tiny.text(1, 1, seed=9), cache)
    return taken


@pytest.mark.parametrize("change", [cropped, continued, reordered, changed, replaced_and_back, copied])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_cache_that_another_hand_changes(name: str, change: Callable[[Any, Any], Any], steps: list[int]) -> None:
    model = tiny.model(name)

    def run() -> tuple[Tensor, Any]:
        cache, found = prefill(model, tiny.text(1, 9)).cache, []
        for part in range(3):
            found.append(step_logits(model, cache, tiny.text(1, 3, seed=20 + part)))
            cache = change(model, cache)
        return torch.cat([*found, step_logits(model, cache, tiny.text(1, 2, seed=30))], 1), cache

    with torch.no_grad():
        expected, theirs = run()
    steps.clear()
    with stepping(model):
        steps.clear()
        found, ours = run()
    assert len(steps) >= 11
    close(found, expected)
    same_cache(ours, theirs)


def test_views_taken_before_stay_right() -> None:
    """What a cache showed once is not written over by later steps, nor after a crop."""
    model = tiny.model("llama")
    with stepping(model):
        cache = prefill(model, tiny.text(1, 9)).cache
        step_logits(model, cache, tiny.text(1, 3, seed=5))
        shown = [(layer.keys, layer.keys.clone(), layer.values, layer.values.clone()) for layer in cache.layers]
        step_logits(model, cache, tiny.text(1, 3, seed=6))
        cache.crop(-4)
        step_logits(model, cache, tiny.text(1, 5, seed=7))
    for keys, keys_then, values, values_then in shown:
        assert torch.equal(keys, keys_then)
        assert torch.equal(values, values_then)


def test_two_caches_in_turn_and_a_second_model() -> None:
    models = [tiny.model("llama"), tiny.model("opt"), tiny.model("llama")]
    prompts = [tiny.text(1, 9, seed=number) for number in range(3)]
    fed = tiny.text(1, 6, seed=5)

    def run() -> list[Tensor]:
        caches = [prefill(model, prompt).cache for model, prompt in zip(models, prompts, strict=True)]
        return [
            torch.cat([decode(model, token.view(1, 1), cache) for model, cache in zip(models, caches, strict=True)], 1)
            for token in fed[0]
        ]

    with torch.no_grad():
        expected = run()
    with stepping(models[0]), stepping(models[1]):
        found = run()
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2"])
def test_growth_past_the_room_that_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_values, "SLACK", 3)
    model, fed = tiny.model(name), tiny.text(1, 40, seed=5)
    ours, theirs = tiny.new_cache(model), tiny.new_cache(model)
    with torch.no_grad():
        prefill(model, tiny.text(1, 2), cache=theirs)
        expected = step_logits(model, theirs, fed)
    with stepping(model):
        prefill(model, tiny.text(1, 2), cache=ours)
        close(step_logits(model, ours, fed), expected)
    same_cache(ours, theirs)


@pytest.mark.parametrize("case", tiny.method_cases("llama", "opt", "gemma2", "mistral-window"), ids=tiny.case_id)
def test_generate_gives_what_masked_gives(case: tuple[str, Method], steps: list[int]) -> None:
    name, method = case
    model, thresholds = tiny.model(name), tiny.thresholds(name, method)
    found = []
    for execution in ("masked", "auto"):
        with tda.attach(model, method, thresholds, execution=execution) as run:
            steps.clear()
            found.append(model.generate(tiny.text(1, 9), max_new_tokens=STEPS, do_sample=False))
            fast = run.attachment.decoding.step is not None
        assert len(steps) == (STEPS - 1 if fast else 0)
    assert torch.equal(*found)


@pytest.mark.parametrize("beams", [2, 3])
def test_beams_run_layer_by_layer(beams: int, steps: list[int]) -> None:
    model, options = tiny.model("llama"), {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(tiny.text(1, 9), num_beams=beams, **options)
    with stepping(model):
        steps.clear()
        assert torch.equal(model.generate(tiny.text(1, 9), num_beams=beams, **options), expected)
    assert not steps


class TestFallsBack:
    def logits(self, model: Any, rows: int = 1, masked: bool = False, **asked: Any) -> Any:
        prompt, mask = (
            tiny.padded(tiny.prompts((9,) * rows)) if not masked else tiny.padded([tiny.text(1, 5)[0]] * rows)
        )
        if masked:
            prompt = torch.cat([torch.zeros(rows, 3, dtype=torch.int64), prompt], 1)
            mask = torch.cat([torch.zeros(rows, 3, dtype=torch.bool), mask], 1)
        cache = prefill(model, prompt, mask).cache
        mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.bool)], 1)
        given = {"attention_mask": mask.long(), "position_ids": mask.sum(1, keepdim=True) - 1, **tiny.on(model, cache)}
        return model(input_ids=tiny.text(rows, 1, seed=5), **given, **asked)

    @pytest.mark.parametrize(
        "asked",
        [
            {"rows": 2},
            {"masked": True},
            {"output_hidden_states": True},
            {"return_dict": False},
            {"labels": torch.tensor([[5]])},
            {"labels": torch.tensor([[0]])},
        ],
        ids=["batch", "padding", "hidden-states", "tuple", "labels", "labels-of-zero"],
    )
    def test_where_more_is_asked_than_a_step_gives(self, asked: dict[str, Any], steps: list[int]) -> None:
        model = tiny.model("llama")
        with torch.no_grad():
            expected = self.logits(model, **asked)
        with stepping(model):
            steps.clear()
            found = self.logits(model, **asked)
        assert not steps
        assert type(found) is type(expected)
        if isinstance(found, tuple):
            close(found[0], expected[0])
            return
        close(found.logits, expected.logits)
        assert found.keys() == expected.keys()

    def test_where_the_configuration_asks_for_more(self, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny.model("llama")
        with stepping(model):
            monkeypatch.setattr(model.config, "output_hidden_states", True)
            steps.clear()
            assert len(self.logits(model).hidden_states) == tiny.LAYERS + 1
        assert not steps

    def test_other_kinds_of_cache(self, steps: list[int]) -> None:
        model, mask = tiny.model("llama"), torch.ones(1, 9, dtype=torch.int64)
        options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
        expected = model.generate(tiny.text(1, 9), **options)
        with stepping(model):
            steps.clear()
            found = model.generate(tiny.text(1, 9), cache_implementation="static", **options)
        assert torch.equal(found, expected)
        assert not steps

    def test_parameters_of_another_type_than_the_head(self) -> None:
        """The kernels are told one type: to read others as that type would go beyond their end."""
        model = tiny.build("llama")
        model.model.norm.to(torch.bfloat16)
        decoder = family_of(model).decoder
        assert decoder is not None
        with pytest.raises(UndescribedError, match="beside others"):
            Step(decoder(model), [feed_forward(ffn) for ffn in find_ffns(model)])


def strides(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: parameter.stride() for name, parameter in model.named_parameters()}


class TestDetaching:
    @pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
    @pytest.mark.parametrize("name", ["llama", "opt"])
    def test_weights_come_back_with_their_strides(self, name: str, error: BaseException | None) -> None:
        model = tiny.build(name)
        odd = find_ffns(model)[1].down.weight
        odd.data = nn.functional.pad(odd.data, (0, 3))[:, : odd.shape[1]]  # rows apart
        before, laid = state(model), strides(model)

        def body() -> None:
            with stepping(model, tda.Griffin(), execution="indexed") as run:
                step_logits(model, prefill(model, tiny.text(1, 9)).cache, tiny.text(1, 2))
                assert run.execution == "indexed"
                assert strides(model) != laid
                if error is not None:
                    raise error

        if error is None:
            body()
        else:
            with pytest.raises(type(error)):
                body()
        same(before, state(model))
        assert strides(model) == laid

    def test_an_interrupt_while_one_layer_is_put_back_leaves_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny.build("llama")
        before, laid = state(model), strides(model)

        def lay(*linears: Linear, weights: Weights) -> Callable[[], None]:
            undo = lay_rows(*linears, weights=weights)

            def interrupted() -> None:
                undo()
                raise KeyboardInterrupt

            return interrupted

        monkeypatch.setattr("tda.engine.backends.base.lay_rows", lay)
        with pytest.raises(KeyboardInterrupt), stepping(model, tda.Griffin(), execution="indexed"):
            pass
        same(before, state(model))
        assert strides(model) == laid
        with stepping(model):
            pass

    def test_what_a_layout_changes_is_only_the_layout(self) -> None:
        linear = nn.Linear(53, 24)
        before, pointer = linear.weight.detach().clone(), linear.weight
        undo = lay_rows(Linear(linear))
        assert linear.weight is pointer
        assert linear.weight.stride() == (1, 24)
        assert torch.equal(linear.weight, before)
        undo()
        assert linear.weight.stride() == (53, 1)
        assert torch.equal(linear.weight, before)

    def test_rows_that_are_read_together_lie_together(self) -> None:
        gate, up, down = nn.Linear(24, 53), nn.Linear(24, 53), nn.Linear(53, 20)
        before = [linear.weight.detach().clone() for linear in (gate, up, down)]
        undo = lay_rows(*map(Linear, (down, gate, up)))
        assert [linear.weight.stride() for linear in (gate, up, down)] == [(68, 1), (68, 1), (1, 68)]
        start = gate.weight.data_ptr()
        assert up.weight.data_ptr() == start + 24 * 4
        assert down.weight.data_ptr() == start + 48 * 4
        assert all(map(torch.equal, before, (gate.weight, up.weight, down.weight)))
        up.weight = nn.Parameter(before[1].clone())
        replaced = up.weight.data_ptr()
        undo()
        assert [linear.weight.stride() for linear in (gate, up, down)] == [(24, 1), (24, 1), (53, 1)]
        assert up.weight.data_ptr() == replaced
        assert all(map(torch.equal, before, (gate.weight, up.weight, down.weight)))

    @pytest.mark.parametrize(("method", "together"), [(tda.Griffin(), 3), (tda.CATS(), 2), (tda.TT(), 1)])
    def test_only_what_a_method_leaves_out_lies_together(self, method: Method, together: int) -> None:
        """What is read in full stays a matrix of its own: rows that follow each other stream best."""
        model = tiny.build("llama")
        with stepping(model, method, thresholds=tiny.thresholds("llama", method), execution="indexed"):
            ffn = find_ffns(model)[0]
            held = {linear.weight.untyped_storage().data_ptr() for linear in ffn.linears}
        assert len(held) == 4 - together

    def test_an_unknown_activation_in_a_later_layer_runs_compact(self) -> None:
        model = tiny.build("llama")
        find_ffns(model)[1].block.act_fn = nn.Tanh()
        with torch.no_grad(), tda.attach(model, tda.Griffin()) as run:
            assert run.attachment.decoding.execution == "compact"
            assert "Tanh" in run.backend

    def test_a_gate_in_columns_runs_compact(self) -> None:
        model = tiny.build("llama")
        lay_rows(find_ffns(model)[0].gate)
        with torch.no_grad(), tda.attach(model, tda.Griffin()) as run:
            assert run.attachment.decoding.execution == "compact"
            assert "not contiguous" in run.backend
