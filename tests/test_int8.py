"""Weights in int8, of dense and of other methods: what they round to, that kernels compute with that, that they go."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from model_state import same, state
from torch import Tensor, nn

import tda
from tda.bench.presets import PRESETS
from tda.bench.traffic import decode_traffic
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.families import find_ffns
from tda.methods import METHODS, takes_sparsity
from tda.quantizers import QUANTIZERS

WEIGHTS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 40)), elements=st.floats(-9, 9, width=16)
)


@given(WEIGHTS)
def test_rounding_is_to_the_nearest_of_the_rows_steps(values: Any) -> None:
    weight = torch.from_numpy(values)
    rounded = QUANTIZERS["int8"].quantize(weight)
    assert rounded.values.dtype == torch.int8
    assert rounded.values.abs().max() <= 127
    error = (rounded.dense(torch.float32).double() - weight.double()).abs()
    assert (error <= (0.5 + 1e-4) * rounded.scale.double().unsqueeze(1)).all()
    largest = weight.abs().amax(1)
    reached = rounded.values.abs().amax(1)
    assert (reached[largest > 1e-30] == 127).all()
    assert not rounded.values[largest == 0].any()


def rounded_by_hand(model: Any) -> Any:
    """The model with the weights of its linears rounded in float64."""
    for linear in model.modules():
        if type(linear).__name__ in ("Linear", "Conv1D"):
            wide = linear.weight.detach().double()
            scale = wide.abs().amax(0 if type(linear).__name__ == "Conv1D" else 1, keepdim=True) / 127
            linear.weight = nn.Parameter(((wide / scale).round() * scale).to(linear.weight.dtype))
    for name, weight in model.named_parameters():
        if weight.dim() == 3 and "experts" in name:
            scale = weight.detach().double().abs().amax(2, keepdim=True) / 127
            weight.data = ((weight.detach().double() / scale).round() * scale).to(weight.dtype)
    return model


def logits(model: Any, lengths: Sequence[int]) -> Tensor:
    """Of a prompt's end and three decode steps."""
    prompt, fed = tiny.text(len(lengths), max(lengths)), tiny.text(len(lengths), 3, seed=7)
    first, cache = prefill(model, prompt)
    return torch.cat([first[:, -1:], *(decode(model, token, cache) for token in fed.split(1, 1))], 1)


@pytest.mark.parametrize("name", tiny.names())
def test_masked_computes_with_the_rounded_weights(name: str) -> None:
    model = tiny.build(name)
    before = state(model)
    with torch.no_grad(), tda.attach(model, tda.Int8(), execution="masked") as run:
        found = logits(model, [7, 7])
        assert run.execution == "masked"
        assert run.achieved_sparsity() == [0.0] * len(run.attachment.ffns)
    same(before, state(model))
    with torch.no_grad():
        expected = logits(rounded_by_hand(model), [7, 7])
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("kernels_in_c")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", tiny.names())
def test_the_kernels_equal_masked(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name).to(dtype)
    before = state(model)
    with torch.no_grad():
        with tda.attach(model, tda.Int8(), execution="masked"):
            expected = logits(model, [9])
        with tda.attach(model, tda.Int8()) as run:
            found = logits(model, [9])
            assert (run.execution, run.backend) == ("dense", "c")
            assert run.attachment.decoding.step is not None
    same(before, state(model))
    scale = expected.double().abs().max()
    assert (found.double() - expected.double()).abs().max() <= (2e-5 if dtype == torch.float32 else 4e-2) * scale


@pytest.mark.usefixtures("kernels_in_c")
def test_several_rows_have_no_kernel_and_no_speed() -> None:
    model = tiny.model("llama")
    with torch.no_grad(), tda.attach(model, tda.Int8()) as run:
        logits(model, [5, 5])
        assert (run.execution, run.backend) == ("masked", "torch")


def test_without_kernels_there_is_a_quality_and_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tda.kernels.native.library, "problem", lambda: "no compiler")
    model = tiny.model("llama")
    with torch.no_grad(), tda.attach(model, tda.Int8()) as run:
        logits(model, [5])
        assert (run.execution, run.backend) == ("masked", "torch (no compiler)")
    with pytest.raises(ValueError, match=r"'indexed' .*'int8' .*: no compiler; .*'masked'"):
        tda.attach(model, tda.Int8(), execution="indexed").__enter__()


