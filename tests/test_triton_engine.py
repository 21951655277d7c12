"""Attached methods on the Triton kernels, with the captured step run anew in place of a CUDA graph."""

import copy
import inspect
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import model_state
import pytest
import tiny
import torch
from torch import Tensor

import tda
from tda.contracts import Method, PromptMethod
from tda.engine import graph, warm_up
from tda.engine.backends import BACKENDS
from tda.engine.backends.triton import TritonBackend
from tda.engine.graph import GraphStep
from tda.engine.phases import decode, prefill
from tda.engine.selfcheck import check_static_step
from tda.engine.session import Session
from tda.profiler.capture import STEPS, WARM_STEPS, count, record, record_order, tabulate
from tda.profiler.capture import serve as serve_profiled
from tda.profiler.overhead import Overhead
from tda.profiler.records import GAPS, HOST
from tda.profiler.replay import read_order
from tda.profiler.trace import read_trace
from tda.spans import GRAPH

pytest.importorskip("triton", reason="the kernels need the package triton")
pytestmark = pytest.mark.slow

CASES = [
    ("llama", tda.Griffin(sparsity=0.5)),
    ("opt", tda.TDA(sparsity=0.5)),
    ("gemma", tda.CATS(sparsity=0.5)),
    ("opt", tda.TT(sparsity=0.5)),
    ("qwen3", tda.Magnitude(sparsity=0.3)),
    ("llama", tda.Dense(dense_kernel="own")),
    ("gpt2", tda.Griffin(sparsity=0.5)),
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
    monkeypatch.setattr(warm_up, "PROMPT_TOKENS", 16)  # the interpreter is slow
    monkeypatch.setattr("tda.engine.warm_up.PROMPT_TOKENS", 6)


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
            assert type(sweep).__module__.startswith("tda.kernels.triton") == isinstance(method, PromptMethod)
            assert run.execution == ("dense" if method.name == "dense" else "indexed")
            assert run.attachment.decoding.step is not None
            assert run.attachment.decoding.step.captures == len({1, len(lengths)})
            assert run.achieved_sparsity() == pytest.approx(achieved)
            assert all(torch.equal(a, b) for a, b in zip(run.selection(), selection, strict=True))
    model_state.same(before, model_state.state(model))


NO_GRAPH = {
    "bloom": "its step on a static cache fails",
    "gpt_neo": "does not give the model's logits",
    **dict.fromkeys(("mistral", "gemma2", "mistral-window"), "sliding window"),
}
"""Types whose step is not captured, and why; further ones may have sliding windows."""


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("name", [*tiny.names(), *tiny.further()])
def test_every_type_equals_masked(name: str) -> None:
    """In one graph where a check on a few tokens finds it right, else layer by layer."""
    model, prompt, fed = tiny.build(name), tiny.text(1, 9), tiny.text(1, 2, seed=7)
    found = {}
    for execution in ("masked", "auto"):
        with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5), execution=execution) as run:
            cache = prefill(model, prompt).cache
            found[execution] = torch.cat([decode(model, token, cache) for token in fed.split(1, dim=1)], 1)
            backend = run.backend
    close(found["auto"], found["masked"])
    if name in NO_GRAPH:
        assert NO_GRAPH[name] in backend
    else:
        assert backend == "triton" or "sliding window" in backend or "XIELU" in backend


@each_case
@pytest.mark.usefixtures("played")
def test_float16_equals_masked(case: tuple[str, Method]) -> None:
    name, method = case
    model, thresholds = tiny.build(name).half(), tiny.thresholds(name, method)
    fast = "auto" if method.name == "dense" else "indexed"
    found = {}
    for execution in ("masked", fast):
        with torch.no_grad(), tda.attach(model, method, thresholds, execution=execution) as run:
            found[execution] = serve(model, (9,))
    assert run.backend == "triton"
    assert found[fast].dtype == torch.float16
    apart = (found[fast].double() - found["masked"].double()).abs().max()
    assert apart <= 4e-3 * found["masked"].double().abs().max()


@pytest.mark.usefixtures("played")
def test_no_prompt_needs_a_new_capture() -> None:
    model, method = tiny.build("llama"), tda.Griffin(sparsity=0.5)
    with torch.no_grad(), tda.attach(model, method, execution="indexed") as run:
        step = run.attachment.decoding.step
        assert step is not None
        for seed, length in enumerate((5, 20, 1)):
            serve(model, (length,), seed=seed)
        for share in (0.1, 0.9):
            run.attachment.policy.set_selection([torch.rand(1, tiny.F) > share for _ in range(tiny.LAYERS)])
            serve(model, (6,))
        assert step.captures == 1
        run.attachment.policy.set_selection(None)
        serve(model, (4, 4))
        assert step.captures == 2, "another number of rows"
        serve(model, (40,))
        assert step.captures == 3, "more tokens than there was room for"


