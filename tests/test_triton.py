"""Triton kernels against float64: on a GPU where there is one, else by Triton's interpreter on the CPU."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

import tda
from tda.contracts import ThresholdMethod
from tda.kernels import triton as backend
from tda.kernels.weights import lay_rows
from tda.spans import counting
from tda.view import FFN, Linear

pytest.importorskip("triton", reason="the kernels need the package triton")

from tda.kernels.triton import choice, down, ffn, rows, statistic, tune, tuning
from tda.kernels.triton.launch import KERNELS, Kernel, Launch, launches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# On a GPU `make gpu-check` runs these; the interpreter is slow, so without one they are slow tests.
pytestmark = pytest.mark.gpu if DEVICE.type == "cuda" else pytest.mark.slow
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])
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
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[ours.dtype]
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
        rows.rows(random(1, 24), Linear(linear), room[64 : 64 + 53].view(1, 53))
        assert (room[:64] == 7).all()
        assert (room[64 + 53 :] == 7).all()

    def test_strided_weights_and_inputs(self) -> None:
        linear = nn.Linear(24, 53).to(DEVICE).requires_grad_(False)
        x = random(24, 6).t()[::2]  # tokens in columns, every second
        for stored in (random(24, 53).t(), random(106, 24)[::2], random(53, 48)[:, 3:27]):
            linear.weight = nn.Parameter(stored, requires_grad=False)
            out = torch.empty(3, 53, device=DEVICE)
            rows.rows(x, Linear(linear), out)
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
        executor = ffn.TritonListedFFN(layer)
        for count in (1, 4):
            kept, x = sets(count, F), random(count, 1, D, dtype=dtype, seed=count)
            executor.load(kept)
            close(executor(x).view(count, D), expected(layer, x.view(count, D), kept))

    @pytest.mark.parametrize("count", range(1, 17))
    def test_any_number_of_rows_from_inputs_that_lie_apart(self, count: int) -> None:
        layer = build_ffn(21, 18, "gelu", gated=count % 2 == 0, bias=True, dtype=torch.float32)
        executor, kept = ffn.TritonListedFFN(layer), sets(count, 21)
        x = random(18, 3 * count).t()[::3]  # every third token, stored in columns
        executor.load(kept.t().contiguous().t())
        close(executor(x.unsqueeze(1)).view(count, 18), expected(layer, x, kept))

    def test_sixteen_rows_with_several_tokens_each(self) -> None:
        layer = build_ffn(53, 24, "silu", gated=True, bias=True, dtype=torch.float32)
        executor = ffn.TritonListedFFN(layer)
        kept, x = sets(16, 53), random(16, 2, 24)
        executor.load(kept)
        exact = expected(layer, x.view(32, 24), kept.repeat_interleave(2, 0))
        close(executor(x).view(32, 24), exact)

    def test_a_new_selection_lies_where_the_old_one_lay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a captured graph rests on."""
        layer = build_ffn(53, 24, "silu", gated=True, bias=False, dtype=torch.float32)
        executor = ffn.TritonListedFFN(layer)
        held: list[rows.Lists] = []  # so that no other tensor gets their addresses
        monkeypatch.setattr(ffn, "fill", lambda lists, kept: held.append(lists))
        for count in (1, 4, 1):
            executor.load(sets(count, 53))
        first, other, again = ((lists.index.data_ptr(), lists.counts.data_ptr()) for lists in held)
        assert first == again != other

    def test_what_is_left_out_is_not_read(self) -> None:
        layer = build_ffn(53, 24, "silu", gated=True, bias=False, dtype=torch.float32)
        kept = sets(4, 53)[3:]
        x, exact = random(1, 24), expected(layer, random(1, 24), kept)
        assert layer.gate is not None
        for weight in (layer.gate.weight, layer.up.weight, layer.down.weight.t()):
            weight[~kept[0]] = float("nan")
        executor = ffn.TritonListedFFN(layer)
        executor.load(kept)
        close(executor(x), exact)