def test_a_tied_embedding_keeps_its_table() -> None:
    model = tiny.build("gemma")
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    before = table.detach().clone()
    with tda.attach(model, tda.Int8(), execution="masked"):
        assert torch.equal(model.get_input_embeddings().weight, before)
        assert not torch.equal(model.get_output_embeddings().weight, before)
    assert model.get_output_embeddings().weight is table


def test_a_step_reads_a_byte_a_weight_and_the_scales() -> None:
    model = tiny.build("llama").to(torch.bfloat16)
    linears = [module.weight for module in model.modules() if type(module) is nn.Linear]
    kept = [1.0] * tiny.LAYERS
    dense, rounded = (
        decode_traffic(model, find_ffns(model), method, kept, 8, 1) for method in (tda.Dense(), tda.Int8())
    )
    saved = sum(weight.numel() - 4 * len(weight) for weight in linears)
    assert dense.weights - rounded.weights == saved
    assert dense.cache == rounded.cache


def test_it_is_scored_as_the_rounded_model() -> None:
    """The prompt too is read with rounded weights, unlike that of a method that leaves neurons out."""
    model, prompt, continuation = tiny.build("llama"), tiny.text(2, 9), tiny.text(2, 5, seed=3)
    found = tda.score(model, tda.Int8(), prompt, continuation)
    expected = tda.score(rounded_by_hand(model), tda.Dense(), prompt, continuation)
    assert torch.allclose(found.nll, expected.nll, atol=1e-5)


COMPOSED = (
    tda.Griffin(quantization="int8"),
    tda.TDA(quantization="int8"),
    tda.GLASS(quantization="int8"),
    tda.Magnitude(quantization="int8"),
    tda.TT(quantization="int8"),
    tda.CATS(quantization="int8"),
)
composed = pytest.mark.parametrize("method", COMPOSED, ids=lambda method: method.name)


def fitted(name: str, method: Method) -> Method:
    return tiny.fitted(name, method)


@composed
@pytest.mark.parametrize("name", ["llama", "opt", "gemma2", "phi3", "gpt2", "mixtral"])
def test_a_method_on_rounded_weights_is_the_method_on_a_rounded_model(name: str, method: Method) -> None:
    """Of the same sets, which stand in the same places; thresholds are those of the model as it is."""
    if not tiny.fits(name, method):
        with pytest.raises(ValueError, match="needs a gated FFN"):
            method.check(find_ffns(tiny.model(name))[0])
        return
    ready, model = fitted(name, method), tiny.build(name)
    before = state(model)
    with torch.no_grad(), tda.attach(model, ready, execution="masked") as run:
        found, kept = logits(model, [7, 7]), run.selection()
    same(before, state(model))
    rounded = rounded_by_hand(tiny.build(name))
    with torch.no_grad(), tda.attach(rounded, replace_weights(ready), execution="masked") as run:
        expected, wanted = logits(rounded, [7, 7]), run.selection()
    assert [torch.equal(one, other) for one, other in zip(kept, wanted, strict=True)] == [True] * len(kept)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)


def replace_weights(method: Method) -> Method:
    """The fitted method on weights as they are."""
    plain = replace(method, quantization=None)
    return plain if method.thresholds is None else plain.with_thresholds(method.thresholds)


@pytest.mark.usefixtures("kernels_in_c")
@composed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "opt", "gemma2", "phi3", "gpt2"])
def test_the_kernels_skip_rounded_weights(name: str, dtype: torch.dtype, method: Method) -> None:
    """Every execution of one row equals masked, with the same sets; a whole step where the family has one."""
    if not tiny.fits(name, method):
        return
    ready, model = fitted(name, method), tiny.build(name).to(dtype)
    before = state(model)
    with torch.no_grad(), tda.attach(model, ready, execution="masked") as run:
        expected, wanted = logits(model, [9]), run.selection()
    for execution in method.executions:
        if execution == "masked":
            continue
        with torch.no_grad(), tda.attach(model, ready, execution=execution) as run:
            found, kept = logits(model, [9]), run.selection()
            assert (run.execution, run.backend.split(",")[0]) == (execution, "c")
            assert (run.attachment.decoding.step is None) == (run.backend != "c")
        same(before, state(model))
        unlike = sum(int((one != other).sum()) for one, other in zip(kept, wanted, strict=True))
        assert unlike <= (0 if dtype == torch.float32 or method.kind == "prompt" else 2)
        scale = expected.double().abs().max()
        assert (found.double() - expected.double()).abs().max() <= (2e-5 if dtype == torch.float32 else 6e-2) * scale


