"""Dense with weights in int8: what it rounds to, that the kernels compute with just that, and that it goes away."""

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
from tda.bench.plan import PRESETS
from tda.bench.traffic import decode_traffic
from tda.contracts import WeightMethod
from tda.engine.phases import decode, prefill
from tda.families import find_ffns
from tda.methods import METHODS, takes_sparsity
from tda.methods.int8 import Int8

WEIGHTS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 40)), elements=st.floats(-9, 9, width=16)
)


@given(WEIGHTS)
def test_rounding_is_to_the_nearest_of_the_rows_steps(values: Any) -> None:
    weight = torch.from_numpy(values)
    rounded = Int8().round(weight)
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
        if type(linear) is nn.Linear:
            wide = linear.weight.detach().double()
            scale = wide.abs().amax(1, keepdim=True) / 127
            linear.weight = nn.Parameter(((wide / scale).round() * scale).to(linear.weight.dtype))
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
    with pytest.raises(ValueError, match=r"needs kernels of our own: no compiler; use 'masked'"):
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


def test_what_leaves_nothing_out_is_measured_once() -> None:
    assert not takes_sparsity("int8")
    assert issubclass(METHODS["int8"], WeightMethod)
    plan = replace(PRESETS["default"], methods=("int8", "griffin"), sparsities=(0.25, 0.5))
    assert [(built.name, built.sparsity) for built in plan.build()] == [
        ("dense", 0.0),
        ("int8", None),
        ("griffin", 0.25),
        ("griffin", 0.5),
    ]
