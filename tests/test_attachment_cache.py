"""What attachments leave in an attachment cache for the next ones; CUDA is played on a CPU, where Triton interprets."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from statistics import median
from typing import Any

import model_state
import pytest
import tiny
import torch
from test_triton_engine import close, run_anew, serve
from torch import Tensor

import tda
from tda.contracts import Method
from tda.device import Timer
from tda.engine import graph
from tda.engine.backends import BACKENDS
from tda.engine.backends import attachment_cache as caches
from tda.engine.backends.attachment_cache import AttachmentCache, attachment_cache
from tda.engine.backends.triton import TritonBackend
from tda.engine.phases import prefill
from tda.families import find_ffns

pytest.importorskip("triton", reason="the kernels need the package triton")
pytestmark = pytest.mark.slow


class Room:
    """A device's memory, played: what an attachment cache may still take."""

    def __init__(self) -> None:
        self.left = 1e9
        self.first: list[float] = []  # what is told before that

    def __call__(self, device: torch.device) -> float:
        return self.first.pop(0) if self.first else self.left


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """CPU models take the way of CUDA models, with so much memory left."""
    if torch.cuda.is_available():
        pytest.skip("played on a CPU, where Triton interprets")
    played = Room()
    monkeypatch.setitem(BACKENDS, "cpu", TritonBackend)
    monkeypatch.setattr(graph, "capture_graph", run_anew)
    monkeypatch.setattr(graph, "CAPACITY", 32)
    monkeypatch.setattr("tda.engine.warm_up.PROMPT_TOKENS", 1)
    monkeypatch.setattr(caches, "free_bytes", played)
    yield played
    assert not caches.CACHES


def attached(model: Any, method: Method) -> tuple[Tensor, Any, list[float]]:
    """Logits of a short request, what ran its decode, and the sparsity that was counted."""
    with torch.no_grad(), tda.attach(model, method, tiny.thresholds("llama", method), execution="auto") as run:
        logits = serve(model, (3,), steps=1)
        return logits, run.attachment.decoding, run.achieved_sparsity()


METHODS = [
    tda.Griffin(sparsity=0.5),
    tda.Griffin(sparsity=0.25),
    tda.CATS(sparsity=0.5),
    tda.Dense(dense_kernel="own"),
]


def test_attachments_go_on_with_what_earlier_ones_left(memory: Room) -> None:
    model = tiny.build("llama")
    before, wanted = model_state.state(model), [attached(model, method) for method in METHODS]
    with attachment_cache(model):
        first = [attached(model, method) for method in METHODS]
        again = [attached(model, method) for method in reversed(METHODS)][::-1]
    for (alone, _, left_out), (one, made, _), (other, found, counted) in zip(wanted, first, again, strict=True):
        close(one, alone)
        assert torch.equal(one, other)
        assert found is made
        assert found.warm
        assert found.step.captures == 1
        assert counted == left_out
    assert first[0][1] is first[1][1], "one step serves all sparsities of methods that choose per prompt"
    model_state.same(before, model_state.state(model))
    fresh = attached(model, METHODS[0])[1]
    assert fresh is not first[0][1], "nothing is left after the cache"


def test_the_weights_lie_as_they_lay_and_kernels_read_copies(memory: Room) -> None:
    model = tiny.build("llama")
    places = [parameter.data_ptr() for parameter in model.parameters()]
    strides = [parameter.stride() for parameter in model.parameters()]
    with attachment_cache(model), tda.attach(model, METHODS[0], execution="indexed") as run:
        assert [parameter.data_ptr() for parameter in model.parameters()] == places
        for ffn, executor in zip(run.attachment.decoding.ffns, run.attachment.decoding.executors, strict=True):
            copied = executor.ffn.down.weight
            assert copied.t().is_contiguous()
            assert copied.data_ptr() != ffn.down.weight.data_ptr()
            assert torch.equal(copied, ffn.down.weight)
    with tda.attach(model, METHODS[0], execution="indexed"):  # without an attachment cache there is no second copy
        assert model.model.layers[0].mlp.down_proj.weight.t().is_contiguous()
    assert [parameter.stride() for parameter in model.parameters()] == strides


