"""Products of two-byte types: the rule of a processor, and widened products against float64."""

import copy

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import tda
from tda import processor
from tda.engine.phases import prefill
from tda.kernels import products

SPR = "processor\t: 0\nmodel name\t: A processor\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 avx512_fp16\n"
ZEN2 = "processor\t: 0\nmodel name\t: Another\nflags\t\t: fpu avx2 fma\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp bf16\n"
TYPES = [torch.bfloat16, torch.float16]


def _forget() -> None:
    processor.cpuinfo.cache_clear()
    processor.widens.cache_clear()


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Play a processor, with a matrix library that takes both types."""

    def play(text: str | None, library: bool = True, **limits: str) -> None:
        path = tmp_path / "cpuinfo"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(processor, "CPUINFO", path)
        monkeypatch.setattr(processor, "library_takes", lambda dtype: library)
        for name in processor.LIMITS:
            monkeypatch.delenv(name, raising=False)
        for name, value in limits.items():
            monkeypatch.setenv(name, value)
        _forget()

    yield play
    _forget()


@pytest.fixture
def widened(monkeypatch):
    """A machine without hardware products, whatever runs the tests."""
    monkeypatch.setattr(products, "widens", lambda dtype: dtype in processor.HARDWARE)


@pytest.mark.parametrize(
    ("text", "library", "limits", "expected"),
    [
        (SPR, True, {}, "bfloat16 in hardware, float16 in hardware"),
        (SPR, True, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "bfloat16 widened, float16 widened"),
        (SPR, True, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "bfloat16 widened, float16 widened"),
        (SPR, True, {"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16"}, "bfloat16 in hardware, float16 widened"),
        (SPR, True, {"DNNL_MAX_CPU_ISA": "AVX2_VNNI"}, "bfloat16 widened, float16 widened"),
        (SPR, True, {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, "bfloat16 in hardware, float16 in hardware"),
        (SPR, False, {}, "bfloat16 widened, float16 widened"),
        (ZEN2, True, {}, "bfloat16 widened, float16 widened"),
        (ARM, True, {}, "bfloat16 in hardware, float16 in hardware"),
        (None, True, {}, "bfloat16 widened, float16 widened"),
    ],
)
def test_rule_is_of_processor_and_type(on, text, library, limits, expected):
    on(text, library, **limits)
    assert processor.products() == expected
    assert not processor.widens(torch.float32)


def test_reason_names_what_the_processor_has(on):
    on(SPR)
    assert "amx_bf16, avx512_bf16" in processor.reason(torch.bfloat16)
    on(ZEN2)
    assert "no bfloat16 product in hardware" in processor.reason(torch.bfloat16)
    assert processor.reason(torch.float32) == "float32 products run in torch"


def _draw(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Sums are in float32, so that only the rounding of the result is left."""
    assert got.dtype == dtype
    assert got.shape == expected.shape
    tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(got.double(), expected, rtol=1.01 * tolerance, atol=1e-4)


@given(
    tokens=st.lists(st.integers(1, 5), min_size=0, max_size=2),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    layout=st.sampled_from(["rows", "columns", "beside", "beside, transposed"]),
    bias=st.booleans(),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 99),
)
def test_linear_is_that_of_float64_in_every_layout(tokens, inputs, outputs, layout, bias, dtype, seed):
    x, weight = _draw(seed, *tokens, inputs, dtype=dtype), _draw(seed + 1, outputs, inputs, dtype=dtype)
    if layout == "columns":
        weight = weight.t().contiguous().t()
    elif layout == "beside":
        weight = torch.cat([torch.zeros_like(weight), weight], 1)[:, inputs:]
    elif layout != "rows":
        weight = torch.cat([torch.zeros(inputs, 3, dtype=dtype), weight.t()], 1)[:, 3:].t()
    b = _draw(seed + 2, outputs, dtype=dtype) if bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "BLOCK_BYTES", 16 * 4 * 7)  # several blocks, the last of them short
        got = products.linear(x, weight, b)
    expected = x.double() @ weight.double().t()
    _close(got, expected if b is None else expected + b.double(), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("left", "right"), [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 4)), ((2, 3, 4, 5), (2, 3, 5, 6))]
)
def test_every_spelling_of_a_product_is_widened(widened, left, right, dtype):
    x, other = _draw(0, *left, dtype=dtype), _draw(1, *right, dtype=dtype)
    expected = x.double() @ other.double()
    spellings = [torch.matmul, Tensor.matmul, lambda a, b: a @ b]
    if len(left) == 2:
        spellings += [torch.mm, Tensor.mm]
    if len(left) == len(right) == 3:
        spellings += [torch.bmm, Tensor.bmm]
    for spelling in spellings:
        with products.WidenedProducts():
            _close(spelling(x, other), expected, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("masked", ["no", "causal", "bool", "float"])
def test_attention_is_that_of_float64_with_grouped_heads(widened, masked, dtype):
    query, key, value = (
        _draw(0, 2, 6, 5, 8, dtype=dtype),
        _draw(1, 2, 2, 5, 8, dtype=dtype),
        _draw(2, 2, 2, 5, 8, dtype=dtype),
    )
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    mask = {"bool": allowed, "float": torch.zeros(5, 5, dtype=dtype).masked_fill(~allowed, float("-inf"))}.get(masked)
    with products.WidenedProducts():
        got = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=masked == "causal", enable_gqa=True
        )
    scores = query.double() @ key.double().repeat_interleave(3, 1).transpose(2, 3) / 8**0.5
    if masked != "no":
        scores = scores.masked_fill(~allowed, float("-inf"))
    _close(got, scores.softmax(-1) @ value.double().repeat_interleave(3, 1), dtype)


