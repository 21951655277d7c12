"""Single tokens of a model's linears by the kernel in C, where no whole step can run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from model_state import same, state
from torch import Tensor, nn

import tda
from tda.engine.backends import native
from tda.engine.phases import decode, prefill
from tda.families import family_of
from tda.kernels.activations import UndescribedError
from tda.kernels.native.linear import NativeLinear
from tda.profiler.counts import Counter
from tda.spans import recording, span

pytestmark = pytest.mark.usefixtures("kernels_in_c")

OWN = tda.Dense(dense_kernel="own")


def refused(x: Tensor) -> Tensor:
    raise AssertionError(f"the dense forward was asked for {tuple(x.shape)}")


@pytest.fixture
def undescribed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No family describes its decoder."""
    monkeypatch.setattr(native, "family_of", lambda model: dataclasses.replace(family_of(model), decoder=None))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Output sizes of the calls of the kernel."""
    found: list[int] = []
    compute: Callable[[NativeLinear, Tensor], Tensor] = NativeLinear.compute

    def counting(self: NativeLinear, x: Tensor) -> Tensor:
        y = compute(self, x)
        found.append(y.shape[-1])
        return y

    monkeypatch.setattr(NativeLinear, "compute", counting)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_token_is_multiplied(dtype: torch.dtype, bias: bool) -> None:
    linear = nn.Linear(37, 75, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(1, 1, 74, dtype=dtype)[..., ::2]
    y = NativeLinear(linear, refused)(x)
    assert y.shape == (1, 1, 75)
    expected = x.double() @ linear.weight.double().t() + (linear.bias.double() if bias else 0)
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    assert (y.double() - expected).abs().max() <= 2 * rounding * (1 + expected.abs().max())


def test_what_is_no_single_token_takes_the_dense_forward() -> None:
    linear = nn.Linear(8, 4)
    made = NativeLinear(linear, lambda x: torch.full((1,), 7.0))
    for x in (torch.zeros(2, 8), torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, 8, requires_grad=True)):
        assert made(x).equal(torch.full((1,), 7.0))
    with torch.no_grad():
        assert made(torch.zeros(1, 8)).shape == (1, 4)


def test_weights_that_the_kernels_do_not_take() -> None:
    linear = nn.Linear(8, 4, dtype=torch.float64)
    with pytest.raises(UndescribedError, match="float64"):
        NativeLinear(linear, linear.forward)


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("built", [OWN, tda.Griffin(sparsity=0.5)], ids=["dense", "griffin"])
def test_layers_run_on_the_kernels_one_by_one(name: str, built: Any, undescribed: None, calls: list[int]) -> None:
    """A fair pair: where no whole step runs, dense and method both have the matrix-vector kernel."""
    model, prompt, before = tiny.model(name), tiny.text(1, 9), state(tiny.model(name))
    reference = tda.Dense() if built is OWN else built
    with torch.no_grad(), tda.attach(model, reference, execution="auto" if built is OWN else "masked") as run:
        cache = prefill(model, prompt).cache
        expected = decode(model, prompt[:, :1], cache)
    assert not calls
    with torch.no_grad(), tda.attach(model, built) as run:
        assert run.attachment.decoding.step is None
        cache = prefill(model, prompt).cache
        calls.clear()  # the head of a prompt's last token was one
        found = decode(model, prompt[:, :1], cache)
        assert run.backend.startswith("c, layer by layer (family")
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    in_ffns = 0 if built is OWN else sum(len(list(ffn.linears)) for ffn in run.attachment.ffns)
    assert len(calls) == len(linears) - in_ffns
    assert torch.allclose(found, expected, atol=1e-5)
    same(before, state(model))
    assert not any("forward" in vars(linear) for linear in linears)


def test_a_profile_knows_what_they_read(undescribed: None, calls: list[int]) -> None:
    model, prompt = tiny.model("llama"), tiny.text(1, 5)
    with torch.no_grad(), tda.attach(model, OWN):
        cache = prefill(model, prompt).cache
        counter = Counter()
        with recording(counter.span), counter, span("decode"):
            decode(model, prompt[:, :1], cache)
    weights = sum(m.weight.numel() for m in model.modules() if type(m) is nn.Linear)
    counted = [count for spot, count in counter.counts.items() if spot.op == "tda::linear"]
    assert sum(count.bytes for count in counted) == 4 * weights
    assert sum(count.flops or 0 for count in counted) == 2 * weights


def test_rows_that_torch_multiplies_are_said_to_be_torchs() -> None:
    """Dense products of several rows read their weights once; a record must not call that ours."""
    model = tiny.model("llama")
    for rows, backend in ((1, "c"), (3, "torch (products of 3 rows run there)")):
        with torch.no_grad(), tda.attach(model, OWN) as run:
            decode(model, tiny.text(rows, 1), prefill(model, tiny.text(rows, 5)).cache)
            assert run.backend == backend