@torch.no_grad()
def in_place(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight.mul_(2)


def other_memory(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight.data = 2 * model.model.layers[0].mlp.down_proj.weight.data


def other_norm(model: Any) -> None:
    model.model.norm.weight.data = 2 * model.model.norm.weight.data


def configured(model: Any) -> None:
    model.config._attn_implementation = "eager"


@pytest.mark.parametrize("change", [in_place, other_memory, other_norm, configured])
def test_a_changed_model_starts_anew(memory: Room, change: Callable[[Any], None]) -> None:
    model, method = tiny.build("llama"), METHODS[0]
    with attachment_cache(model):
        made = attached(model, method)[1]
        change(model)
        logits, found, _ = attached(model, method)
    assert found is not made
    close(logits, attached(model, method)[0])


def test_what_was_used_longest_ago_goes_first_then_the_copies(memory: Room) -> None:
    model = tiny.build("llama")
    griffin, _, cats, dense = METHODS
    with attachment_cache(model) as ours:
        made = {method: attached(model, method)[1] for method in (griffin, cats, dense)}
        attached(model, griffin)
        memory.first = [-1.0]  # until one has gone
        assert [attached(model, method)[1] is made[method] for method in (griffin, dense)] == [True, True]
        assert attached(model, cats)[1] is not made[cats]
        memory.left = -1.0
        found = attached(model, griffin)
        assert found[1] is not made[griffin]
        assert attached(model, griffin)[1] is not found[1]
        assert ours.rows(find_ffns(model)) is None
        memory.left = 100.0  # room for a step, and none for copies
        assert attached(model, griffin)[1].executors
        assert ours.rows(find_ffns(model)) is None
    close(found[0], attached(model, griffin)[0])


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_also_after_an_exception(memory: Room, error: BaseException) -> None:
    model = tiny.build("llama")
    before = model_state.state(model)

    def body() -> None:
        with (
            torch.no_grad(),
            attachment_cache(model),
            tda.attach(model, METHODS[2], tiny.thresholds("llama", METHODS[2])),
        ):
            serve(model, (5,))
            raise error

    with pytest.raises(type(error)):
        body()
    assert not caches.CACHES
    model_state.same(before, model_state.state(model))


def test_one_within_another_is_the_same(memory: Room) -> None:
    model = tiny.build("llama")
    with attachment_cache(model) as outer:
        with attachment_cache(model) as inner:
            assert inner is outer
            made = attached(model, METHODS[0])[1]
        assert attached(model, METHODS[0])[1] is made


def test_nothing_is_kept_of_weights_that_are_stored_transposed(memory: Room) -> None:
    """Every attachment lays those anew, so a captured step would read memory that is gone."""
    assert AttachmentCache(tiny.model("llama")).keeps
    assert not AttachmentCache(tiny.model("gpt2")).keeps


def prefill_ms(model: Any, prompts: Tensor, passes: int) -> list[float]:
    clock, taken = Timer(prompts.device), []
    for _ in range(passes):
        with clock.timing():
            prefill(model, prompts)
        taken.append(clock.ms)
    return taken


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*nothing was decoded")
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "in a cache"])
def test_a_prompt_is_as_fast_as_without_a_method_from_the_first_on(in_place: bool) -> None:
    """On both layouts of the down projection: the model's own, and in rows."""
    model = tda.load_model("shape:1b", dtype="bfloat16", device="cuda").model
    prompts = torch.randint(1, 1000, (1, 512), device="cuda")
    ratios = []
    with torch.no_grad(), nullcontext() if in_place else attachment_cache(model):
        for _ in range(7):
            alone = median(prefill_ms(model, prompts, 10))
            with tda.attach(model, METHODS[0]):
                first, *others = prefill_ms(model, prompts, 10)
            assert first <= 1.2 * others[0], (first, others)
            ratios.append(median(others) / alone)
    assert median(ratios) <= 1.02, ratios


def test_on_a_cpu_nothing_is_kept() -> None:
    assert not AttachmentCache(tiny.model("llama")).keeps
