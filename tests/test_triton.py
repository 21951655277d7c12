"""Triton kernels against float64: on a GPU where there is one, else by Triton's interpreter on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

import tda
from tda.contracts import ThresholdMethod
from tda.kernels import triton as backend
from tda.kernels.weights import lay_rows
from tda.view import FFN, Linear

pytest.importorskip("triton", reason="the kernels need the package triton")

from tda.kernels.triton import choice, down, ffn, rows, statistic, tuning

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16]
# On a GPU `make gpu-check` runs these; the interpreter is slow, so without one they are slow tests.
pytestmark = pytest.mark.gpu if DEVICE.type == "cuda" else pytest.mark.slow
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
ACTIVATIONS: dict[str, nn.Module] = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "relu_squared": ACT2FN["relu2"],
    "identity": nn.Identity(),
}
# F and D: odd, smaller than any block, a whole number of blocks, a single neuron.
SHAPES = [(53, 24), (5, 3), (64, 32), (1, 40), (37, 17)]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def sets(count: int, F: int) -> Tensor:
    """Kept sets of some rows; among them all neurons, none, the last one: bool [count, F]."""
    kept = torch.rand(count, F, generator=torch.Generator().manual_seed(count)) < 0.5
    kept[0] = True
    if count > 1:
        kept[1] = False
    if count > 2:
        kept[2] = torch.arange(F) == F - 1
    return kept.to(DEVICE)


def build_ffn(F: int, D: int, act: str, *, gated: bool, bias: bool, dtype: torch.dtype) -> FFN:
    torch.manual_seed(F * D)
    gate = nn.Linear(D, F, bias) if gated else None
    linears = [gate, nn.Linear(D, F, bias), nn.Linear(F, D, bias)]
    made = [linear and linear.to(DEVICE, dtype).requires_grad_(False) for linear in linears]
    gate, up, down = (None if linear is None else Linear(linear) for linear in made)
    assert up is not None
    assert down is not None
    return FFN(0, gate, up, down, ACTIVATIONS[act], None, 0)


def expected(layer: FFN, x: Tensor, kept: Tensor) -> Tensor:
    """FFN output in float64, left-out activations zero: x [N, D], kept [N, F] -> [N, D]."""

    def linear(module: nn.Linear, value: Tensor) -> Tensor:
        y = value @ module.weight.double().T
        return y if module.bias is None else y + module.bias.double()

    wide = x.double()
    z = layer.act(linear(layer.up, wide)) if layer.gate is None else layer.act(linear(layer.gate, wide))
    z = z if layer.gate is None else z * linear(layer.up, wide)
    return linear(layer.down, torch.where(kept, z, 0))


def close(ours: Tensor, exact: Tensor) -> None:
    """Apart by the rounding of the output's type only."""
    tolerance = 1e-5 if ours.dtype == torch.float32 else 8e-3
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


def test_interpreted_where_there_is_no_gpu() -> None:
    assert backend.interpreted() != torch.cuda.is_available()


@pytest.mark.parametrize("F", [1, 7, 16, 53, 130])
@pytest.mark.parametrize("as_view", [False, True])
def test_lists(F: int, as_view: bool) -> None:
    kept = sets(5, F)
    lists = rows.Lists.empty(5, F, DEVICE)
    lists.index.fill_(-7)
    choice.fill(lists, kept.t().contiguous().t() if as_view else kept)
    for row in range(5):
        wanted = kept[row].nonzero().squeeze(1).tolist()
        assert lists.counts[row] == len(wanted)
        assert lists.index[row, : len(wanted)].tolist() == wanted
        assert (lists.index[row, len(wanted) :] == -7).all(), "nothing is written past the count"


class TestLinear:
    @each_dtype
    @pytest.mark.parametrize(("F", "D"), SHAPES)
    @pytest.mark.parametrize("bias", [False, True])
    def test_equals_float64(self, F: int, D: int, bias: bool, dtype: torch.dtype) -> None:
        linear = nn.Linear(D, F, bias).to(DEVICE, dtype).requires_grad_(False)
        x = random(1, 1, D, dtype=dtype)
        y = rows.own_forward(linear, linear.forward)(x)
        exact = x.double() @ linear.weight.double().T
        close(y, exact if linear.bias is None else exact + linear.bias.double())

    def test_several_tokens_take_the_dense_one(self) -> None:
        linear = nn.Linear(4, 3).to(DEVICE)
        assert rows.own_forward(linear, lambda x: x + 1)(torch.zeros(2, 4)).equal(torch.ones(2, 4))

    def test_writes_inside_its_output_only(self) -> None:
        linear = nn.Linear(24, 53).to(DEVICE).requires_grad_(False)
        room = torch.full((53 + 128,), 7.0, device=DEVICE)
        rows.rows(random(1, 24), linear, room[64 : 64 + 53].view(1, 53))
        assert (room[:64] == 7).all()
        assert (room[64 + 53 :] == 7).all()

    def test_strided_weights_and_inputs(self) -> None:
        linear = nn.Linear(24, 53).to(DEVICE).requires_grad_(False)
        x = random(24, 6).t()[::2]  # tokens in columns, every second
        for stored in (random(24, 53).t(), random(106, 24)[::2], random(53, 48)[:, 3:27]):
            linear.weight = nn.Parameter(stored, requires_grad=False)
            out = torch.empty(3, 53, device=DEVICE)
            rows.rows(x, linear, out)
            close(out, x.double() @ stored.double().T + linear.bias.double())


