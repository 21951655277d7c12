"""Every function of the C library against float64 on odd shapes; nothing is written outside the buffers it is given."""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import float64
import pytest
import torch
from guarded import Guards
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tda.kernels import activations, native
from tda.kernels.activations import UndescribedError
from tda.kernels.native import library as c
from tda.kernels.native.describe import activation, check_ffn, feed_forward, norm
from tda.kernels.native.ffn import ListedFFN
from tda.kernels.weights import lay_rows
from tda.view import FFN, Linear

pytestmark = pytest.mark.usefixtures("kernels_in_c")
each_isa = pytest.mark.usefixtures("each_isa")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": float64.ACTIVATIONS["silu"],
    "gelu": float64.ACTIVATIONS["gelu"],
    "gelu_tanh": float64.ACTIVATIONS["gelu_pytorch_tanh"],
    "relu": float64.ACTIVATIONS["relu"],
    "relu_squared": lambda x: float64.ACTIVATIONS["relu"](x) ** 2,
    "identity": lambda x: x,
}
TYPES = st.sampled_from([torch.float32, torch.bfloat16])
THREADS = st.integers(1, 4)
SHARES = st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.95, 1.0])


@dataclass(frozen=True)
class Shape:
    """An FFN and its input. `gap` and `offset` lay weights and rows of x apart from each other and off their start.

    In `int8` weights have a scale for each output, and biases are in float32; activations are of either type.
    """

    D: int
    F: int
    rows: int
    gap: int
    offset: int
    dtype: torch.dtype
    act: str
    gated: bool
    bias: bool
    threads: int
    seed: int
    int8: bool


SHAPES = st.builds(
    Shape,
    D=st.integers(1, 100),
    F=st.integers(1, 600),
    rows=st.integers(0, 3),
    gap=st.integers(0, 5),
    offset=st.integers(0, 3),
    dtype=TYPES,
    act=st.sampled_from(list(activations.ACTIVATIONS)),
    gated=st.booleans(),
    bias=st.booleans(),
    threads=THREADS,
    seed=st.integers(0, 999),
    int8=st.booleans(),
)


@dataclass
class Case:
    """Guarded weights and input of a shape, and their description."""

    shape: Shape
    guards: Guards
    gate: Tensor | None
    up: Tensor
    down: Tensor  # [F, D] by rows, or [D, F]
    scales: tuple[Tensor | None, Tensor | None, Tensor | None]
    biases: tuple[Tensor | None, Tensor | None, Tensor | None]
    x: Tensor
    description: c.FFNStruct
    by_rows: bool

    @classmethod
    def make(cls, shape: Shape, by_rows: bool) -> "Case":
        guards, generator = Guards(), torch.Generator().manual_seed(shape.seed)
        D, F = shape.D, shape.F

        def spread(rows: int, columns: int, scale: float, dtype: torch.dtype) -> Tensor:
            whole = guards.empty((rows, shape.offset + columns + shape.gap), dtype)
            whole.copy_((torch.randn(whole.shape, generator=generator) * scale).clamp(-127, 127))
            return whole[:, shape.offset : shape.offset + columns]

        def weights(rows: int, columns: int, terms: int) -> Tensor:
            held = torch.int8 if shape.int8 else shape.dtype
            return spread(rows, columns, 50.0 if shape.int8 else terms**-0.5, held)

        def scale(size: int, terms: int) -> Tensor | None:
            found = (torch.rand(size, generator=generator) + 0.5) * terms**-0.5 / 50
            return guards.copy(found) if shape.int8 else None

        def bias(size: int, here: bool) -> Tensor | None:
            held = torch.float32 if shape.int8 else shape.dtype
            return guards.copy(torch.randn(size, generator=generator).to(held)) if here else None

        gate = weights(F, D, D) if shape.gated else None
        up, down = weights(F, D, D), weights(F, D, F) if by_rows else weights(D, F, F)
        scales = (scale(F, D), scale(F, D), scale(D, F))
        biases = (bias(F, shape.bias and shape.gated), bias(F, shape.bias), bias(D, shape.bias))
        description = c.FFNStruct(
            gate=c.Matrix() if gate is None else c.Matrix.of(gate, biases[0], scales[0]),
            up=c.Matrix.of(up, biases[1], scales[1]),
            down=c.Matrix.of(down, biases[2], scales[2]),
            act=list(activations.ACTIVATIONS).index(shape.act),
            down_rows=int(by_rows),
        )
        x = spread(shape.rows, D, 1.0, shape.dtype)
        return cls(shape, guards, gate, up, down, scales, biases, x, description, by_rows)

    def exact(self, place: int) -> Tensor:
        """What the weights of gate, up or down stand for, as a linear has them."""
        held = (self.gate, self.up, self.down.t() if self.by_rows else self.down)[place]
        assert held is not None
        scale = self.scales[place]
        return held.double() * (1 if scale is None else scale.double().unsqueeze(1))

    def linear(self, place: int) -> Tensor:
        """Outputs of gate or up: [N, F]."""
        return linear64(self.exact(place), self.biases[place], self.x)

    def activated(self) -> Tensor:
        """act(gate x), or act(up x): [N, F]."""
        return ACTIVATIONS[self.shape.act](self.linear(1 if self.gate is None else 0))

    def z(self) -> Tensor:
        """Neuron activations: [N, F]."""
        return self.activated() * (1 if self.gate is None else self.linear(1))

    def run(self, descriptions: list[c.FFNStruct]) -> Tensor:
        """What the kernels give: [N, D]. Everything that they write lies between guards."""
        shape, library = self.shape, c.library()
        y = self.guards.empty((shape.rows, shape.D), shape.dtype)
        scratch = self.guards.empty((library.tda_ffn_floats(ctypes.byref(self.description), shape.threads),))
        inputs = [self.up.clone(), self.down.clone(), self.x.clone()]
        library.tda_ffn(
            (c.FFNStruct * len(descriptions))(*descriptions),
            shape.rows,
            self.x.data_ptr(),
            self.x.stride(0) * shape.dtype.itemsize,
            y.data_ptr(),
            scratch.data_ptr(),
            c.KINDS[shape.dtype],
            shape.threads,
        )
        self.guards.check()
        assert all(map(torch.equal, inputs, [self.up, self.down, self.x]))
        return y

    def check(self, y: Tensor, kept: Tensor) -> None:
        """Compare with the formula over kept neurons: bool [N, F]."""
        z = self.z() * kept
        down = self.exact(2).t()  # [F, D]
        expected = z @ down + (0 if self.biases[2] is None else self.biases[2].double())
        close(y, expected, 1 + z.abs() @ down.abs())


