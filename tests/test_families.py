"""Every further type of model: its FFN is what its family declares, and what is attached to it does what it says.

The types of `contract.py` pass every other test over models. What is asked here holds a family's description, and the
engine around an attention that is not Llama's; what methods and kernels do by themselves is tested there.
"""

from collections.abc import Sequence
from typing import Any

import float64
import pytest
import tiny
import torch
from model_state import same, state
from torch import Tensor
from torch.nn import functional

import tda
from tda.bench.traffic import decode_traffic
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.engine.selfcheck import check_step
from tda.families import FAMILIES, family_for, find_ffns
from tda.kernels.native import problem
from tda.models import configuration
from tda.profiler.parts import named_parts
from tda.thresholds import Thresholds

NEW = 4
each = pytest.mark.parametrize("name", tiny.by_family(tiny.further()))


def methods(name: str) -> list[Method]:
    """One that chooses per prompt and those that choose per token, where they are defined."""
    return [chosen for chosen in (tda.Griffin(), tda.TT(), tda.CATS()) if tiny.fits(name, chosen)]


def calibrated(model: Any, method: Method) -> Thresholds | None:
    """Thresholds of a method, from a short text; None where it needs none."""
    text = [{"input_ids": tiny.text(2, 16, seed=50)}]
    return tda.calibrate(model, method, text, progress=False) if method.needs_fit else None


def logits(model: Any, prompt: Tensor, fed: Tensor) -> Tensor:
    """Logits [T + 1, V] after a prompt [T] and after each token that is fed."""
    first, cache = prefill(model, prompt.unsqueeze(0))
    return torch.cat([first[0, -1:], *(decode(model, token.view(1, 1), cache)[0] for token in fed)])


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max()


@each
def test_the_ffn_is_what_the_family_declares(name: str) -> None:
    """What passes through the model's own modules, against the formula in float64."""
    model, prompt = tiny.model(name), tiny.text(1, 9)
    seen: dict[tuple[int, str], Tensor] = {}
    hooks = []
    for ffn in find_ffns(model):

        def note(module: Any, args: Any, output: Tensor, layer: int = ffn.index) -> None:
            seen[layer, "z"], seen[layer, "y"] = args[0][0], output[0].clone()  # Falcon adds to it in place

        hooks.append(ffn.down.module.register_forward_hook(note))
    with torch.no_grad():
        model(prompt)
    for hook in hooks:
        hook.remove()
    reference = tiny.reference(name)
    for layer, (found, weights) in enumerate(zip(reference.run(prompt[0]).layers, reference.weights, strict=True)):
        y = found.z @ weights.down.T + (0 if weights.down_bias is None else weights.down_bias)
        close(seen[layer, "z"], found.z, 1e-5)
        close(seen[layer, "y"], y, 1e-5)


@each
def test_masked_is_the_formula_and_every_execution_is_masked(name: str) -> None:
    """Sets and logits over decode steps against float64; then the fast paths, and nothing is left behind."""
    model, prompt, fed = tiny.model(name), tiny.text(1, 9)[0], tiny.text(1, NEW, seed=5)[0]
    reference, before = tiny.reference(name), state(model)
    for method in methods(name):
        thresholds = calibrated(model, method)
        with torch.no_grad(), tda.attach(model, method, thresholds, execution="masked") as run:
            masked = logits(model, prompt, fed)
            kept = run.selection()
        rule = float64.rules(method, reference, [prompt], thresholds, kept if method.scope == "prompt" else None)[0]
        passed = reference.run(torch.cat([prompt, fed]), torch.arange(len(prompt) + NEW) >= len(prompt), rule)
        close(masked, passed.logits[len(prompt) - 1 :], 1e-4)
        check_sets(method, reference, prompt, passed, thresholds, kept)
        for execution in ("auto", "indexed") if method.scope == "prompt" else ("auto",):
            if execution == "auto" or problem(find_ffns(model)) is None:
                with torch.no_grad(), tda.attach(model, method, thresholds, execution=execution):
                    close(logits(model, prompt, fed), masked, 2e-5)
    same(before, state(model))


def check_sets(
    method: Method,
    reference: float64.Float64,
    prompt: Tensor,
    passed: float64.Pass,
    thresholds: Thresholds | None,
    kept: Sequence[Tensor],
) -> None:
    """The sets of the prompt, or of the last decode step, but for neurons within rounding of a cut."""
    alone = reference.run(prompt)
    for layer, (weights, found) in enumerate(zip(reference.weights, kept, strict=True)):
        if method.scope == "prompt":
            choice = float64.prompt_choices(method, weights, [alone.layers[layer]], thresholds, layer)[0]
        else:
            choice = float64.token_choices(method, weights, passed.layers[layer], thresholds, layer)[-1]
        choice.check(found.view(-1))
        assert 0 < found.sum() < found.numel()