class TestListed:
    @each_dtype
    @pytest.mark.parametrize("gated", [True, False])
    @pytest.mark.parametrize(
        ("F", "D", "act"),
        [*((*SHAPES[0], act) for act in ACTIVATIONS), *((*shape, "silu") for shape in SHAPES[1:])],
    )
    def test_equals_float64(self, F: int, D: int, act: str, gated: bool, dtype: torch.dtype) -> None:
        layer = build_ffn(F, D, act, gated=gated, bias=F % 2 == 1, dtype=dtype)
        lay_rows(layer.down)
        executor = ffn.ListedFFN(layer)
        for count in (1, 4):
            kept, x = sets(count, F), random(count, 1, D, dtype=dtype, seed=count)
            executor.load(kept)
            close(executor(x).view(count, D), expected(layer, x.view(count, D), kept))

    def test_sixteen_rows_with_several_tokens_each(self) -> None:
        layer = build_ffn(53, 24, "silu", gated=True, bias=True, dtype=torch.float32)
        executor = ffn.ListedFFN(layer)
        kept, x = sets(16, 53), random(16, 2, 24)
        executor.load(kept)
        exact = expected(layer, x.view(32, 24), kept.repeat_interleave(2, 0))
        close(executor(x).view(32, 24), exact)

    def test_a_new_selection_lies_where_the_old_one_lay(self) -> None:
        """What a captured graph rests on."""
        layer = build_ffn(53, 24, "silu", gated=True, bias=False, dtype=torch.float32)
        executor = ffn.ListedFFN(layer)
        addresses = set()
        for count in (1, 4, 1):
            executor.load(sets(count, 53))
            if count == 1:
                lists = executor._lists[1]
                addresses.add((lists.index.data_ptr(), lists.counts.data_ptr()))
        assert len(addresses) == 1

    def test_what_is_left_out_is_not_read(self) -> None:
        layer = build_ffn(53, 24, "silu", gated=True, bias=False, dtype=torch.float32)
        kept = sets(4, 53)[3:]
        x, exact = random(1, 24), expected(layer, random(1, 24), kept)
        assert layer.gate is not None
        for weight in (layer.gate.weight, layer.up.weight, layer.down.weight.t()):
            weight[~kept[0]] = float("nan")
        executor = ffn.ListedFFN(layer)
        executor.load(kept)
        close(executor(x), exact)