def linear64(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return x.double() @ weight.double().t() + (0 if bias is None else bias.double())


def close(found: Tensor, expected: Tensor, scale: Tensor) -> None:
    """Within float32 sums of terms of this scale, and the rounding of the result's type."""
    rounding = 2.0**-8 if found.dtype == torch.bfloat16 else 0.0
    assert ((found.double() - expected).abs() <= 3e-5 * scale + rounding * expected.abs()).all()


def lists(case: Case, share: float) -> tuple[list[c.FFNStruct], Tensor]:
    """A description with a list of its own for each row, and the kept sets: bool [N, F]."""
    shape, library = case.shape, c.library()
    kept = torch.rand(shape.rows, shape.F, generator=torch.Generator().manual_seed(shape.seed)) < share
    descriptions = []
    for mask in kept:
        # An empty tensor has no address, and a list without one means all neurons.
        index = case.guards.empty((max(1, int(mask.sum())),), torch.int32)
        description = c.FFNStruct.from_buffer_copy(case.description)
        description.index = index.data_ptr()
        description.count = library.tda_list(case.guards.copy(mask).data_ptr(), shape.F, index.data_ptr())
        assert torch.equal(index[: description.count].long(), mask.nonzero()[:, 0])
        descriptions.append(description)
    case.guards.check()
    return descriptions, kept


@each_isa
@given(SHAPES, SHARES)
def test_listed_neurons(shape: Shape, share: float) -> None:
    case = Case.make(shape, by_rows=True)
    descriptions, kept = lists(case, share)
    case.check(case.run(descriptions), kept)


@each_isa
@given(SHAPES, st.booleans())
def test_all_neurons_in_both_layouts(shape: Shape, by_rows: bool) -> None:
    case = Case.make(shape, by_rows)
    case.check(case.run([case.description] * shape.rows), torch.ones(shape.rows, shape.F, dtype=torch.bool))


@each_isa
@given(SHAPES, st.sampled_from(["gate", "contribution"]), SHARES, st.booleans())
def test_thresholds(shape: Shape, rule: str, share: float, weighted: bool) -> None:
    """The kept set is the formula's apart from neurons at the cut; the output is that of the set that is reported."""
    shape = replace(shape, gated=True) if rule == "gate" else shape
    case = Case.make(shape, by_rows=True)
    norms = case.guards.copy(torch.rand(shape.F, generator=torch.Generator().manual_seed(1)) + 0.1)
    size = (case.activated() if rule == "gate" else case.z()).abs() * (norms.double() if weighted else 1)
    cut = float(torch.quantile(size, 1 - share)) if shape.rows else 0.0
    cut = {0.0: math.inf, 1.0: 0.0}.get(share, cut)
    reported = case.guards.empty((shape.rows, shape.F), torch.uint8)
    descriptions = []
    for row in reported:
        descriptions.append(c.FFNStruct.from_buffer_copy(case.description))
        descriptions[-1].rule, descriptions[-1].cut = c.RULES.index(rule), cut
        descriptions[-1].kept, descriptions[-1].norms = row.data_ptr(), norms.data_ptr() if weighted else None
    y = case.run(descriptions)
    assert bool((reported <= 1).all())
    kept = reported.bool()
    sure = (size - cut).abs() > 1e-4 * (1 + size)
    assert torch.equal(kept[sure], (size >= cut)[sure])
    assert bool(kept.all()) if share == 1.0 else True
    assert not kept.any() if share == 0.0 else True
    case.check(y, kept)


@each_isa
@given(SHAPES, SHARES, st.booleans())
def test_gather(shape: Shape, share: float, by_rows: bool) -> None:
    """Bit for bit what indexing gives, from weights in either layout, into the layout of torch."""
    case = Case.make(replace(shape, bias=False), by_rows)
    kept = torch.rand(shape.F, generator=torch.Generator().manual_seed(shape.seed)) < share
    index = kept.nonzero()[:, 0]
    rows = case.guards.empty((1 + shape.gated, len(index), shape.D), case.up.dtype)
    columns = case.guards.empty((shape.D, len(index)), case.up.dtype)
    source, target = c.FFNStruct.from_buffer_copy(case.description), c.FFNStruct()
    listed = case.guards.copy(index.int())
    source.index, source.count = listed.data_ptr(), len(listed)
    if shape.gated:
        target.gate = c.Matrix.of(rows[0])
    target.up, target.down = c.Matrix.of(rows[-1]), c.Matrix.of(columns)
    c.library().tda_gather(ctypes.byref(source), ctypes.byref(target), shape.threads)
    case.guards.check()
    down = case.down.t() if by_rows else case.down
    assert torch.equal(columns, down[:, index])
    assert torch.equal(rows[-1], case.up[index])
    assert case.gate is None or torch.equal(rows[0], case.gate[index])


@each_isa
@given(SHAPES)
def test_linear(shape: Shape) -> None:
    case, library = Case.make(shape, by_rows=True), c.library()
    matrix = case.description.up
    y = case.guards.empty((shape.rows, shape.F), shape.dtype)
    scratch = case.guards.empty((library.tda_linear_floats(ctypes.byref(matrix), shape.threads),))
    stride = case.x.stride(0) * shape.dtype.itemsize
    library.tda_linear(
        ctypes.byref(matrix),
        shape.rows,
        case.x.data_ptr(),
        stride,
        y.data_ptr(),
        scratch.data_ptr(),
        c.KINDS[shape.dtype],
        shape.threads,
    )
    case.guards.check()
    close(y, case.linear(1), 1 + case.x.double().abs() @ case.exact(1).abs().t())


@pytest.fixture(scope="module")
def both_readings(each_isa: None, compiled_for: Callable[..., c.Kernels]) -> list[c.Kernels]:
    """The kernels as they read rows that follow each other from one place, and from several, on any processor."""
    isa = c.library().isa  # not optimised: that is tested elsewhere, and takes a compiler seconds
    return [compiled_for(isa, "-O0", f"-DREADS_APART={apart}") for apart in (0, 1)]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 63, 256, 700])