@each
def test_dense_kernels_and_sparsity_zero_are_dense(name: str) -> None:
    model, prompt, fed = tiny.model(name), tiny.text(1, 9)[0], tiny.text(1, 12, seed=6)[0]
    with torch.no_grad():
        dense = logits(model, prompt, fed)
        with tda.attach(model, tda.Dense(dense_kernel="own")):
            close(logits(model, prompt, fed), dense, 2e-5)
        with tda.attach(model, tda.Griffin(sparsity=0), execution="masked"):
            assert torch.equal(logits(model, prompt, fed), dense)


@each
def test_a_row_of_a_padded_batch_is_what_it_would_be_alone(name: str) -> None:
    """Through the model's own generate, and by hand."""
    model, prompts, fed = tiny.model(name), tiny.prompts((5, 9)), tiny.text(2, 1, seed=7)
    tokens, mask = tiny.padded(prompts)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    with torch.no_grad(), tda.attach(model, tda.Griffin()) as run:
        batch = model.generate(tokens, attention_mask=mask.long(), **options)
        together = run.selection()
        step = decode(model, fed, prefill(model, tokens, mask).cache, functional.pad(mask, (0, 1), value=True))
        for row, prompt in enumerate(prompts):
            close(step[row], logits(model, prompt, fed[row])[1:], 1e-4)
            assert torch.equal(batch[row, -NEW:], model.generate(prompt.unsqueeze(0), **options)[0, -NEW:])
            assert all(torch.equal(kept[row], alone[0]) for kept, alone in zip(together, run.selection(), strict=True))


@each
def test_its_configuration_is_accepted_and_its_parts_are_found(name: str) -> None:
    model = tiny.model(name)
    configuration.check_fields(model.config.to_dict())
    assert configuration.parameters(tiny.config(name)) == sum(p.numel() for p in model.parameters())
    parts = [part for _, part, _ in named_parts(model)]
    first = "gate_up" if find_ffns(model)[0].up.rows else "up"
    assert {first, "down", "attention", "head", "embedding"} <= set(parts)
    assert parts.count("attention") == parts.count("down") == tiny.LAYERS


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("gpt_bigcode", 2 * 2 * 1 * 6),  # layers, keys and values, one head for all queries, width
        ("minicpm3", 2 * (8 + 4)),  # what keys and values are made of, and the part of the keys that has positions
        ("gemma4_text", 2 * 2 * (8 + 12)),  # and layers differ
        ("bloom", 2 * 2 * 4 * 6),
    ],
)
def test_what_a_cache_holds_of_a_token_is_counted(name: str, numbers: int) -> None:
    model = tiny.model(name)
    ffns = find_ffns(model)
    with torch.no_grad():
        cache = prefill(model, tiny.text(3, 9)).cache
    traffic = decode_traffic(model, ffns, tda.Dense(), [1.0] * len(ffns), 9, 3, cache)
    assert traffic.cache == numbers * 4 * 9 * 3


@each
@pytest.mark.usefixtures("kernels_in_c")
def test_a_whole_step_runs_where_a_decoder_is_described(name: str) -> None:
    model, family = tiny.model(name), family_for(tiny.model(name).config.model_type)
    if family.decoder is not None:
        assert check_step(model, family.decoder(model), find_ffns(model)) is None
    with tda.attach(model, tda.Griffin()) as run:
        assert (run.attachment.decoding.step is not None) == (family.decoder is not None)


@pytest.mark.usefixtures("kernels_in_c")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("stablelm", {"use_parallel_residual": True}),
        ("stablelm", {"qk_layernorm": True}),
        ("exaone4", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
    ids=str,
)
def test_a_step_that_its_description_does_not_fit_runs_layer_by_layer(name: str, changes: dict[str, Any]) -> None:
    model, prompt, fed = tiny.build(name, **changes), tiny.text(1, 9)[0], tiny.text(1, NEW, seed=5)[0]
    with torch.no_grad():
        with tda.attach(model, tda.Griffin(), execution="masked"):
            expected = logits(model, prompt, fed)
        with tda.attach(model, tda.Griffin()) as run:
            assert run.attachment.decoding.step is None
            assert run.backend.startswith("c, layer by layer (")
            close(logits(model, prompt, fed), expected, 2e-5)


def test_linears_that_the_model_does_not_call_are_refused() -> None:
    """Bloom's pretraining in parts multiplies by slices of the weights itself."""
    model = tiny.build("bloom", pretraining_tp=2, slow_but_exact=True)
    with (
        pytest.raises(ValueError, match=r"layer 0: .*not call .*linears"),
        tda.attach(model, tda.Griffin()),
    ):
        pass


def test_every_type_is_declared_once_and_known_to_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    declared = [kind for family in FAMILIES.values() for kind in family.model_types]
    assert len(declared) == len(set(declared))
    assert set(declared) <= set(KNOWN)