class TestThreshold:
    def run(self, layer: FFN, method: ThresholdMethod, cut: float, x: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        executor = ffn.ThresholdFFN(layer, method, lambda _, kept: seen.append(kept))
        executor._cut = cut
        y = executor(x)
        assert torch.equal(executor.kept.bool(), seen[0])
        return y, seen[0]

    @each_dtype
    @pytest.mark.parametrize("cut", [0.0, 0.1, 1e9], ids=["all", "some", "none"])
    @pytest.mark.parametrize("method", [tda.CATS(sparsity=0), tda.TT(sparsity=0)], ids=tiny.case_id)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_equals_float64(
        self, shape: tuple[int, int], method: ThresholdMethod, cut: float, dtype: torch.dtype
    ) -> None:
        F, D = shape
        gated = method.activation == "gate" or F % 2 == 1
        layer = build_ffn(F, D, "silu", gated=gated, bias=True, dtype=dtype)
        x = random(3, 1, D, dtype=dtype)
        y, kept = self.run(layer, method, cut, x)
        close(y.view(3, D), expected(layer, x.view(3, D), kept))
        wide = x.view(3, D).double()
        first = layer.gate or layer.up
        a = layer.act(wide @ first.weight.double().T + first.bias.double())
        if layer.gate is not None and method.activation != "gate":
            a = a * (wide @ layer.up.weight.double().T + layer.up.bias.double())
        weights = method.factors(layer)
        importance = a.abs() if weights is None else a.abs() * weights.double()
        clear = (importance - cut).abs() > 1e-5 * max(cut, 1)
        assert torch.equal(kept[clear], (importance >= cut)[clear])
        if cut in (0.0, 1e9):
            assert kept.all() == (cut == 0)
            assert kept.any() == (cut == 0)

    def test_cats_reads_up_and_down_for_kept_neurons_only(self) -> None:
        layer = build_ffn(53, 24, "silu", gated=True, bias=True, dtype=torch.float32)
        x = random(1, 24)
        y, kept = self.run(layer, tda.CATS(sparsity=0), 0.1, x)
        assert 0 < kept.sum() < 53
        for weight in (layer.up.weight, layer.down.weight.t()):
            weight[~kept[0]] = float("nan")
        assert torch.equal(self.run(layer, tda.CATS(sparsity=0), 0.1, x)[0], y)


class TestStatistic:
    @each_dtype
    @pytest.mark.parametrize("relative", [True, False])
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize("shape", [(2, 9, 53), (1, 1, 5), (3, 4, 32)])
    def test_equals_float64(
        self, shape: tuple[int, int, int], weighted: bool, relative: bool, dtype: torch.dtype
    ) -> None:
        B, T, F = shape
        a = random(T, B, 2 * F, dtype=dtype).transpose(0, 1)[..., ::2]
        a[0, 0] = 0
        mask = torch.ones(B, T, dtype=torch.bool, device=DEVICE)
        mask[-1, : T // 2] = False
        a[-1, : T // 2] = float("inf")
        weights = random(F, seed=3).abs() if weighted else None
        sums = torch.ones(B, F, device=DEVICE)
        for _ in range(2):  # chunks of a prompt add up
            statistic.add_squares(sums, a, mask, weights, relative)
        wide = torch.where(mask.unsqueeze(-1), a.double(), 0) * (1 if weights is None else weights.double())
        squares = wide.square()
        if relative:
            squares = squares / squares.sum(-1, keepdim=True).clamp(min=1e-300)
        torch.testing.assert_close(sums.double(), 1 + 2 * squares.sum(1), rtol=1e-5, atol=1e-6)


class TestTuning:
    CANDIDATES = (tuning.Config(8, 16), tuning.Config(16, 32, 8, 3))

    def test_the_fastest_wins(self) -> None:
        ran: list[tuning.Config] = []

        def clock(verb: Any) -> float:
            verb()
            return {8: 2.0, 16: 1.0}[ran[-1].rows]

        assert tuning.fastest(self.CANDIDATES, ran.append, clock) == self.CANDIDATES[1]
        assert ran == list(self.CANDIDATES)

    def test_what_does_not_fit_is_passed_over(self) -> None:
        from triton.runtime.errors import OutOfResources

        def clock(verb: Any) -> float:
            verb()
            return 1.0

        def trial(config: tuning.Config) -> None:
            if config.rows == 8:
                raise OutOfResources(2, 1, "shared memory")

        assert tuning.fastest(self.CANDIDATES, trial, clock) == self.CANDIDATES[1]

    @pytest.mark.gpu
    def test_on_a_gpu_what_was_timed_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rows, "CANDIDATES", self.CANDIDATES)
        linear = nn.Linear(512, 1024, dtype=torch.bfloat16).to(DEVICE).requires_grad_(False)
        x, out = random(1, 512, dtype=torch.bfloat16), torch.empty(1, 1024, dtype=torch.bfloat16, device=DEVICE)
        rows.rows(x, linear, out)
        close(out, x.double() @ linear.weight.double().T + linear.bias.double())
        kept = tuning.read(tuning._path())
        assert any(name.startswith("rows 1 1024 512") for name in kept)

    def test_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "triton.json"
        tuning.keep(path, {"rows 1": self.CANDIDATES[0]})
        tuning.keep(path, {"rows 2": self.CANDIDATES[1]})
        assert tuning.read(path) == {"rows 1": self.CANDIDATES[0], "rows 2": self.CANDIDATES[1]}

    @pytest.mark.parametrize("content", ["", "[1]", json.dumps({"rows": [1]}), json.dumps({"rows": ["x", 1]})])
    def test_a_broken_file_is_no_file(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "triton.json").write_text(content)
        assert tuning.read(tmp_path / "triton.json") == {}


def test_splits_share_any_count() -> None:
    """More blocks of neurons than there are splits, and fewer."""
    linear = nn.Linear(531, 7).to(DEVICE).requires_grad_(False)
    z, kept = random(3, 531), sets(3, 531)
    lists, y = rows.Lists.empty(3, 531, DEVICE), torch.empty(3, 7, device=DEVICE)
    choice.fill(lists, kept)
    down.down(z, linear, lists, y)
    close(y, torch.where(kept, z, 0).double() @ linear.weight.double().T + linear.bias.double())