@pytest.mark.usefixtures("kernels_in_c")
@composed
def test_several_rows_or_tokens_run_masked(method: Method) -> None:
    """As dense in int8 does: kernels run single tokens of such weights."""
    model, ready = tiny.model("llama"), fitted("llama", method)
    with torch.no_grad(), tda.attach(model, ready) as run:
        logits(model, [5, 5])
        assert (run.execution, run.backend) == ("masked", "torch")
        cache = prefill(model, tiny.text(1, 5)).cache
        with run.decode():
            model(tiny.text(1, 3), **tiny.on(model, cache))
        assert (run.execution, run.backend) == ("masked", "torch")


@composed
def test_where_no_kernel_reads_them_there_is_a_quality_and_no_speed(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tda.kernels.native.library, "problem", lambda: "no compiler")
    model, ready = tiny.model("llama"), fitted("llama", method)
    with torch.no_grad(), tda.attach(model, ready) as run:
        logits(model, [5])
        assert (run.execution, run.backend) == ("masked", "torch (no compiler)")
    for execution in set(method.executions) - {"masked"}:
        with pytest.raises(ValueError, match=f"{execution}' of '{method.name}' .*: no compiler"):
            tda.attach(model, ready, execution=execution).__enter__()


def test_a_step_reads_a_byte_of_each_weight_that_it_keeps() -> None:
    """Griffin skips rows of gate and up with their scales, and columns of down, whose scales are of its outputs."""
    model = tiny.build("qwen3")
    ffns = find_ffns(model)
    assert not any(linear.bias is not None for ffn in ffns for linear in ffn.linears)
    whole = decode_traffic(model, ffns, tda.Int8(), [1.0] * tiny.LAYERS, 8, 1).weights
    kept = [40 / tiny.F, 13 / tiny.F]
    found = decode_traffic(model, ffns, tda.Griffin(quantization="int8"), kept, 8, 1).weights
    left = (tiny.F - 40) + (tiny.F - 13)
    assert whole - found == pytest.approx(left * (2 * (tiny.D + 4) + tiny.D))
    one_token = decode_traffic(model, ffns, tda.CATS(quantization="int8"), kept, 8, 1).weights
    assert whole - one_token == pytest.approx(left * (tiny.D + 4 + tiny.D))


def test_a_selection_knows_what_it_reads_of_quantized_weights() -> None:
    model = tiny.build("qwen3")
    with torch.no_grad():
        for method, per_neuron in ((tda.Griffin(), 3 * 4 * tiny.D), (tda.Griffin(quantization="int8"), 3 * tiny.D + 8)):
            with tda.attach(model, method, execution="masked") as run:
                model(tiny.text(1, 9), **tiny.on(model, tiny.new_cache(model)))
                found = run.selection()
            scales = 4 * tiny.D if method.quantization else 0  # of down's outputs
            assert found.nbytes[:, 0].tolist() == pytest.approx((found.counts[:, 0] * per_neuron + scales).tolist())


def test_weights_are_an_option_that_is_unsaid_where_it_is_not_given() -> None:
    for text in (
        "griffin:sparsity=0.5,quantization=int8",
        "tda:sparsity=0.5,quantization=int8",
        "teal:quantization=int8",
    ):
        made = tda.load_method(text)
        assert made.quantization == "int8"
        assert made.spec.options["quantization"] == "int8"
        assert tda.load_method(str(made.spec)) == made
    assert "quantization" not in tda.Griffin().spec.options
    assert tda.Int8().spec.options == {}
    for text in ("griffin:quantization=int7", "tt:cett=0.2,quantization=int7"):
        with pytest.raises(ValueError, match=r"quantization .*int8; got 'int7'"):
            tda.load_method(text)
    for text in ("dense:quantization=int8", "int8:quantization=int8"):
        with pytest.raises(ValueError, match="has no option 'quantization'"):
            tda.load_method(text)


def test_thresholds_do_not_depend_on_weights() -> None:
    plain = tiny.fitted("llama", tda.TT(sparsity=0.5))
    assert plain.thresholds is not None
    assert tda.TT(sparsity=0.5, quantization="int8").is_served_by(plain.thresholds)


def test_what_leaves_nothing_out_is_measured_once() -> None:
    assert not takes_sparsity("int8")
    assert METHODS["int8"]().quantization == "int8"
    plan = replace(PRESETS["default"], methods=("int8", "griffin"), sparsities=(0.25, 0.5))
    assert [(built.name, built.sparsity) for built in plan.build()] == [
        ("dense", 0.0),
        ("int8", None),
        ("griffin", 0.25),
        ("griffin", 0.5),
    ]