class TestThreshold:
    def run(self, layer: FFN, method: ThresholdMethod, cut: float, x: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        with mock.patch.object(type(method), "cut", return_value=cut):
            executor = ffn.TritonThresholdFFN(layer, method, lambda _, kept: seen.append(kept))
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
        sweep = statistic.SquaresKernel()
        for _ in range(2):  # chunks of a prompt add up
            assert sweep(sums, a, mask, weights, relative)
            sweep.finish()
        wide = torch.where(mask.unsqueeze(-1), a.double(), 0) * (1 if weights is None else weights.double())
        squares = wide.square()
        if relative:
            squares = squares / squares.sum(-1, keepdim=True).clamp(min=1e-300)
        torch.testing.assert_close(sums.double(), 1 + 2 * squares.sum(1), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("relative", [True, False])
    def test_layers_that_wait_for_each_other_get_their_own_sums(
        self, relative: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a = [random(2, 5, 37, seed=layer) for layer in range(5)] + [random(2, 5, 21)]  # one of another size
        weights = [random(one.shape[-1], seed=9 + layer).abs() for layer, one in enumerate(a)]
        mask = torch.ones(2, 5, dtype=torch.bool, device=DEVICE)
        mask[1, :2] = False
        launched: list[int] = []
        launch = Kernel.launch
        monkeypatch.setattr(statistic, "MOST_BYTES", 3 * a[0].nbytes)

        def noting(kernel: Kernel, entry: Launch, grid: tuple[int, ...], given: Any) -> None:
            if kernel is statistic.SQUARES:
                launched.append(grid[-1])
            launch(kernel, entry, grid, given)

        monkeypatch.setattr(Kernel, "launch", noting)
        sums, sweep = [torch.zeros(2, one.shape[-1], device=DEVICE) for one in a], statistic.SquaresKernel()
        for one, own, weight in zip(a, sums, weights, strict=True):
            sweep(own, one, mask, weight, relative)
        sweep.finish()
        sweep.finish()
        assert launched == [3, 2, 1], "as many as may wait; what is left; another size alone"
        for one, own, weight in zip(a, sums, weights, strict=True):
            squares = (one.double() * weight.double() * mask.unsqueeze(-1)).square()
            squares = squares / squares.sum(-1, keepdim=True).clamp(min=1e-300) if relative else squares
            torch.testing.assert_close(own.double(), squares.sum(1), rtol=1e-5, atol=1e-6)

    def test_in_inference_mode(self) -> None:
        sums, mask, sweep = (
            torch.zeros(1, 5, device=DEVICE),
            torch.ones(1, 2, dtype=torch.bool),
            statistic.SquaresKernel(),
        )
        with torch.inference_mode():
            a = random(1, 2, 5)
            sweep(sums, a, mask.to(DEVICE), None, False)
            sweep.finish()
        torch.testing.assert_close(sums, a.square().sum(1))

    def test_activations_that_changed_meanwhile_are_refused(self) -> None:
        a, sweep = random(1, 2, 5), statistic.SquaresKernel()
        sweep(torch.zeros(1, 5, device=DEVICE), a, torch.ones(1, 2, dtype=torch.bool, device=DEVICE), None, True)
        a.add_(1)
        with pytest.raises(ValueError, match="changed in place"):
            sweep.finish()


class TestLaunches:
    def test_a_launch_that_is_not_listed_is_impossible(self) -> None:
        listed = next(entry for entry in launches() if entry.kernel == "_rows")
        odd = listed._replace(block=listed.block._replace(columns=24))
        with pytest.raises(ValueError, match=r"compiled: _rows .* 24"):
            KERNELS["_rows"].launch(odd, (1,), {})

    def test_types_of_what_is_written_are_held(self) -> None:
        linear = nn.Linear(24, 53).to(DEVICE).requires_grad_(False)
        with pytest.raises(ValueError, match=r"out is torch.float64; expected torch.float32"):
            rows.rows(random(1, 24), Linear(linear), torch.empty(1, 53, dtype=torch.float64, device=DEVICE))

    def test_the_list_is_short_and_has_what_is_measured_to_be_best(self) -> None:
        entries = launches()
        assert len(entries) == len(set(entries)) <= 300
        assert {entry.dtype for entry in entries if entry.kernel == "_rows"} == set(backend.DTYPES)
        best = rows.Tile(1, 2048, 8, 3)  # on an H100, for most shapes
        assert Launch("_rows", "linear", torch.bfloat16, True, best) in entries
        assert all(form.blocks[0] == best for form in rows.FORMS.values())

    @pytest.mark.parametrize("change", ["inputs", "stride", "address"])
    def test_what_is_not_aligned_takes_a_launch_of_its_own(self, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tda.kernels.triton.launch.interpreted", lambda: False)
        x = torch.zeros(1, 32)
        given = {"x": x, "K": 32, "x_row": 32, "w1_row": 32, "w1_column": 1, "w2_row": 32, "w2_column": 1}
        assert rows.ROWS.is_aligned(given)
        odd = {"inputs": {"K": 24}, "stride": {"w1_column": 2}, "address": {"x": torch.zeros(33)[1:]}}[change]
        assert not rows.ROWS.is_aligned({**given, **odd})


class TestCosts:
    """Bytes and FLOPs of launches against a count by hand: float32, 53 neurons of 24, 20 of them kept."""

    def told(self, work: Any) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}

        def note(kernel: str, nbytes: int, flops: int) -> None:
            before = found.get(kernel, (0, 0))
            found[kernel] = before[0] + nbytes, before[1] + flops

        work()
        with counting(note):
            work()
        return found

    def test_a_linear(self) -> None:
        linear, out = Linear(nn.Linear(24, 53).to(DEVICE).requires_grad_(False)), torch.empty(1, 53, device=DEVICE)
        found = self.told(lambda: rows.rows(random(1, 24), linear, out))
        assert found == {"_rows": (4 * (53 * 24 + 24 + 53), 2 * 53 * 24)}

    def test_a_network_over_lists(self) -> None:
        layer = build_ffn(53, 24, "silu", gated=True, bias=False, dtype=torch.float32)
        executor, kept = ffn.TritonListedFFN(layer), torch.arange(53, device=DEVICE)[None] < 20
        executor.load(kept)
        found = self.told(lambda: executor(random(1, 24)))
        parts = down.SPLIT[0].splits * 24
        assert found == {
            "_rows": (4 * (2 * 20 * 24 + 24 + 20), 2 * 2 * 20 * 24),
            "_down": (4 * (20 * 24 + 20 + parts), 2 * 20 * 24),
            "_finish": (4 * (parts + 24), 0),
        }
        assert self.told(lambda: executor.load(kept)) == {"_list": (53 + 4 * 20 + 4, 0)}

    def test_the_statistic_of_two_layers(self) -> None:
        a, sums, sweep = (
            random(1, 5, 53),
            [torch.zeros(1, 53, device=DEVICE) for _ in range(2)],
            statistic.SquaresKernel(),
        )
        mask = torch.ones(1, 5, dtype=torch.bool, device=DEVICE)

        def work() -> None:
            for own in sums:
                sweep(own, a, mask, None, True)
            sweep.finish()

        read, factors = 4 * 2 * 5 * 53, 4 * 2 * 5
        assert self.told(work) == {"_factors": (read + factors, 0), "_squares": (read + factors + 4 * 2 * 2 * 53, 0)}


class TestTuning:
    def layer(self, *, gated: bool = True) -> FFN:
        return build_ffn(53, 24, "silu", gated=gated, bias=True, dtype=torch.float32)

    @pytest.mark.parametrize("gated", [True, False])
    def test_every_way_of_reading_is_a_task(self, gated: bool) -> None:
        head = Linear(nn.Linear(24, 99).to(DEVICE).requires_grad_(False))
        found = {task.key for task in tune.tasks([self.layer(gated=gated)] * 2, [head])}
        word, more = ("gate_up", {"rows rule_up float32 53 x 24", "rows listed_times float32 53 x 24"})
        word, more = (word, more) if gated else ("up", set())
        assert found == more | {
            "rows linear float32 99 x 24",
            "rows linear float32 53 x 24",
            "rows linear float32 24 x 53",
            f"rows listed_{word} float32 53 x 24",
            f"rows rule_{word} float32 53 x 24",
            "down split float32 53 x 24",
        }

    def test_keys_are_those_that_launches_ask_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: set[str] = set()

        def chosen(kernel: Any, form: str, dtype: torch.dtype, shape: tuple[int, ...]) -> rows.Tile:
            asked.add(tuning.key_of(kernel, form, dtype, shape))
            return kernel.forms[form].blocks[0]

        for module in (rows, down):
            monkeypatch.setattr(module, "chosen", chosen)
        layer, x = self.layer(), random(1, 24)
        listed = ffn.TritonListedFFN(layer)
        listed.load(sets(1, 53))
        listed(x)
        for method in (tda.CATS(sparsity=0), tda.TT(sparsity=0)):
            ffn.TritonThresholdFFN(layer, method, lambda _, kept: None)(x)
        rows.own_forward(layer.down.module, layer.down.module.forward)(random(1, 53))
        assert asked <= {task.key for task in tune.tasks([layer], [])}
        assert len(asked) == 6

    def test_the_block_that_takes_least_over_all_fractions_wins(self) -> None:
        ran: list[rows.Tile] = []

        def clock(work: Any) -> float:
            work()
            return {1: 3.0, 2: 1.0}.get(ran[-1].rows, 2.0)

        task = next(task for task in tune.tasks([self.layer()], []) if task.form == "listed_gate_up")
        run = task.run

        def noting(block: rows.Tile, fraction: float) -> None:
            ran.append(block)
            run(block, fraction)

        object.__setattr__(task, "run", noting)
        (found,) = tune.tune([task], 60, clock)
        assert isinstance(found, tune.Tuned)
        assert found.best.block.rows == 2
        assert [one.block for one in found.tried] == list(rows.BLOCKS)
        assert found.best.gb_per_s == (2 * 0.5 * 53 * 24 * 4 / 1e6, 2 * 0.25 * 53 * 24 * 4 / 1e6)
        assert len(found.evidence()["tried"]) == len(rows.BLOCKS)

    def test_without_time_nothing_is_kept_of_a_shape(self) -> None:
        wanted = tune.tasks([self.layer()], [])
        assert list(tune.tune(wanted, 0.0, lambda work: 1.0)) == wanted

    @pytest.mark.gpu
    def test_on_a_gpu_what_was_measured_is_kept_and_taken(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        linear = nn.Linear(512, 1024, dtype=torch.bfloat16).to(DEVICE).requires_grad_(False)
        tuning.kept_blocks.cache_clear()
        (found,) = tune.tune(tune.tasks([], [Linear(linear)]), 60)
        assert isinstance(found, tune.Tuned)
        tuning.keep(tuning.path_of(), {found.task.key: found.evidence()})
        assert tuning.chosen(rows.ROWS, "linear", torch.bfloat16, (1024, 512)) == found.best.block
        x, out = random(1, 512, dtype=torch.bfloat16), torch.empty(1, 1024, dtype=torch.bfloat16, device=DEVICE)
        for block in rows.BLOCKS:
            rows.rows(x, Linear(linear), out, block=block)
            close(out, x.double() @ linear.weight.double().T + linear.bias.double())

    def test_is_kept_beside_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "triton.json"
        one, other = {"block": [1, 2048, 8, 3, 1]}, {"block": [4, 512, 4, 3, 1]}
        tuning.keep(path, {"rows 1": one})
        tuning.keep(path, {"rows 2": other})
        assert tuning.read(path) == {"rows 1": one, "rows 2": other}

    @pytest.mark.parametrize(
        "content",
        [
            *("", "[1]", "{}", '{"format": 1}', '{"format": 0, "shapes": {}}', "[" * 100_000),
            *(
                f'{{"format": 1, "shapes": {{"a": {one}}}}}'
                for one in ('{"block": [1]}', '{"block": ["x", 1]}', '{"block": [Infinity, 1]}', "3")
            ),
        ],
    )
    def test_a_broken_file_is_no_file(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "triton.json").write_text(content)
        assert tuning.read(tmp_path / "triton.json") == {}

    def test_a_broken_entry_costs_no_other(self, tmp_path: Path) -> None:
        good = {"block": [1, 512, 8, 3, 1]}
        tuning.keep(tmp_path / "triton.json", {"bad": {"block": None}, "good": good})
        assert tuning.read(tmp_path / "triton.json") == {"good": good}

    def test_a_shape_that_is_not_tuned_takes_the_default_and_is_noted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        kept = {"rows linear bfloat16 8 x 16": rows.BLOCKS[2], "rows linear bfloat16 8 x 32": rows.Tile(3, 3)}
        monkeypatch.setattr(tuning, "kept_blocks", lambda device: kept)
        monkeypatch.setattr(tuning, "DEFAULTS_TAKEN", {})
        assert tuning.chosen(rows.ROWS, "linear", torch.bfloat16, (8, 16)) == rows.BLOCKS[2]
        assert tuning.chosen(rows.ROWS, "linear", torch.bfloat16, (8, 32)) == rows.BLOCKS[0], "it is none of ours"
        assert tuning.chosen(rows.ROWS, "linear", torch.bfloat16, (9, 16)) == rows.BLOCKS[0]
        assert list(tuning.DEFAULTS_TAKEN) == ["rows linear bfloat16 8 x 32", "rows linear bfloat16 9 x 16"]


def test_splits_share_any_count() -> None:
    """More blocks of neurons than there are splits, and fewer."""
    linear = nn.Linear(531, 7).to(DEVICE).requires_grad_(False)
    z, kept = random(3, 531), sets(3, 531)
    lists, y = rows.Lists.empty(3, 531, DEVICE), torch.empty(3, 7, device=DEVICE)
    choice.fill(lists, kept)
    for block in (*down.SPLIT, *down.WHOLE):
        down.down(z, Linear(linear), lists, y.fill_(9), block=block)
        close(y, torch.where(kept, z, 0).double() @ linear.weight.double().T + linear.bias.double())
