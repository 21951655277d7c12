"""Attached methods on the Triton kernels, with the captured step run anew in place of a CUDA graph."""

from collections.abc import Callable
from typing import Any

import model_state
import pytest
import tiny
import torch
from torch import Tensor

import tda
from tda.contracts import Method, PromptMethod
from tda.engine import graph
from tda.engine.backends import BACKENDS
from tda.engine.backends.triton import TritonBackend
from tda.engine.graph import GraphStep
from tda.engine.phases import decode, prefill

pytest.importorskip("triton", reason="the kernels need the package triton")
pytestmark = pytest.mark.slow

CASES = [
    ("llama", tda.Griffin(sparsity=0.5)),
    ("opt", tda.TDA(sparsity=0.5)),
    ("gemma", tda.CATS(sparsity=0.5)),
    ("opt", tda.TT(sparsity=0.5)),
    ("qwen3", tda.Magnitude(sparsity=0.3)),
    ("llama", tda.Dense(dense_kernel="own")),
]
each_case = pytest.mark.parametrize("case", CASES, ids=tiny.case_id)


def run_anew(work: Callable[[], None]) -> Callable[[], None]:
    """What stands for a capture on a CPU."""
    work()
    return work


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU models take the way of CUDA models."""
    if torch.cuda.is_available():
        pytest.skip("played on a CPU, where Triton interprets; the tests marked gpu run the real thing")
    monkeypatch.setitem(BACKENDS, "cpu", TritonBackend)
    monkeypatch.setattr(graph, "capture_graph", run_anew)
    monkeypatch.setattr(graph, "CAPACITY", 32)


def serve(model: Any, lengths: tuple[int, ...], steps: int = 3, seed: int = 0) -> Tensor:
    """Logits of a padded batch's decode steps: [B, G, V]."""
    tokens, mask = tiny.padded(tiny.prompts(lengths, seed))
    fed = tiny.text(len(lengths), steps, seed=5 + seed)
    cache = prefill(model, tokens, mask).cache
    logits = []
    for step in range(steps):
        mask = torch.cat([mask, torch.ones(len(lengths), 1, dtype=torch.bool)], 1)
        logits.append(decode(model, fed[:, step : step + 1], cache, mask))
    return torch.cat(logits, 1)


def close(found: Tensor, wanted: Tensor) -> None:
    assert (found.double() - wanted.double()).abs().max() <= 1e-4 * wanted.double().abs().max()


@each_case
@pytest.mark.parametrize("lengths", [(9,), (7, 1, 13)], ids=["alone", "batch"])
@pytest.mark.usefixtures("played")
def test_equals_masked(case: tuple[str, Method], lengths: tuple[int, ...]) -> None:
    name, method = case
    model, thresholds = tiny.build(name), tiny.thresholds(name, method)
    before = model_state.state(model)
    fast = "auto" if method.name == "dense" else "indexed"
    with torch.no_grad():
        with tda.attach(model, method, thresholds, execution="masked") as run:
            wanted, selection = serve(model, lengths), run.selection()
            achieved = run.achieved_sparsity()
        with tda.attach(model, method, thresholds, execution=fast) as run:
            close(serve(model, lengths), wanted)
            assert run.backend == "triton"
            sweep = run.attachment.decoding.sweep
            assert sweep.__module__.startswith("tda.kernels.triton") == isinstance(method, PromptMethod)
            assert run.execution == ("dense" if method.name == "dense" else "indexed")
            assert run.attachment.decoding.step is not None
            assert run.attachment.decoding.step.captures == 1
            assert run.achieved_sparsity() == pytest.approx(achieved)
            assert all(torch.equal(a, b) for a, b in zip(run.selection(), selection, strict=True))
    model_state.same(before, model_state.state(model))


@pytest.mark.usefixtures("played")
def test_no_prompt_needs_a_new_capture() -> None:
    model, method = tiny.build("llama"), tda.Griffin(sparsity=0.5)
    with torch.no_grad(), tda.attach(model, method, execution="indexed") as run:
        step = run.attachment.decoding.step
        assert step is not None
        for seed, length in enumerate((5, 20, 1)):
            serve(model, (length,), seed=seed)
        for share in (0.1, 0.9):
            run.attachment.policy.impose([torch.rand(1, tiny.F) > share for _ in range(tiny.LAYERS)])
            serve(model, (6,))
        assert step.captures == 1
        run.attachment.policy.impose(None)
        serve(model, (4, 4))
        assert step.captures == 2, "another number of rows"
        serve(model, (40,))
        assert step.captures == 3, "more tokens than there was room for"


