"""What a researcher does to a cache, a batch or a loop of his own: the sets are from the whole prompt, or it is said.

A fresh prefill of the whole prompt, alone, is the measure: its sets are what every other way must select.
"""

import copy
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import QuantizedLayer

import tda
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.engine.run import Run
from tda.engine.transformers_api import given_cache

GRIFFIN = tda.Griffin(sparsity=0.5)
MODELS = ("llama", "opt", "mistral-window", "gemma2")
PREFIX = tiny.text(1, 20, seed=1)
SUFFIXES = [tiny.text(1, count, seed=2 + count) for count in (7, 1, 12)]
WHOLE = [torch.cat([PREFIX, suffix], 1) for suffix in SUFFIXES]
NEW = 5

Sets = list[Tensor]
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    """Transformers renames an argument in these versions; that is not ours to judge."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
        yield


@contextmanager
def attached(model: Any, method: Method = GRIFFIN, **options: Any) -> Iterator[Run]:
    with tda.attach(model, method, **options) as run:
        yield run


@functools.cache
def twin(name: str) -> Any:
    """An equal model, to be attached beside the one under test."""
    return tiny.build(name)


@functools.cache
def alone(name: str, row: int) -> Sets:
    """The sets of a whole prompt that is prefilled by itself."""
    with attached(twin(name)) as run:
        prefill(twin(name), WHOLE[row])
        return run.selection()


@functools.cache
def written(name: str, row: int) -> Tensor:
    """What greedy generation writes after a whole prompt that is given by itself: int64 [1, NEW]."""
    with attached(twin(name)):
        return generate(twin(name), WHOLE[row])


def generate(model: Any, prompt: Tensor, **options: Any) -> Tensor:
    """New tokens of greedy generation: int64 [B, G]."""
    output: Tensor = model.generate(prompt, **{"max_new_tokens": NEW, "do_sample": False, **options})
    return output[:, prompt.shape[1] :]


def filled(model: Any, run: Run, prompt: Tensor = PREFIX) -> Any:
    """A cache that a prompt was prefilled into, inside."""
    cache = tiny.new_cache(model)
    with run.prefill():
        model(prompt, **tiny.on(model, cache))
    return cache


def same(found: Sets, expected: Sets) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def stacked(name: str, rows: Sequence[int]) -> Sets:
    return [torch.cat(layer) for layer in zip(*(alone(name, row) for row in rows), strict=True)]


class TestSharedPrefix:
    @each_model
    @pytest.mark.parametrize("given", ["whole", "suffix"])
    def test_a_copied_cache_continues_its_prompt(self, name: str, given: str) -> None:
        """The prefix is prefilled once; each copy goes on with a suffix of its own, also beside the others."""
        model = tiny.model(name)
        with attached(model) as run:
            cache = filled(model, run)
            for row, whole in enumerate(WHOLE):
                mask = torch.ones_like(whole)
                prompt = whole if given == "whole" else SUFFIXES[row]
                new = generate(model, prompt, attention_mask=mask, **tiny.on(model, copy.deepcopy(cache)))
                assert same(run.selection(), alone(name, row))
                assert torch.equal(new, written(name, row))

    @each_model
    def test_copies_of_copies_and_the_cache_itself_do_not_disturb_each_other(self, name: str) -> None:
        model = tiny.model(name)
        with attached(model) as run:
            cache = filled(model, run)
            first = copy.deepcopy(cache)
            second = copy.deepcopy(first)
            for held, row in ((second, 0), (first, 1), (cache, 2)):
                with run.prefill():
                    decode(model, SUFFIXES[row], held)
            for held, row in ((cache, 2), (second, 0), (first, 1)):
                decode(model, tiny.text(1, 1), held)
                assert same(run.selection(), alone(name, row))

    @each_model
    def test_a_prefix_that_is_repeated_for_a_batch(self, name: str) -> None:
        model, rows = tiny.model(name), [torch.cat([PREFIX, tiny.text(1, 7, seed=seed)], 1) for seed in (5, 6, 7)]
        with attached(model) as run:
            cache = filled(model, run)
            cache.batch_repeat_interleave(3)
            new = generate(model, torch.cat(rows), **tiny.on(model, cache))
            together = run.selection()
            for row, whole in enumerate(rows):
                assert torch.equal(new[row : row + 1], generate(model, whole))
                assert same([layer[row : row + 1] for layer in together], run.selection())

    def test_a_prefix_before_attach_is_refused_before_anything_is_computed(self) -> None:
        model = tiny.model("llama")
        cache = prefill(model, PREFIX).cache
        with attached(model) as run:
            for use in (
                lambda: generate(model, WHOLE[0], **tiny.on(model, cache)),
                lambda: generate(model, WHOLE[0], **tiny.on(model, copy.deepcopy(cache))),
                lambda: decode(model, SUFFIXES[0], cache),
                lambda: told(run, lambda: decode(model, SUFFIXES[0], cache)),
            ):
                with pytest.raises(ValueError, match=r"20 tokens that did not pass .*run\.prefill\(\)"):
                    use()
                assert cache.get_seq_length() == 20

    def test_a_cache_of_another_attach_is_not_known(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            cache = filled(model, run)
            copied = copy.deepcopy(cache)
        with attached(model):
            for held in (cache, copied):
                with pytest.raises(ValueError, match="did not pass through this attached model"):
                    decode(model, SUFFIXES[0], held)

    def test_methods_without_a_statistic_take_any_cache(self) -> None:
        """What they keep does not depend on the prompt."""
        model, method = tiny.model("llama"), tda.TT(sparsity=0.5)
        cache = prefill(model, PREFIX).cache
        with attached(model, method, thresholds=tiny.thresholds("llama", method)) as run:
            decode(model, tiny.text(1, 1), cache)
            assert 0.2 < run.achieved_sparsity()[0] < 0.8
        with attached(model, tda.Magnitude(sparsity=0.5)) as run:
            decode(model, tiny.text(1, 1), cache)
            assert run.achieved_sparsity()[0] == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("method", [tda.Magnitude(sparsity=0.5), tda.TT(sparsity=0.5), tda.Dense()])
    def test_methods_without_a_statistic_take_any_rows(self, method: Method) -> None:
        model = tiny.model("llama")
        with attached(model, method, thresholds=tiny.thresholds("llama", method)) as run:
            cache = filled(model, run)
            decode(model, tiny.text(1, 1), cache)
            cache.batch_repeat_interleave(3)
            decode(model, tiny.text(3, 1), cache)
            assert [layer.shape for layer in run.selection()] == [(3, tiny.F)] * tiny.LAYERS

    def test_a_prompt_that_the_cache_holds_whole_is_refused(self) -> None:
        """Transformers would feed it a second time."""
        model = tiny.model("llama")
        with attached(model) as run:
            cache = filled(model, run)
            with pytest.raises(ValueError, match=r"cache holds 20 .*prompt has 20"):
                generate(model, PREFIX, **tiny.on(model, cache))

    def test_nothing_is_left_on_a_cache(self) -> None:
        model = tiny.model("llama")
        before = set(vars(tiny.new_cache(model)))
        with attached(model) as run:
            cache = filled(model, run)
        assert set(vars(cache)) == before


def told(run: Run, call: Callable[[], Any]) -> Any:
    with run.prefill():
        return call()


class TestSurroundings:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("when", ["before attach", "inside"])
    def test_another_default_type(self, dtype: torch.dtype, when: str) -> None:
        """The kernels sum in float32, whatever torch makes of a tensor whose type nobody says."""
        model, expected = tiny.model("llama"), alone("llama", 0)
        try:
            if when == "before attach":
                torch.set_default_dtype(dtype)
            with attached(model) as run:
                torch.set_default_dtype(dtype)
                cache = filled(model, run, WHOLE[0])
                decode(model, tiny.text(1, 1), cache)
                assert same(run.selection(), expected)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_a_prefix_under_inference_mode(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            with torch.inference_mode():
                cache = filled(model, run)
            generate(model, WHOLE[0], **tiny.on(model, cache))
            assert same(run.selection(), alone("llama", 0))

    def test_sets_that_do_not_fit_are_not_imposed(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            good = [torch.ones(1, tiny.F, dtype=torch.bool) for _ in range(tiny.LAYERS)]
            for wrong in (good[:1], [layer.float() for layer in good], [layer[:, 1:] for layer in good]):
                with pytest.raises(ValueError, match="expected a bool tensor"):
                    run.attachment.policy.set_selection(wrong)
            run.attachment.policy.set_selection(good)
            cache = filled(model, run, torch.cat([PREFIX, PREFIX]))
            with pytest.raises(ValueError, match=r"imposed .*1 rows, .*2"):
                decode(model, tiny.text(2, 1), cache)


class TestChangedCaches:
    def test_cropping_generated_tokens_keeps_the_selection(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            cache = tiny.new_cache(model)
            new = generate(model, WHOLE[0], **tiny.on(model, cache))
            cache.crop(-2)  # what is left: the prompt and the first two of the tokens that were fed
            logits = decode(model, new[:, 2:3], cache)
            assert same(run.selection(), alone("llama", 0))
            assert int(logits[0, -1].argmax()) == int(new[0, 3])

    @pytest.mark.parametrize("kept", [1, 19, 20, 26])
    def test_cropping_prompt_tokens_is_refused_by_name(self, kept: int) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            cache = tiny.new_cache(model)
            generate(model, WHOLE[0], **tiny.on(model, cache))
            cache.crop(kept - cache.get_seq_length())
            for use in (
                lambda: generate(model, WHOLE[2], **tiny.on(model, cache)),
                lambda: told(run, lambda: decode(model, SUFFIXES[1], cache)),
                lambda: decode(model, SUFFIXES[1], cache),
            ):
                with pytest.raises(ValueError, match=f"cropped to {kept} of the 27 prompt tokens.*deepcopy"):
                    use()

    def test_a_cache_that_is_cropped_to_nothing_is_new(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            cache = tiny.new_cache(model)
            generate(model, WHOLE[0], **tiny.on(model, cache))
            cache.crop(-cache.get_seq_length())
            generate(model, WHOLE[1], **tiny.on(model, cache))
            assert same(run.selection(), alone("llama", 1))

    @each_model
    @pytest.mark.parametrize("execution", ["auto", "masked", "compact"])
    def test_rows_that_move_take_their_sets_along(self, name: str, execution: Any) -> None:
        model, order = tiny.model(name), [2, 0, 0, 1]
        tokens, mask = tiny.padded([whole[0] for whole in WHOLE])
        seen = torch.cat([mask[order], torch.ones(4, 1, dtype=torch.bool)], 1)
        with attached(model, execution=execution) as run:
            with run.prefill():
                cache = prefill(model, tokens, mask).cache
            cache.batch_select_indices(torch.tensor(order))
            logits = decode(model, tiny.text(1, 1).expand(4, 1), cache, seen)
            assert same(run.selection(), stacked(name, order))
            torch.testing.assert_close(logits[1], logits[2])
            for row, source in enumerate(order):
                held = filled(model, run, WHOLE[source])
                expected = decode(model, tiny.text(1, 1), held)[0]
                torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)

    def test_the_last_token_of_a_turn_moves_along(self) -> None:
        """Rows of one prompt whose samples differ: what was generated is no prompt in the next turn, in any order."""
        model, prompts = tiny.model("llama"), WHOLE[0].expand(2, -1)
        with attached(model) as run:
            cache = tiny.new_cache(model)
            torch.manual_seed(3)
            sequences = model.generate(prompts, max_new_tokens=NEW, do_sample=True, **tiny.on(model, cache))
            assert sequences[0, -1] != sequences[1, -1]
            cache.reorder_cache(torch.tensor([1, 0]))
            turn = torch.cat([sequences[[1, 0]], SUFFIXES[2].expand(2, -1)], 1)
            generate(model, turn, **tiny.on(model, cache))
            assert run.attachment.requests.last is not None
            assert run.attachment.requests.last.prompt().tokens.tolist() == [27 + 12] * 2

    def test_rows_that_move_between_turns_and_after_decode(self) -> None:
        model, second = tiny.model("llama"), tiny.text(3, 4, seed=8)
        rows = tiny.text(3, 9, seed=9)
        with attached(model) as run:
            with run.prefill():
                cache = prefill(model, rows).cache
            decode(model, tiny.text(3, 1), cache)
            cache.reorder_cache(torch.tensor([1, 2, 0]))
            with run.prefill():
                decode(model, second, cache)
            moved = run.selection()
            with run.prefill():
                cache = prefill(model, rows[[1, 2, 0]]).cache
            decode(model, tiny.text(3, 1), cache)
            with run.prefill():
                decode(model, second, cache)
            # The decoded token before the turn is another row's, and the layers above see that; the lowest do not.
            assert torch.equal(moved[0], run.selection()[0]) or (moved[0] ^ run.selection()[0]).sum() <= 6

    @pytest.mark.parametrize("in_place", [False, True])
    def test_keys_that_another_hand_has_changed_are_told(self, in_place: bool) -> None:
        """They may be rounded, or another prompt's: what the tokens are cannot be seen."""
        model = tiny.model("llama")
        with attached(model) as run:
            one, other = filled(model, run, WHOLE[0]), filled(model, run, WHOLE[0].flip(1))
            for mine, theirs in zip(one.layers, other.layers, strict=True):
                if in_place:
                    mine.keys.copy_(theirs.keys)
                else:
                    mine.keys, mine.values = theirs.keys, theirs.values
            with pytest.warns(UserWarning, match=r"keys of the cache .*prefill"):
                decode(model, tiny.text(1, 1), one)
            decode(model, tiny.text(1, 1), one)
            assert same(run.selection(), alone("llama", 0))

    def test_rows_of_another_cache_are_refused(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            one, other = filled(model, run, WHOLE[0]), filled(model, run, tiny.text(2, 27, seed=50))
            for mine, theirs in zip(one.layers, other.layers, strict=True):
                mine.keys, mine.values = theirs.keys, theirs.values
            with pytest.raises(ValueError, match=r"cache was of 1 rows .* 2\b"):
                decode(model, tiny.text(2, 1), one)

    def test_a_cache_that_grew_elsewhere_is_refused(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            cache = filled(model, run)
            with pytest.warns(UserWarning, match=r"part of the model .*by itself"):
                model.model(SUFFIXES[0], **tiny.on(model, cache))
            with pytest.raises(ValueError, match="holds 27 tokens, of which 20 passed"):
                decode(model, tiny.text(1, 1), cache)

    @pytest.mark.parametrize("when", ["within the forward", "after the forward"])
    def test_a_compressed_cache_stands_for_its_whole_prompt(self, when: str) -> None:
        """Methods that prune keys keep the request; its decode steps are sparse from the first."""
        model, kept = tiny.build("llama"), torch.tensor([0, 3, 9, 17, 26])

        def prune(cache: Any) -> None:
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]

        if when == "within the forward":
            prune_in_prefill(model, kept)
        with attached(model) as run:
            cache = filled(model, run, WHOLE[0])
            if when == "after the forward":
                prune(cache)
            assert cache.get_seq_length() == 5
            for step in range(2):
                model(tiny.text(1, 1), position_ids=torch.tensor([[27 + step]]), **tiny.on(model, cache))
                assert same(run.selection(), alone("llama", 0))
            assert run.achieved_sparsity() == pytest.approx([0.5, 0.5], abs=0.02)

    def test_a_compressed_cache_in_generate(self) -> None:
        """The cache is shorter than the prompt: what it says must not make decode steps prompt."""
        model = tiny.build("llama")

        prune_in_prefill(model, torch.arange(0, 27, 3))
        with attached(model) as run:
            generate(model, WHOLE[0], attention_mask=None)
            assert same(run.selection(), alone("llama", 0))
            assert run.achieved_sparsity() == pytest.approx([0.5, 0.5], abs=0.02)


def prune_in_prefill(model: Any, kept: Tensor) -> None:
    """Let a prompt's pass keep only some keys, by a hook on the attention, as libraries of key pruning do."""

    def prune(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        cache = given_cache(kwargs)
        if cache is not None and kwargs["hidden_states"].shape[1] > 1:
            layer = cache.layers[module.layer_idx]
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(prune, with_kwargs=True)


class ExactLayer(QuantizedLayer):
    """A quantised layer of a cache whose bits are enough for everything."""

    def __init__(self) -> None:
        super().__init__(residual_length=4)

    def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
        return tensor.double()

    def _dequantize(self, q_tensor: Tensor) -> Tensor:
        return q_tensor.float()


class TestKindsOfCache:
    @each_model
    @pytest.mark.parametrize("implementation", ["dynamic", "static"])
    def test_an_implementation_by_name(self, name: str, implementation: str) -> None:
        model = tiny.model(name)
        with attached(model) as run:
            for row, whole in enumerate(WHOLE):
                new = generate(model, whole, cache_implementation=implementation)
                assert same(run.selection(), alone(name, row))
                assert torch.equal(new, written(name, row))

    @pytest.mark.parametrize("name", ["llama", "opt"])
    def test_a_quantised_cache(self, name: str) -> None:
        model = tiny.model(name)
        with attached(model) as run:
            for row, whole in enumerate(WHOLE):
                cache = Cache(layer_class_to_replicate=ExactLayer)
                new = generate(model, whole, **tiny.on(model, cache))
                assert same(run.selection(), alone(name, row))
                assert torch.equal(new, written(name, row))

    @pytest.mark.skipif(not hasattr(ExactLayer(), "_pending_beam_idx"), reason="this transformers moves a part of it")
    @pytest.mark.parametrize("steps", [0, 1, 3, 4])
    def test_rows_that_move_in_a_quantised_cache(self, steps: int) -> None:
        """It moves them with the next forward; after four tokens it has nothing to show meanwhile."""
        model, rows, order = tiny.model("llama"), tiny.text(3, 9, seed=9), torch.tensor([1, 2, 0])
        with attached(model) as run:
            cache = Cache(layer_class_to_replicate=ExactLayer)
            with run.prefill():
                model(rows, **tiny.on(model, cache))
            before = run.selection()
            for _ in range(steps):
                decode(model, tiny.text(3, 1), cache)
            cache.reorder_cache(order)
            decode(model, tiny.text(3, 1), cache)
            assert same(run.selection(), [layer[order] for layer in before])

    def test_a_cache_of_the_callers_that_returns_in_a_tuple(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:
            output = model(WHOLE[0], return_dict=False)
            cache = next(part for part in output if isinstance(part, DynamicCache))
            model(tiny.text(1, 1), return_dict=False, **tiny.on(model, cache))
            assert same(run.selection(), alone("llama", 0))


class TestWarnedOf:
    """A plain forward is dense by definition: never without a word, and never with one where it is not so."""

    method_cases = pytest.mark.parametrize("method", [GRIFFIN, tda.TT(sparsity=0.5)], ids=lambda m: m.name)

    @method_cases
    @pytest.mark.parametrize("options", [{"use_cache": False}, {"use_cache": False, "labels": PREFIX}])
    def test_a_forward_without_a_cache(self, method: Method, options: Any) -> None:
        model = tiny.model("llama")
        with (
            attached(model, method, thresholds=tiny.thresholds("llama", method)),
            pytest.warns(UserWarning, match="1 prompt was run.*dense.*tda.score"),
        ):
            model(PREFIX, **options)

    def test_a_model_whose_configuration_has_no_cache(self) -> None:
        model = tiny.build("llama", use_cache=False)
        with attached(model), pytest.warns(UserWarning, match="1 prompt was run"):
            model(PREFIX)

    @method_cases
    def test_a_perplexity_loop(self, method: Method) -> None:
        """Told while the loop runs, once."""
        model, thresholds = tiny.model("llama"), tiny.thresholds("llama", method)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with attached(model, method, thresholds=thresholds):
                for row in range(4):
                    model(WHOLE[0], labels=WHOLE[0])
                    assert len(caught) == min(row, 1)
        assert len(caught) == 1
        assert "dense" in str(caught[0].message)

    def test_a_single_forward_at_the_end(self) -> None:
        model = tiny.model("llama")
        with pytest.warns(UserWarning, match="1 prompt was run.*what came out is dense"), attached(model):
            output = model(PREFIX)
        assert output.logits.isfinite().all()

    def test_a_part_of_the_model_by_itself(self) -> None:
        for call in (
            lambda model: model.model(PREFIX),
            lambda model: model.model.layers[0].mlp(torch.zeros(1, 2, tiny.D)),
        ):
            model = tiny.model("llama")
            with attached(model), pytest.warns(UserWarning, match=r"part of the model .*by itself"):
                call(model)

    @method_cases
    def test_a_chunk_that_nobody_tells(self, method: Method) -> None:
        """Several tokens on a filled cache may be prompt, or text to be scored: it is told once for what they pass."""
        model, thresholds = tiny.model("llama"), tiny.thresholds("llama", method)
        with attached(model, method, thresholds=thresholds) as run:
            cache = filled(model, run)
            with pytest.warns(UserWarning, match=r"7 tokens .*cache.*run\.prefill\(\).*run\.decode\(\)"):
                decode(model, SUFFIXES[0], cache)
            decode(model, SUFFIXES[0], cache)
        with attached(model, method, thresholds=thresholds) as run:
            cache = filled(model, run)
            with run.prefill():
                decode(model, SUFFIXES[0], cache)
            with run.decode():
                decode(model, SUFFIXES[0], cache)
            assert run.attachment.counter.tokens.tolist() == [7.0, 7.0]

    def test_what_is_decoded_told_or_looked_at_is_not_warned_of(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run:  # warnings are errors
            first = model(PREFIX)
            second = model(WHOLE[0])
            for output in (first, second):
                model(tiny.text(1, 1), **tiny.on(model, cache_of(output)))
            model(WHOLE[1])
            assert run.selection()
            with run.prefill():
                model(PREFIX, use_cache=False)
            generate(model, PREFIX, max_new_tokens=1)
        with attached(model, tda.Dense()):
            model(PREFIX, labels=PREFIX)
        with attached(model, tda.Griffin(sparsity=0)):
            model(PREFIX, labels=PREFIX)

    def test_an_error_is_not_followed_by_a_warning(self) -> None:
        model = tiny.model("llama")
        with pytest.raises(IndexError), attached(model):
            model(PREFIX).logits[0, PREFIX.shape[1]]


def cache_of(output: Any) -> Any:
    return getattr(output, "cache", None) or output.past_key_values


class TestGenerate:
    @pytest.mark.parametrize("name", ["generate_batch", "init_continuous_batching"])
    def test_continuous_batching_is_refused_by_name(self, name: str) -> None:
        model = tiny.model("llama")
        with attached(model), pytest.raises(ValueError, match="continuous batching packs"):
            getattr(model, name)([[1, 2, 3]])

    def test_a_step_of_many_guesses_is_refused(self) -> None:
        model = tiny.model("llama")
        for options in ({"assistant_model": tiny.model("opt")}, {"prompt_lookup_num_tokens": 2}, {"use_mtp": True}):
            with attached(model), pytest.raises(ValueError, match="assisted generation"):
                generate(model, PREFIX, **options)

    def test_guidance_has_a_second_request_whose_steps_are_sparse_too(self) -> None:
        model = tiny.model("llama")
        with attached(model, execution="masked") as run:
            guided = generate(model, WHOLE[0], guidance_scale=1.5)
            assert run.achieved_sparsity() == pytest.approx([0.5, 0.5], abs=0.02)
            # Each is a prompt of its own: the prompt, and its last token alone.
            whole, last = filled(model, run, WHOLE[0]), filled(model, run, WHOLE[0][:, -1:])
            with run.prefill():
                scores = [prefill(model, WHOLE[0]).logits[:, -1], prefill(model, WHOLE[0][:, -1:]).logits[:, -1]]
            expected = []
            for _ in range(NEW):
                conditional, unconditional = (score.log_softmax(-1) for score in scores)
                token = (1.5 * (conditional - unconditional) + unconditional).argmax(-1, keepdim=True)
                expected.append(token)
                scores = [decode(model, token, held)[:, -1] for held in (whole, last)]
        assert torch.equal(guided, torch.cat(expected, 1))

    def test_several_samples_of_each_prompt(self) -> None:
        model = tiny.model("llama")
        tokens, mask = tiny.padded([whole[0] for whole in WHOLE])
        with attached(model) as run:
            torch.manual_seed(0)
            generate(model, tokens, attention_mask=mask.long(), do_sample=True, num_return_sequences=2)
            assert same(run.selection(), stacked("llama", [0, 0, 1, 1, 2, 2]))

    @pytest.mark.parametrize("beams", [2, 3])
    def test_beams_share_the_set_of_their_prompt(self, beams: int) -> None:
        model = tiny.model("llama")
        tokens, mask = tiny.padded([whole[0] for whole in WHOLE])
        with attached(model) as run:
            generate(model, tokens, attention_mask=mask.long(), num_beams=beams)
            assert same(run.selection(), stacked("llama", [row for row in (0, 1, 2) for _ in range(beams)]))

    def test_a_search_that_copies_rows_of_the_cache(self) -> None:
        """As contrastive search: candidates are tried in a batch, and the cache keeps the one that was taken."""
        model = tiny.model("llama")

        def contrastive(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
            cache = tiny.new_cache(model)
            logits = model(input_ids, **tiny.on(model, cache)).logits[:, -1]
            for _ in range(4):
                candidates = logits.topk(3).indices  # [1, 3]
                cache.batch_repeat_interleave(3)
                tried = model(candidates.view(-1, 1), **tiny.on(model, cache)).logits[:, -1]
                best = tried.max(-1).values.argmax()
                cache.batch_select_indices(best.view(1))
                logits, input_ids = tried[best].view(1, -1), torch.cat([input_ids, candidates[:, best].view(1, 1)], 1)
            return input_ids

        with attached(model) as run:
            found = contrastive(model, WHOLE[0])
            assert same(run.selection(), stacked("llama", [0, 0, 0]))
            through = model.generate(WHOLE[0], custom_generate=contrastive, max_new_tokens=4)
            assert torch.equal(found, through)
            assert same(run.selection(), stacked("llama", [0, 0, 0]))
        with attached(model, execution="masked"):
            assert torch.equal(found, contrastive(model, WHOLE[0]))

    def test_a_pipeline(self) -> None:
        from transformers import pipeline

        model, tokenizer = tda.load_model("ref:swiglu")
        text = "the small dog ran to the old house and"
        with attached(model) as run:
            writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
            piped = writer(text, max_new_tokens=6, do_sample=False, return_full_text=False)[0]["generated_text"]
            selection = run.selection()
            ids = tokenizer(text, return_tensors="pt").input_ids
            new = generate(model, ids, max_new_tokens=6)
            assert same(selection, run.selection())
            assert run.achieved_sparsity() == pytest.approx([0.5] * len(selection), abs=0.01)
        assert piped == tokenizer.decode(new[0], skip_special_tokens=True)

    def test_forward_called_by_name(self) -> None:
        """`model.forward(...)`, as wrappers of models call it, which runs no hooks."""
        model = tiny.model("llama")
        with attached(model) as run:
            cache = tiny.new_cache(model)
            model.forward(WHOLE[0], **tiny.on(model, cache))
            model.forward(tiny.text(1, 1), **tiny.on(model, cache))
            assert same(run.selection(), alone("llama", 0))

    def test_a_prompt_that_fails_on_its_way_is_not_counted(self) -> None:
        """Its tokens are in a part of the layers: the cache is refused, and a new one begins anew."""
        model = tiny.build("llama")

        def strike(*args: Any) -> None:
            raise IndexError

        with attached(model) as run:
            cache = tiny.new_cache(model)
            handle = model.model.layers[1].register_forward_pre_hook(strike)
            with pytest.raises(IndexError), run.prefill():
                model(WHOLE[0], **tiny.on(model, cache))
            handle.remove()
            with pytest.raises(ValueError, match="did not pass through"), run.prefill():
                model(WHOLE[0], **tiny.on(model, cache))
            handle = model.model.embed_tokens.register_forward_pre_hook(strike)
            cache = tiny.new_cache(model)
            with pytest.raises(IndexError), run.prefill():
                model(WHOLE[1], **tiny.on(model, cache))
            handle.remove()
            with run.prefill():
                model(WHOLE[0], **tiny.on(model, cache))
            assert run.attachment.requests.last is not None
            assert run.attachment.requests.last.prompt().tokens.tolist() == [27]
            assert same(run.selection(), alone("llama", 0))

    def test_forwards_of_two_threads_are_refused(self) -> None:
        """One thread at a time may run the model, as with a streamer; two would share a phase and a selection."""
        model, errors, entered = tiny.build("llama"), [], threading.Event()
        go_on = threading.Event()

        def wait(*args: Any) -> None:
            entered.set()
            go_on.wait(10)

        with attached(model) as run:
            model.model.norm.register_forward_pre_hook(wait)
            thread = threading.Thread(target=lambda: generate(model, WHOLE[0]))
            thread.start()
            assert entered.wait(10)
            for use in (lambda: model(PREFIX), lambda: generate(model, PREFIX)):
                with pytest.raises(ValueError, match="in another thread") as caught:
                    use()
                errors.append(caught.value)
            go_on.set()
            thread.join()
            assert same(run.selection(), alone("llama", 0))
        assert len(errors) == 2

    def test_generate_within_generate(self) -> None:
        model = tiny.model("llama")

        def inner(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
            found: Tensor = model.generate(input_ids, max_new_tokens=NEW, do_sample=False)
            return found

        with attached(model) as run:
            found = model.generate(WHOLE[0], custom_generate=inner, max_new_tokens=NEW)
            assert same(run.selection(), alone("llama", 0))
        assert torch.equal(found[:, WHOLE[0].shape[1] :], written("llama", 0))

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: model.half(),
            lambda model: model.to("cpu", torch.bfloat16),
            lambda model: copy.deepcopy(model),
            lambda model: model.load_state_dict(model.state_dict()),
            lambda model: model.resize_token_embeddings(80),
        ],
        ids=["half", "to", "deepcopy", "load_state_dict", "resize"],
    )
    def test_a_model_is_not_changed_while_a_method_reads_its_weights(self, change: Callable[[Any], Any]) -> None:
        model = tiny.build("llama")
        with attached(model), pytest.raises(ValueError, match="leave the `with` block, then"):
            change(model)
        change(model)

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: setattr(model, "lm_head", torch.nn.Linear(tiny.D, tiny.VOCABULARY)),
            lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight * 0.5)),
            lambda model: setattr(model.model.layers[1], "mlp", model.model.layers[0].mlp),
            lambda model: setattr(model.model, "layers", model.model.layers[:1]),
        ],
        ids=["head", "weight", "mlp", "layers"],
    )
    def test_parts_of_a_model_are_not_replaced_while_a_method_is_attached(self, change: Callable[[Any], Any]) -> None:
        """Adapters come as other parts: a step that has been prepared would run without them."""
        model = tiny.build("llama")
        with attached(model) as run:
            cache = filled(model, run)
            with pytest.raises(ValueError, match="leave the `with` block, then"):
                change(model)
            change(tiny.build("llama"))  # another model's may be
            decode(model, tiny.text(1, 1), cache)
        change(model)

    @pytest.mark.parametrize("part", ["lm_head", "model.layers.1.mlp.up_proj", "model.norm"])
    def test_weights_that_lie_elsewhere_are_not_read(self, part: str) -> None:
        model = tiny.build("llama")
        with attached(model) as run:
            cache = filled(model, run)
            parameter = model.get_submodule(part).weight
            kept, parameter.data = parameter.data, parameter.data * 0.5
            with pytest.raises(ValueError, match="leave the `with` block, then"):
                decode(model, tiny.text(1, 1), cache)
            parameter.data = kept
            decode(model, tiny.text(1, 1), cache)

    def test_generate_within_a_told_phase_is_refused(self) -> None:
        model = tiny.model("llama")
        with attached(model) as run, run.prefill(), pytest.raises(ValueError, match="call it outside"):
            generate(model, PREFIX)

    def test_what_the_generation_config_says_now_counts(self) -> None:
        model = tiny.build("llama")
        with attached(model):
            model.generation_config.use_cache = False
            with pytest.raises(ValueError, match="key-value cache"):
                model.generate(PREFIX, max_new_tokens=2)

    @pytest.mark.parametrize("first", ["guidance", "embeddings", "by hand"])
    def test_the_last_generated_token_is_no_prompt_of_the_next_turn(self, first: str) -> None:
        model, more = tiny.model("llama"), SUFFIXES[0]
        with attached(model) as run:
            cache = tiny.new_cache(model)
            options = {"guidance_scale": 1.5} if first == "guidance" else {}
            if first == "embeddings":
                embeds = model.get_input_embeddings()(PREFIX)
                new = model.generate(inputs_embeds=embeds, max_new_tokens=NEW, do_sample=False, **tiny.on(model, cache))
            else:
                new = generate(model, PREFIX, **options, **tiny.on(model, cache))
            turn = torch.cat([new[:, -1:], more], 1)
            if first == "by hand":  # it is decoded, and the next turn begins with an equal token, which is prompt
                decode(model, new[:, -1:], cache)
            with run.prefill():
                decode(model, turn, cache)
            assert run.attachment.requests.last is not None
            assert run.attachment.requests.last.prompt().tokens.tolist() == [20 + 7 + (first == "by hand")]

    def test_a_mask_that_is_shorter_than_what_is_cached(self) -> None:
        """Transformers masks what it does not cover; a whole step would see it."""
        model, found = tiny.model("llama"), []
        for execution in ("auto", "masked"):
            with attached(model, execution=execution) as run:
                cache = filled(model, run)
                mask = torch.ones(1, 5, dtype=torch.int64)
                found.append(model(tiny.text(1, 1), attention_mask=mask, **tiny.on(model, cache)).logits)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

    def test_generate_that_fails_leaves_no_trace(self) -> None:
        model = tiny.model("llama")

        class Failing(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
                raise KeyError("enough")

        with attached(model) as run:
            with pytest.raises(KeyError):
                generate(model, WHOLE[1], stopping_criteria=StoppingCriteriaList([Failing()]), prefill_chunk_size=3)
            cache = tiny.new_cache(model)
            model(WHOLE[0], **tiny.on(model, cache))
            decode(model, tiny.text(1, 1), cache)
            assert same(run.selection(), alone("llama", 0))
            assert run.achieved_sparsity() == pytest.approx([0.5, 0.5], abs=0.02)


class TestEndedRows:
    """What a row is fed after it has ended is padding, and no decode step of it."""

    def check(self, lengths: Sequence[int], method: Method = tda.CATS(sparsity=0.5), **options: Any) -> None:  # noqa: B008
        """The mean over a batch is that of its rows alone, each weighted by the steps until it ended."""
        model, thresholds = tiny.model("llama"), tiny.thresholds("llama", method)
        with attached(model, method, thresholds=thresholds, execution="masked") as run:
            generate(model, torch.cat([PREFIX, *(tiny.text(1, 20, seed=s) for s in (31, 32))]), **options)
            found, counted = run.achieved_sparsity(), run.attachment.counter.tokens.clone()
        sums = torch.zeros(tiny.LAYERS, dtype=torch.float64)
        for prompt, steps in zip([PREFIX, *(tiny.text(1, 20, seed=s) for s in (31, 32))], lengths, strict=True):
            with attached(model, method, thresholds=thresholds, execution="masked") as run:
                generate(model, prompt, max_new_tokens=steps + 1)
                sums += steps * torch.tensor(run.achieved_sparsity(), dtype=torch.float64)
        assert counted.tolist() == [sum(lengths)] * tiny.LAYERS
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), sums / sum(lengths), rtol=0, atol=1e-9)

    def test_by_an_end_token(self) -> None:
        model, method = tiny.model("llama"), tda.CATS(sparsity=0.5)
        prompts = torch.cat([PREFIX, *(tiny.text(1, 20, seed=s) for s in (31, 32))])
        with attached(model, method, thresholds=tiny.thresholds("llama", method), execution="masked"):
            new = generate(model, prompts, max_new_tokens=12)
        by_token = {
            end: [int((row == end).nonzero()[0]) if (row == end).any() else 11 for row in new]
            for end in new.unique().tolist()
        }
        end, lengths = max(by_token.items(), key=lambda item: (min(item[1]) > 0, len(set(item[1]))))
        assert min(lengths) > 0
        assert len(set(lengths)) > 1
        self.check(lengths, eos_token_id=end, pad_token_id=0, max_new_tokens=12)

    def test_by_a_criterion_of_the_callers(self) -> None:
        """Without an end token transformers feeds real tokens to a row that has ended: they count no more."""

        class Ends(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
                return input_ids.shape[1] - 20 >= torch.tensor([3, 6, 9])

        self.check([2, 5, 8], stopping_criteria=StoppingCriteriaList([Ends()]), max_new_tokens=12)

    def test_a_next_generate_begins_anew(self) -> None:
        model = tiny.model("llama")

        class Ends(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
                return input_ids.shape[1] - 20 >= torch.tensor([1, 4])

        with attached(model, execution="masked") as run:
            generate(model, tiny.text(2, 20), stopping_criteria=StoppingCriteriaList([Ends()]))
            assert run.attachment.counter.tokens.tolist() == [3.0, 3.0]
            generate(model, tiny.text(2, 20))
            assert run.attachment.counter.tokens.tolist() == [11.0, 11.0]