def test_both_readings(both_readings: list[c.Kernels], rows: int, weights: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randint(-99, 99, (rows, 77), generator=generator).to(weights)
    scale = torch.rand(rows, generator=generator) if weights == torch.int8 else None
    bias = torch.randn(rows, generator=generator).to(torch.float32 if scale is not None else weights)
    x = torch.randn(1, 77, generator=generator)
    matrix = c.Matrix.of(weight, bias, scale)
    exact = weight.double() * (1 if scale is None else scale.double().unsqueeze(1))
    for library in both_readings:
        y = torch.full((1, rows), torch.nan)
        scratch = torch.empty(library.tda_linear_floats(ctypes.byref(matrix), 2))
        addresses = x.data_ptr(), 0, y.data_ptr(), scratch.data_ptr()
        library.tda_linear(ctypes.byref(matrix), 1, *addresses, c.KINDS[torch.float32], 2)
        close(y, linear64(exact, bias, x), 1 + x.double().abs() @ exact.abs().t())


@each_isa
@given(
    tokens=st.integers(0, 9),
    n=st.integers(1, 150),
    gap=st.integers(0, 5),
    dtype=TYPES,
    relative=st.booleans(),
    weighted=st.booleans(),
    threads=THREADS,
    exponent=st.sampled_from([0, 0, -22, 20, 36]),
    seed=st.integers(0, 999),
)
def test_squares(
    tokens: int,
    n: int,
    gap: int,
    dtype: torch.dtype,
    relative: bool,
    weighted: bool,
    threads: int,
    exponent: int,
    seed: int,
) -> None:
    """The prompt's statistic, with a token of zeros and with activations whose squares leave the range of float32."""
    guards, generator, library = Guards(), torch.Generator().manual_seed(seed), c.library()
    magnitude = 10.0**exponent if relative else 1.0
    whole = guards.copy((torch.randn(tokens, n + gap, generator=generator) * magnitude).to(dtype))
    a, inside = whole[:, :n], guards.copy(torch.rand(tokens, generator=generator) < 0.7)
    if tokens:
        a[0] = 0
    weights = guards.copy(torch.rand(n, generator=generator) + 0.1)
    before = torch.rand(n, generator=generator)
    sums = guards.copy(before)
    scratch = guards.empty((library.tda_squares_floats(n, threads),))
    library.tda_squares(
        a.data_ptr(),
        tokens,
        n,
        whole.stride(0) * dtype.itemsize,
        inside.data_ptr(),
        weights.data_ptr() if weighted else None,
        int(relative),
        sums.data_ptr(),
        scratch.data_ptr(),
        c.KINDS[dtype],
        threads,
    )
    guards.check()
    values = a.double() * (weights.double() if weighted else 1)
    squares = (float64.relative(values) if relative else values) ** 2
    expected = before.double() + squares[inside].sum(0)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-6)


