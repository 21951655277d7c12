"""Masked execution is the reference; compact and indexed must compute the same."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import tda
from tda.contracts import Method, PromptExecutor, PromptMethod, TokenMethod
from tda.engine.phases import decode, prefill
from tda.families import find_ffns
from tda.kernels.compact import CompactFFN
from tda.kernels.indexed import IndexedFFN
from tda.kernels.native.ffn import GatheredFFN
from tda.kernels.weights import lay_rows
from tda.methods import method as build_method
from tda.names import Execution
from tda.view import FFN

LENGTHS = (7, 1, 13)
Made = Callable[[FFN], PromptExecutor]
FAST_CASES = [
    (name, method, execution)
    for name, method in tiny.method_cases()
    for execution in method.executions
    if method.name != "dense" and execution in ("compact", "indexed")
]


@pytest.fixture(params=[CompactFFN, GatheredFFN])
def made(request: pytest.FixtureRequest) -> Made:
    """What makes an executor over gathered weights, by torch and by the kernels in C."""
    if request.param is GatheredFFN:
        request.getfixturevalue("kernels_in_c")
    chosen: Made = request.param
    return chosen


def fast_id(value: Any) -> str:
    return "-".join((value[0], value[1].name, value[2])) if isinstance(value, tuple) else str(value)


def decode_logits(
    model: Any, method: Method, thresholds: Any, execution: Any, lengths: tuple[int, ...] = LENGTHS, steps: int = 4
) -> tuple[Tensor, list[Tensor], list[float], str | None]:
    """Logits of some decode steps [B, G, V], the selection, what was left out, and the execution that ran."""
    tokens, mask = tiny.padded(tiny.prompts(lengths))
    fed = tiny.text(len(lengths), steps, seed=5)
    with torch.no_grad(), tda.attach(model, method, thresholds, execution=execution) as run:
        cache = prefill(model, tokens, mask).cache
        logits = []
        for step in range(steps):
            mask = torch.cat([mask, torch.ones(len(lengths), 1, dtype=torch.bool)], 1)
            logits.append(decode(model, fed[:, step : step + 1], cache, mask))
        return torch.cat(logits, 1), run.selection(), run.achieved_sparsity(), run.execution


@pytest.mark.parametrize("lengths", [LENGTHS, (9,)], ids=["batch", "alone"])
@pytest.mark.parametrize(
    "sparsity", [pytest.param(0.0, marks=pytest.mark.slow), pytest.param(0.3, marks=pytest.mark.slow), 0.9]
)
@pytest.mark.parametrize("case", tiny.sampled(FAST_CASES), ids=fast_id)
def test_fast_equals_masked(case: tuple[str, Method, Execution], sparsity: float, lengths: tuple[int, ...]) -> None:
    name, method, fast = case[0], build_method(case[1].name, sparsity), case[2]
    model, thresholds = tiny.model(name), tiny.thresholds(name, method)
    masked, selection, achieved, ran = decode_logits(model, method, thresholds, "masked", lengths)
    assert ran == "masked"
    found, same_selection, same_achieved, ran = decode_logits(model, method, thresholds, fast, lengths)
    assert ran == fast
    assert (found - masked).abs().max() <= 1e-4 * masked.abs().max()
    if isinstance(method, PromptMethod):
        assert all(torch.equal(one, other) for one, other in zip(selection, same_selection, strict=True))
        assert same_achieved == achieved
    assert same_achieved == pytest.approx(achieved, abs=0.01)


@pytest.mark.parametrize("method", [tda.Griffin(sparsity=0.5, rows="shared"), tda.TDA(rows="shared")], ids=tiny.case_id)
def test_shared_rows_in_compact(method: Method) -> None:
    thresholds = tiny.thresholds("llama", method)
    masked = decode_logits(tiny.model("llama"), method, thresholds, "masked")[0]
    found = decode_logits(tiny.model("llama"), method, thresholds, "compact")[0]
    assert (found - masked).abs().max() <= 1e-4 * masked.abs().max()


@pytest.mark.usefixtures("kernels_in_c")
@pytest.mark.parametrize(("rows", "backend"), [(1, "c"), (3, "torch (products of 3 rows run there)")])
def test_the_backend_of_compact_depends_on_the_rows(rows: int, backend: str) -> None:
    with torch.no_grad(), tda.attach(tiny.model("llama"), tda.Griffin(), execution="compact") as run:
        decode(run.attachment.model, tiny.text(rows, 1), prefill(run.attachment.model, tiny.text(rows, 6)).cache)
        assert (run.execution, run.backend) == ("compact", backend)


@pytest.mark.parametrize("case", tiny.sampled(FAST_CASES), ids=fast_id)
def test_bfloat16(case: tuple[str, Method, Execution]) -> None:
    """The same sets; logits apart by the rounding of bfloat16 only. A token's set may differ by neurons at the cut."""
    name, method, fast = case
    model = tiny.build(name).to(torch.bfloat16)
    thresholds = tiny.thresholds(name, method)
    masked, selection, _, _ = decode_logits(model, method, thresholds, "masked", steps=1)
    found, same_selection, _, _ = decode_logits(model, method, thresholds, fast, steps=1)
    assert masked.dtype == found.dtype == torch.bfloat16
    tolerance = 0.05 * masked.double().abs().max()
    alike = torch.stack([(one == other).all(1) for one, other in zip(selection, same_selection, strict=True)]).all(0)
    assert ((found.double() - masked.double()).abs() <= tolerance)[alike].all()
    if isinstance(method, PromptMethod):
        assert alike.all()
        assert all(torch.equal(one, other) for one, other in zip(selection, same_selection, strict=True))
        dense = decode_logits(model, tda.Dense(), None, "auto", steps=1)[0]
        assert (dense.double() - masked.double()).abs().max() > 2 * tolerance, "the tolerance tells dense from sparse"
    else:
        equal = torch.cat(selection) == torch.cat(same_selection)
        assert equal.double().mean() > 0.95