def test_what_is_not_widened_stays_torchs_own(widened):
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with products.WidenedProducts():
        assert torch.equal(functional.linear(x, weight), x @ weight.t())
        grown = functional.linear(x.bfloat16(), weight.bfloat16().requires_grad_())
        assert grown.requires_grad
        out = torch.empty(3, 4, dtype=torch.bfloat16)
        assert torch.mm(x.bfloat16(), weight.bfloat16().t(), out=out) is out
    with pytest.raises(RuntimeError), products.WidenedProducts():
        functional.linear(x.bfloat16(), weight)


@pytest.mark.parametrize("method", [tda.Dense(), tda.Dense(dense_kernel="own"), tda.Griffin(sparsity=0.5)])
@pytest.mark.parametrize("dtype", TYPES)
def test_attached_forwards_are_widened_and_detached_ones_are_not(widened, monkeypatch, method, dtype):
    model = copy.deepcopy(tiny.model("llama")).to(dtype)
    tokens = torch.arange(12).view(1, -1)
    calls = []
    monkeypatch.setitem(products.PRODUCTS, functional.linear, lambda *a: calls.append(a) or products.linear(*a))
    with torch.no_grad():
        with tda.attach(model, method) as run, run.prefill():
            calls.clear()
            got = prefill(model, tokens, all_logits=True).logits
        assert calls
        calls.clear()
        prefill(model, tokens)
        assert not calls
        expected = prefill(model.double(), tokens, all_logits=True).logits
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        got.double(), expected, rtol=0, atol=scale * (0.03 if dtype == torch.bfloat16 else 0.004)
    )


def test_calibration_is_widened(widened, monkeypatch):
    model = copy.deepcopy(tiny.model("llama")).to(torch.bfloat16)
    calls = []
    monkeypatch.setitem(products.PRODUCTS, functional.linear, lambda *a: calls.append(a) or products.linear(*a))
    tda.calibrate(model, tda.TDA(sparsity=0.5), [{"input_ids": torch.arange(32).view(2, 16)}], progress=False)
    assert calls


class Doubled(Tensor):
    """A tensor with a product of its own, as quantised weights are."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        plain = [one.as_subclass(Tensor) if isinstance(one, Doubled) else one for one in args]
        return func(*plain, **(kwargs or {})) * (2 if func is functional.linear else 1)


def test_a_class_of_tensor_keeps_its_own_product(widened):
    x, weight = _draw(0, 3, 8), _draw(1, 4, 8)
    with products.WidenedProducts():
        got = functional.linear(x, weight.as_subclass(Doubled))
    _close(got.as_subclass(Tensor), 2 * x.double() @ weight.double().t(), torch.bfloat16)


def test_defaults_that_a_user_set_do_not_matter(widened):
    x, weight = _draw(0, 3, 8), _draw(1, 4, 8)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            got = products.linear(x, weight)
    finally:
        torch.set_default_dtype(torch.float32)
    _close(got, x.double() @ weight.double().t(), torch.bfloat16)


@pytest.mark.parametrize(("left", "right"), [((2, 0, 5), (2, 5, 4)), ((0, 5), (5, 4)), ((3, 5), (5,))])
def test_what_is_empty_or_a_vector_is_torchs_own(widened, left, right):
    x, other = torch.ones(left, dtype=torch.bfloat16), torch.ones(right, dtype=torch.bfloat16)
    with products.WidenedProducts():
        assert torch.equal(x @ other, torch.matmul(x, other))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Dynamo tells of caches that it looks through
def test_a_compiler_sees_the_models_own_products(widened):
    model = copy.deepcopy(tiny.model("llama")).to(torch.bfloat16)
    tokens = torch.arange(12).view(1, -1)
    with torch.no_grad(), tda.attach(model, tda.Dense()):
        expected = model(tokens).logits
        got = torch.compile(model, backend="eager")(tokens).logits
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.05, atol=0.05 * float(expected.abs().max()))