@pytest.fixture
def replays(played: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A play that is nearer to a graph: a replay writes where the capture wrote. Grows by an entry with each replay."""
    seen: list[int] = []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        buffers = inspect.getclosurevars(work).nonlocals["buffers"]
        work()
        written = buffers.logits, buffers.kept

        def replay() -> None:
            held = buffers.logits, buffers.kept
            work()
            for fixed, fresh in zip(written, (buffers.logits, buffers.kept), strict=True):
                if fixed is not None:
                    fixed.copy_(fresh)
            buffers.logits, buffers.kept = held
            seen.append(1)

        return replay

    monkeypatch.setattr(graph, "capture_graph", capture)
    return seen


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=tiny.case_id)
def test_a_step_run_anew_is_a_step_of_its_request(case: tuple[str, Method], replays: list[int]) -> None:
    """Logits of it and of the replays around it are those of replays alone; what it kept is counted once."""
    name, method = case
    model, fed = tiny.build(name), tiny.text(1, 4, seed=2)
    with torch.no_grad(), tda.attach(model, method, tiny.thresholds(name, method), execution="indexed") as run:
        step = run.attachment.decoding.step
        assert isinstance(step, GraphStep)

        def served(anew: tuple[int, ...]) -> list[Tensor]:
            cache = prefill(model, tiny.text(1, 9)).cache
            found = []
            for number, token in enumerate(fed.split(1, dim=1)):
                with step.eager() if number in anew else nullcontext():
                    found.append(decode(model, token, cache))
            return found

        replays.clear()  # those of the request that attaching serves
        wanted = served(())
        assert len(replays) == 4
        for anew in ((0, 2), (0, 1, 2, 3)):
            replays.clear()
            run.attachment.counter.restart()
            assert all(torch.equal(ours, exact) for ours, exact in zip(served(anew), wanted, strict=True))
            assert len(replays) == 4 - len(anew)
        assert (run.attachment.counter.tokens == 4).all()
        assert step.captures == 1


def test_order_and_counts_are_taken_of_work_run_anew(replays: list[int], tmp_path: Path) -> None:
    model = tiny.build("llama")
    with tda.attach(model, tda.Griffin(sparsity=0.5), execution="indexed") as run:
        session = Session(run, tiny.text(1, 8), tiny.text(1, WARM_STEPS + STEPS + 1))
        serve_profiled(session)
        replays.clear()
        path = record_order(session, tmp_path / "new" / "order.json.gz")
        counter = count(session)
        assert not replays
        serve_profiled(session)
        assert len(replays) == WARM_STEPS + STEPS
    assert path is not None
    assert read_order(path) == (), "a CPU runs no kernels of a device"
    graph_ranges = [host for host in read_trace(path).hosts if host.name == GRAPH]
    assert [host.place.part if host.place else None for host in graph_ranges] == ["model"]
    parts = {spot.part for spot in counter.counts if spot.phase == "decode"}
    assert {"norm", "attention", "projection", "down", "head"} <= parts
    with tda.attach(model, tda.Griffin(sparsity=0.5), execution="masked") as run:
        assert record_order(Session(run, session.prompts, session.continuations), tmp_path / "none.json.gz") is None
    assert not (tmp_path / "none.json.gz").exists()


@pytest.mark.usefixtures("played")
def test_a_copied_prefix_goes_on_with_its_own_prompt() -> None:
    model, prefix, kept = tiny.build("llama"), tiny.text(1, 9), {}
    for execution in ("masked", "indexed"):
        with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5), execution=execution) as run:
            shared, kept[execution] = prefill(model, prefix).cache, []
            for seed in (1, 2):
                cache = copy.deepcopy(shared)
                with run.prefill():
                    prefill(model, tiny.text(1, 12, seed=seed), cache=cache)
                decode(model, tiny.text(1, 1), cache)
                kept[execution].append(torch.stack(list(run.selection())))
            decode(model, tiny.text(1, 1), shared)
    for ours, exact in zip(kept["indexed"], kept["masked"], strict=True):
        assert torch.equal(ours, exact)
    assert not torch.equal(*kept["indexed"])


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@pytest.mark.parametrize("method", [tda.Griffin(sparsity=0.5), tda.CATS(sparsity=0.5)], ids=["griffin", "cats"])
def test_under_autocast(name: str, method: Method) -> None:
    model, thresholds, found = tiny.build(name), tiny.thresholds(name, method), {}
    for execution in ("masked", "indexed"):
        attached = tda.attach(model, method, thresholds, execution=execution)
        with torch.no_grad(), attached, torch.autocast("cpu", dtype=torch.bfloat16):
            found[execution] = serve(model, (9,))
    apart = (found["indexed"].double() - found["masked"].double()).abs().max()
    rounding = 0.05 if method.name == "griffin" else 0.2  # what is near a threshold is kept by one and not by the other
    assert apart <= rounding * found["masked"].double().abs().max()


@pytest.mark.usefixtures("played")
def test_a_prompt_whose_statistic_failed_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    from tda.kernels.triton.launch import Kernel

    model, cache = tiny.build("llama"), tiny.new_cache(tiny.model("llama"))
    with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5), execution="indexed"):
        with monkeypatch.context() as patch:
            patch.setattr(Kernel, "launch", _out_of_memory)
            with pytest.raises(torch.OutOfMemoryError):
                prefill(model, tiny.text(1, 9), cache=cache)
        with pytest.raises(ValueError, match="the cache holds 9 tokens"):
            decode(model, tiny.text(1, 1), cache)
        decode(model, tiny.text(1, 1), prefill(model, tiny.text(1, 9)).cache)


def _out_of_memory(*args: Any, **options: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.usefixtures("played")
def test_a_warm_up_that_fails_is_told_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a prompt of 512 tokens finds no memory, and a user's is shorter."""
    model = tiny.build("llama")
    monkeypatch.setattr(Session, "serve", _out_of_memory)
    with torch.no_grad(), ExitStack() as stack:
        with pytest.warns(UserWarning, match="the warm-up request failed"):
            run = stack.enter_context(tda.attach(model, tda.Griffin(sparsity=0.5), execution="indexed"))
        serve(model, (9,))
        assert run.execution == "indexed"


def test_that_there_was_no_memory_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    with monkeypatch.context() as patch:
        patch.setattr(GraphStep, "__call__", _out_of_memory)
        assert "no memory" in str(check_static_step(model))
    assert check_static_step(model) is None


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_whatever_mode_a_caller_runs_in(mode: Callable[[], Any]) -> None:
    model, found = tiny.build("llama").requires_grad_(True), {}
    for execution in ("masked", "indexed"):
        with mode(), tda.attach(model, tda.Griffin(sparsity=0.5), execution=execution):
            found[execution] = serve(model, (7, 3)).detach().clone()
    close(found["indexed"], found["masked"])


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
        assert run.attachment.decoding.step.captures == 2, "of one row when it was attached, and of these"


@pytest.mark.usefixtures("played")
def test_the_first_request_finds_everything_there_and_no_trace_of_another() -> None:
    model = tiny.build("llama")
    for method in (tda.Griffin(sparsity=0.5), tda.CATS(sparsity=0.5)):
        with torch.no_grad(), tda.attach(model, method, tiny.thresholds("llama", method)) as run:
            step = run.attachment.decoding.step
            assert step is not None
            assert step.captures == 1
            assert run.attachment.attached_ms > 0
            assert run.execution is None
            assert not len(run.attachment.requests)
            for told in (run.selection, run.achieved_sparsity):
                with pytest.raises(ValueError, match="yet"):
                    told()
            serve(model, (9,), steps=1)
            first = run.achieved_sparsity()
            assert step.captures == 1
        with torch.no_grad(), tda.attach(model, method, tiny.thresholds("llama", method), execution="masked") as run:
            serve(model, (9,), steps=1)
            assert run.achieved_sparsity() == pytest.approx(first)


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize(("positions", "captures"), [(5, 1), (2, 0)])
def test_the_first_request_is_no_longer_than_the_context(positions: int, captures: int) -> None:
    model = tiny.build("llama", max_position_embeddings=positions)
    with tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
        assert run.attachment.decoding.step is not None
        assert run.attachment.decoding.step.captures == captures


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


@pytest.mark.gpu
def test_replays_are_told_apart(tmp_path: Path) -> None:
    """On a GPU: the work run anew launches the kernels of the graph, in its order."""
    model = tiny.build("llama").to("cuda")
    with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5), execution="indexed") as run:
        prompt, fed = tiny.text(1, 8).to("cuda"), tiny.text(1, WARM_STEPS + STEPS + 1).to("cuda")
        session = Session(run, prompt, fed)
        serve_profiled(session)
        plain_us = record(session, tmp_path / "trace.json.gz")
        order = record_order(session, tmp_path / "order.json.gz")
        counter = count(session)
        step = run.attachment.decoding.step
        assert isinstance(step, GraphStep)
        logits = []
        for anew in (False, True, False):
            cache = prefill(model, prompt).cache
            with step.eager() if anew else nullcontext():
                first = decode(model, fed[:, :1], cache)
            logits.append(torch.stack([first, decode(model, fed[:, 1:2], cache)]))
        close(logits[1], logits[0])
        close(logits[2], logits[0])
    made = tabulate(tmp_path / "trace.json.gz", counter, Overhead(0.0, 0.0), plain_us, order)
    assert made.untold == ()
    parts = {row.part for row in made.rows() if row.phase == "decode" and row.kernel not in (GAPS, HOST)}
    assert {"projection", "attention", "norm", "gate_up", "down", "head"} <= parts
    phases = made.phases()
    assert {"prefill", "statistic", "selection", "gather", "decode"} == set(phases)
    for name in ("prefill", "selection", "decode"):
        assert phases[name].parts_ms == pytest.approx(phases[name].whole_ms)


def test_only_growing_caches_of_few_rows() -> None:
    model = tiny.model("llama")
    step = GraphStep(model, capture=run_anew)
    with torch.no_grad():
        cache = prefill(model, tiny.text(1, 4)).cache
    assert step.problem(cache, 16) is None
    assert "16 rows" in str(step.problem(cache, 17))
    assert step.problem(tiny.new_cache(model), 1) is not None
    assert step.problem(None, 1) is not None