@pytest.mark.parametrize("case", tiny.sampled(tiny.method_cases(sparsity=0.0)), ids=tiny.case_id)
def test_sparsity_zero_in_masked_is_dense_bit_for_bit(case: tuple[str, Method]) -> None:
    name, method = case
    model, prompts = tiny.model(name), tiny.prompts(LENGTHS)
    tokens, mask = tiny.padded(prompts)
    options: dict[str, Any] = {
        "attention_mask": mask.long(),
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    dense = model.generate(tokens, **options)
    with tda.attach(model, method, execution="masked") as run:
        attached = model.generate(tokens, **options)
        assert run.achieved_sparsity() == [0.0] * tiny.LAYERS
        assert all(kept.all() for kept in run.selection())
    assert torch.equal(dense.sequences, attached.sequences)
    assert torch.equal(torch.stack(dense.logits), torch.stack(attached.logits))


@pytest.mark.parametrize("name", ["llama", "opt", "opt-post-norm"])
def test_a_layer_that_keeps_nothing(name: str) -> None:
    """A cut above every score: the FFN gives its last bias and no more."""
    model = tiny.model(name)
    for method in (tda.TDA(sparsity=0.5), tda.TT(sparsity=0.5), tda.CATS(sparsity=0.5)):
        if not tiny.fits(name, method):
            continue
        thresholds = tiny.thresholds(name, method)
        high = tuple((1e9,) * len(cuts) for cuts in thresholds.cuts)
        thresholds = thresholds.model_copy(update={"cuts": high})
        masked, _, achieved, _ = decode_logits(model, method, thresholds, "masked")
        assert achieved == [1.0] * tiny.LAYERS
        found, _, achieved, _ = decode_logits(model, method, thresholds, method.executions[0])
        assert achieved == [1.0] * tiny.LAYERS
        assert (found - masked).abs().max() <= 1e-4 * masked.abs().max()


class TestAuto:
    def ran(self, method: Method, lengths: tuple[int, ...], name: str = "llama") -> str | None:
        return decode_logits(tiny.model(name), method, tiny.thresholds(name, method), "auto", lengths)[3]

    def test_one_row_takes_the_fast_path(self) -> None:
        for method in tiny.default_methods():
            wanted = {"dense": "dense", "oracle": "masked"}.get(method.name, method.executions[0])
            assert self.ran(method, (9,)) == ("compact" if isinstance(method, PromptMethod) else wanted)

    def test_neurons_of_4_kib_and_more_are_read_where_they_lie(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Jumping over short ones costs more than it saves; the tiny models' have fewer than 4,096 bytes."""
        ffn = find_ffns(tiny.model("llama"))[0]
        monkeypatch.setattr("tda.engine.backends.native.SHORT", 3 * ffn.D * 4)
        assert self.ran(tda.Griffin(), (9,)) == "indexed"
        assert self.ran(tda.Griffin(), (9,), "opt") == "compact"
        monkeypatch.setattr("tda.engine.backends.native.SHORT", 3 * ffn.D * 4 + 1)
        assert self.ran(tda.Griffin(), (9,)) == "compact"

    def test_rows_that_share_a_set_take_the_fast_path(self) -> None:
        assert self.ran(tda.Griffin(sparsity=0.5, rows="shared"), (9,) * 8) == "compact"
        assert self.ran(tda.Magnitude(sparsity=0.5), (9,) * 8) == "compact"

    def test_rows_with_sets_of_their_own_run_dense_arithmetic_when_gathering_would_read_more(self) -> None:
        assert self.ran(tda.Griffin(sparsity=0.5), (9,) * 8) == "masked"
        assert self.ran(tda.Griffin(sparsity=0.9), (9,) * 8) == "compact"
        assert self.ran(tda.TT(sparsity=0.5), (9,) * 8) == "masked"

    @pytest.mark.parametrize("lengths", [(9,), LENGTHS])
    def test_gives_what_masked_gives(self, lengths: tuple[int, ...]) -> None:
        for name, method in tiny.method_cases("llama", "opt"):
            thresholds = tiny.thresholds(name, method)
            masked = decode_logits(tiny.model(name), method, thresholds, "masked", lengths)[0]
            found = decode_logits(tiny.model(name), method, thresholds, "auto", lengths)[0]
            assert (found - masked).abs().max() <= 1e-4 * masked.abs().max()


def kept_z(ffn: FFN, x: Tensor, kept: Tensor) -> Tensor:
    """FFN output [N, D] in float64, the left-out activations zero."""
    copy = {name: getattr(ffn, name) for name in ("gate", "up", "down")}
    weights = {name: None if linear is None else linear.weight.double() for name, linear in copy.items()}
    biases = {
        name: 0 if linear is None or linear.bias is None else linear.bias.double() for name, linear in copy.items()
    }
    up = x.double() @ weights["up"].T + biases["up"]
    z = ffn.act(up) if weights["gate"] is None else ffn.act(x.double() @ weights["gate"].T + biases["gate"]) * up
    result: Tensor = (z * kept) @ weights["down"].T + biases["down"]
    return result


class TestKernels:
    @pytest.mark.parametrize("name", tiny.names())
    def test_compact_with_unequal_counts(self, name: str, made: Made) -> None:
        """Rows that keep 0, 1, half and all neurons at once, loaded over one another."""
        ffn = find_ffns(tiny.model(name))[0]
        executor = made(ffn)
        with torch.no_grad():
            for seed in range(4):
                generator = torch.Generator().manual_seed(seed)
                kept = torch.rand(4, ffn.F, generator=generator) < 0.5
                kept[seed] = torch.arange(ffn.F) == seed
                kept[(seed + 1) % 4] = True
                kept[(seed + 2) % 4] = False
                x = torch.randn(4, 3, ffn.D, generator=generator)
                executor.load(kept)
                expected = kept_z(ffn, x, kept.unsqueeze(1))
                torch.testing.assert_close(executor(x).double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", tiny.names())
    def test_indexed_with_several_tokens(self, name: str) -> None:
        ffn = find_ffns(tiny.model(name))[0]
        for method in (tda.TT(sparsity=0.5), tda.CATS(sparsity=0.5)):
            if not tiny.fits(name, method):
                continue
            seen: list[Tensor] = []
            executor = IndexedFFN(ffn, tiny.fitted(name, method), lambda layer, kept, to=seen: to.append(kept))
            x = torch.randn(2, 3, ffn.D)
            with torch.no_grad():
                y = executor(x)
                expected = kept_z(ffn, x.view(6, -1), seen[0])
            torch.testing.assert_close(y.view(6, -1).double(), expected, rtol=1e-5, atol=1e-5)
            assert 0 < seen[0].sum() < seen[0].numel()

    @pytest.mark.parametrize("name", tiny.names())
    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_compact_of_a_single_token(self, name: str, share: float, made: Made) -> None:
        """One row, or rows that are alike; weights as the model has them, or laid out for the kernels."""
        model = tiny.build(name)
        ffn = find_ffns(model)[0]
        kept = torch.rand(1, ffn.F, generator=torch.Generator().manual_seed(1)) < share
        x = torch.randn(3, 1, ffn.D)
        with torch.no_grad():
            expected = kept_z(ffn, x, kept)
            for rows in (1, 3):
                executor = made(ffn)
                executor.load(kept.expand(rows, -1))
                torch.testing.assert_close(executor(x).double(), expected, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(executor(x[1:2]).double(), expected[1:2], rtol=1e-5, atol=1e-5)
                lay_rows(ffn.down, *ffn.inputs)

    def test_compact_does_not_touch_the_weights(self, made: Made) -> None:
        ffn = find_ffns(tiny.model("llama"))[0]
        before = [linear.weight.clone() for linear in ffn.linears]
        executor = made(ffn)
        executor.load(torch.rand(2, ffn.F) < 0.5)
        executor(torch.randn(2, 1, ffn.D))
        assert all(torch.equal(linear.weight, was) for linear, was in zip(ffn.linears, before, strict=True))

    def test_backend_has_a_name_and_a_reason(self) -> None:
        backend = tda.kernels.backend()
        assert backend.name
        assert backend.reason in str(backend)

    def test_backend_of_a_gpu_says_whether_triton_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert str(tda.kernels.backend("cuda")).endswith("cannot run here: the package triton is not installed)")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        assert tda.kernels.backend("cuda:1").name == "triton"


def test_per_token_methods_skip_tokens_one_by_one() -> None:
    """Teacher-forced, every token of a row has a set of its own."""
    model, method = tiny.model("llama"), tda.TT(sparsity=0.5)
    assert isinstance(method, TokenMethod)
    prompt, fed = tiny.text(2, 9), tiny.text(2, 6, seed=1)
    with torch.no_grad():
        for execution in ("masked", "indexed"):
            with tda.attach(model, method, tiny.thresholds("llama", method), execution=execution) as run:
                cache = prefill(model, prompt).cache
                with run.decode():
                    together = decode(model, fed, cache)
                cache = prefill(model, prompt).cache
                single = torch.cat([decode(model, fed[:, s : s + 1], cache) for s in range(6)], 1)
            torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [case for case in FAST_CASES if case[0] in ("llama", "opt", "gemma")], ids=fast_id)
def test_cuda_equals_cpu(case: tuple[str, Method, Execution], dtype: torch.dtype) -> None:
    name, method, fast = case
    thresholds = tiny.thresholds(name, method)
    prompt, fed = tiny.text(2, 9), tiny.text(2, 3, seed=1)
    results = {}
    for device in ("cpu", "cuda"):
        model = tiny.build(name).to(device=device, dtype=dtype)
        for execution in ("masked", fast):
            with torch.no_grad(), tda.attach(model, method, thresholds, execution=execution) as run:
                cache = prefill(model, prompt.to(device)).cache
                logits = [decode(model, fed[:, s : s + 1].to(device), cache) for s in range(3)]
                results[device, execution] = torch.cat(logits, 1).double().cpu()
                assert all(kept.device.type == device for kept in run.selection())
    wanted = results["cpu", "masked"]
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    for found in results.values():
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "opt"])
# On CUDA transformers compiles a step on a static cache, and torch's compiler warns of parts of its own.
@pytest.mark.filterwarnings(r"default:::torch\.")
def test_generate_on_cuda_equals_cpu(name: str, options: dict[str, Any]) -> None:
    tokens, mask = tiny.padded(tiny.prompts(LENGTHS))
    found = []
    for device in ("cpu", "cuda"):
        model = tiny.build(name).to(device)
        with tda.attach(model, tda.Griffin(sparsity=0.5), execution="compact") as run:
            output = model.generate(
                tokens.to(device), attention_mask=mask.long().to(device), max_new_tokens=8, do_sample=False, **options
            )
            assert run.execution == "compact"
        found.append(output.cpu())
    assert torch.equal(*found)