@pytest.mark.usefixtures("played")
def test_two_requests_take_turns() -> None:
    """Each cache keeps its own tokens, also where the steps of another come between."""
    model, method = tiny.build("llama"), tda.Griffin(sparsity=0.5)
    prompts, fed = (tiny.text(1, 9), tiny.text(1, 5, seed=1)), tiny.text(1, 4, seed=2)
    with torch.no_grad(), tda.attach(model, method, execution="masked"):
        caches = [prefill(model, prompt).cache for prompt in prompts]
        wanted = [[decode(model, fed[:, s : s + 1], cache) for cache in caches] for s in range(4)]
    with torch.no_grad(), tda.attach(model, method, execution="indexed"):
        caches = [prefill(model, prompt).cache for prompt in prompts]
        for step in range(4):
            for cache, exact in zip(caches, wanted[step], strict=True):
                close(decode(model, fed[:, step : step + 1], cache), exact)
        assert [cache.get_seq_length() for cache in caches] == [13, 9]


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("change", ["cropped", "moved"])
def test_what_was_done_to_a_cache_is_seen_after_the_turn_of_another(change: str) -> None:
    """Also what was done before the other request took the memory of its keys."""
    model, fed = tiny.build("llama"), tiny.text(2, 4, seed=2)
    prompts = (tiny.text(2, 9), tiny.text(2, 5, seed=1))

    def alter(cache: Any) -> None:
        if change == "cropped":
            cache.crop(-1)
        else:
            cache.batch_select_indices(torch.tensor([1, 0]))

    results = {}
    for execution in ("masked", "indexed"):
        with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5), execution=execution) as run:
            ours, other = (prefill(model, prompt).cache for prompt in prompts)
            steps = [decode(model, fed[:, s : s + 1], ours) for s in range(2)]
            alter(ours)
            decode(model, fed[:, :1], other)
            steps.append(decode(model, fed[:, 2:3], ours))
            decode(model, fed[:, 1:2], other)
            alter(ours)
            steps.append(decode(model, fed[:, 3:], ours))
            results[execution] = torch.stack(steps), run.selection()[-1].clone()
    close(results["indexed"][0], results["masked"][0])
    assert torch.equal(results["indexed"][1], results["masked"][1])


@pytest.mark.usefixtures("played")
def test_a_cropped_cache_goes_on_where_it_was_cropped() -> None:
    model, fed = tiny.build("llama"), tiny.text(1, 3, seed=2)
    with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5), execution="indexed"):
        cache = prefill(model, tiny.text(1, 9)).cache
        first = [decode(model, fed[:, s : s + 1], cache) for s in range(3)]
        cache.crop(-2)
        for step in (1, 2):
            close(decode(model, fed[:, step : step + 1], cache), first[step])


@pytest.mark.usefixtures("played")
def test_generate() -> None:
    model, method, prompt = tiny.build("llama"), tda.Griffin(sparsity=0.5), tiny.text(2, 9)
    options: dict[str, Any] = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 5, "do_sample": False}
    with tda.attach(model, method, execution="masked"):
        wanted = model.generate(prompt, **options)
    with tda.attach(model, method, execution="indexed") as run:
        assert torch.equal(model.generate(prompt, **options), wanted)
        assert run.attachment.decoding.step is not None
        assert run.attachment.decoding.step.captures == 1


@pytest.mark.usefixtures("played")
def test_sliding_windows_run_without_a_graph() -> None:
    model, method = tiny.build("mistral-window"), tda.Griffin(sparsity=0.5)
    with torch.no_grad():
        with tda.attach(model, method, execution="masked"):
            wanted = serve(model, (9,))
        with tda.attach(model, method, execution="indexed") as run:
            close(serve(model, (9,)), wanted)
            assert run.attachment.decoding.step is None
            assert "sliding window" in run.backend


@pytest.mark.gpu
@each_case
def test_one_capture_serves_all_prompts(case: tuple[str, Method]) -> None:
    """On a GPU, with a real graph; logits as masked execution gives them there."""
    name, method = case
    model, thresholds = tiny.build(name).to("cuda"), tiny.thresholds(name, method)
    fast = "auto" if method.name == "dense" else "indexed"
    found: dict[str, list[Tensor]] = {}
    for execution in ("masked", fast):
        with torch.no_grad(), tda.attach(model, method, thresholds, execution=execution) as run:
            found[execution] = []
            for seed in range(3):
                cache = prefill(model, tiny.text(1, 9 + seed, seed=seed).to("cuda")).cache
                fed = tiny.text(1, 3, seed=7).to("cuda")
                found[execution] += [decode(model, fed[:, s : s + 1], cache) for s in range(3)]
            captures = 0 if run.attachment.decoding.step is None else run.attachment.decoding.step.captures
    assert captures == 1
    for ours, exact in zip(found[fast], found["masked"], strict=True):
        close(ours, exact)


def test_only_growing_caches_of_few_rows() -> None:
    model = tiny.model("llama")
    step = GraphStep(model, capture=run_anew)
    with torch.no_grad():
        cache = prefill(model, tiny.text(1, 4)).cache
    assert step.problem(cache, 16) is None
    assert "16 rows" in str(step.problem(cache, 17))
    assert step.problem(tiny.new_cache(model), 1) is not None
    assert step.problem(None, 1) is not None