@each_isa
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 1000])
def test_list(n: int, density: float) -> None:
    guards = Guards()
    mask = guards.copy(torch.rand(n) < density)
    index = guards.empty((int(mask.sum()),), torch.int32)
    assert c.library().tda_list(mask.data_ptr(), n, index.data_ptr()) == len(index)
    guards.check()
    assert torch.equal(index.long(), mask.nonzero()[:, 0])


@each_isa
@pytest.mark.parametrize("act", list(activations.ACTIVATIONS))
def test_activation_functions_from_end_to_end(act: str) -> None:
    """Tiny, ordinary and huge arguments, and NaN: a row for each through an FFN of one neuron and one input."""
    x = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([0.0, 1e-30, -1e-30, 1e12, -1e12, 1e-8])])
    one = torch.ones(1, 1)
    matrix = c.Matrix.of(one)
    description = c.FFNStruct(up=matrix, down=matrix, act=list(activations.ACTIVATIONS).index(act), down_rows=1)

    def run(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        scratch = torch.empty(c.library().tda_ffn_floats(ctypes.byref(description), 1))
        descriptions = (c.FFNStruct * len(x))(*[description] * len(x))
        c.library().tda_ffn(descriptions, len(x), x.data_ptr(), 4, y.data_ptr(), scratch.data_ptr(), 1, 1)
        return y

    expected = ACTIVATIONS[act](x.double()).float().double()
    torch.testing.assert_close(run(x).double(), expected, rtol=2e-6, atol=1e-6 if "gelu" in act else 1e-25)
    assert run(torch.full((3,), math.nan)).isnan().all()


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * nn.functional.silu(x)


class PlusOne(nn.Module):
    """Gemma's norm."""

    eps = 1e-6

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * (1 + self.weight)


class Tripled(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def an_ffn(act: nn.Module | None = None, dtype: torch.dtype = torch.float32, D: int = 24, F: int = 53) -> FFN:
    gate, up, down = (Linear(one.to(dtype)) for one in (nn.Linear(D, F), nn.Linear(D, F), nn.Linear(F, D)))
    return FFN(0, gate, up, down, nn.SiLU() if act is None else act, None, 0)


class TestDescriptions:
    def test_struct_sizes_are_those_of_c(self) -> None:
        sizes = (ctypes.c_int64 * 5)()
        c.library().tda_sizes(sizes)
        assert list(sizes) == [ctypes.sizeof(kind) for kind in (c.Matrix, c.Norm, c.FFNStruct, c.Layer, c.ModelStruct)]

    @pytest.mark.parametrize("which", ["gate", "up"])
    def test_columns_in_place_of_rows_are_refused(self, which: str) -> None:
        ffn = an_ffn()
        lay_rows(getattr(ffn, which))
        with pytest.raises(UndescribedError, match="rows of a weight are not contiguous"):
            check_ffn(ffn)
        assert "not contiguous" in str(native.problem([ffn]))

    def test_mixed_types_are_refused(self) -> None:
        ffn = an_ffn()
        ffn.down.module.to(torch.bfloat16)
        with pytest.raises(UndescribedError, match=r"torch\.bfloat16 .*torch\.float32"):
            check_ffn(ffn)

    def test_types_that_the_kernels_lack_are_named(self) -> None:
        assert "float16 on cpu" in str(native.problem([an_ffn(dtype=torch.float16)]))

    def test_the_activation_of_every_layer_counts(self) -> None:
        assert "Scaled" in str(native.problem([an_ffn(), an_ffn(Scaled())]))

    def test_activations_are_told_by_what_they_compute(self) -> None:
        known: list[nn.Module] = [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU()]
        assert [list(activations.ACTIVATIONS)[activation(act)] for act in known] == [
            "silu",
            "gelu",
            "gelu_tanh",
            "relu",
        ]
        with pytest.raises(UndescribedError):
            activation(nn.Sigmoid())

    def test_norms_are_told_by_what_they_compute(self) -> None:
        layer, rms = nn.LayerNorm(9), nn.RMSNorm(9, eps=1e-6)
        assert norm(layer).kind == c.NORMS.index("layer")
        assert norm(rms).kind == c.NORMS.index("rms")
        torch.nn.init.constant_(rms.weight, 80.0)
        assert norm(rms).kind == c.NORMS.index("rms")
        assert norm(PlusOne(rms.weight)).kind == c.NORMS.index("rms_plus_one")
        assert norm(None).kind == c.NORMS.index("none")
        with pytest.raises(UndescribedError):
            norm(Tripled(9, eps=1e-6))

    def test_a_described_ffn_is_the_modules_own(self) -> None:
        ffn = an_ffn()
        description: Any = feed_forward(ffn)
        assert not description.down_rows
        undo = lay_rows(ffn.down)
        assert feed_forward(ffn).down_rows
        undo()
        assert not feed_forward(ffn).down_rows


class TestExecutor:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_strided_and_expanded_inputs(self, dtype: torch.dtype) -> None:
        ffn = an_ffn(dtype=dtype)
        run = ListedFFN(ffn)
        wide = torch.randn(3, 48).to(dtype)
        for x in (wide[:, ::2], wide[:, 7:31], wide.view(6, 24)[:3], wide[:1, :24].expand(3, 24)):
            with torch.no_grad():
                expected = ffn.down.module(ffn.activation(x))
                found = run.run(x, [run.description] * 3)
            tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)

    def test_input_of_another_type_as_under_autocast(self) -> None:
        ffn = an_ffn()
        run, x = ListedFFN(ffn), torch.randn(2, 24).bfloat16()
        with torch.no_grad():
            expected = ffn.down.module(ffn.activation(x.float()))
        torch.testing.assert_close(run.run(x, [run.description] * 2).float(), expected, rtol=1e-5, atol=1e-5)

    def test_rows_with_lists_of_their_own_and_several_tokens(self) -> None:
        ffn = an_ffn()
        lay_rows(ffn.down)
        run = ListedFFN(ffn)
        with torch.no_grad():
            for batch, tokens in ((1, 1), (3, 2), (2, 1), (1, 4)):
                kept = torch.rand(batch, ffn.F) < 0.5
                x = torch.randn(batch, tokens, ffn.D)
                run.load(kept)
                expected = ffn.down.module(ffn.activation(x) * kept.unsqueeze(1))
                torch.testing.assert_close(run(x), expected, rtol=1e-5, atol=1e-5)
