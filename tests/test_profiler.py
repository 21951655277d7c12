"""Profiles: names of parts, reading of traces, the kernel table, counts, the split of a step."""

import gzip
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import model_state
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tda
from tda import spans
from tda.contracts import Method
from tda.device import RangeClock
from tda.engine import attach
from tda.engine.session import Session
from tda.families import find_ffns
from tda.kernels import native
from tda.kernels.native.library import problem
from tda.names import Execution
from tda.profiler import overhead
from tda.profiler.capture import REQUESTS, STEPS, WARM_STEPS, count, peaks, record, serve, tabulate
from tda.profiler.counts import Counter, Spot
from tda.profiler.kernels import KernelTable, fitted
from tda.profiler.overhead import Overhead, measure_overhead
from tda.profiler.parts import WEIGHT_PARTS, named_parts, ranges
from tda.profiler.records import GAPS, HOST, PYTHON, KernelRow
from tda.profiler.trace import read_trace

FREE = Overhead(0.0, 0.0)


# Ranges.


def test_a_span_is_silent_until_someone_listens() -> None:
    with spans.span("decode"):
        pass
    heard: list[str] = []

    def recorder(name: str) -> Any:
        heard.append(name)
        return nullcontext()

    def stopped() -> None:
        with spans.recording(recorder):
            with spans.span("decode"):
                pass
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    with spans.span("gather"):
        pass
    assert heard == ["decode"]


def test_a_clock_listens_without_making_kernels_operators() -> None:
    clock = RangeClock(torch.device("cpu"))
    with spans.recording(clock, profiler=False):
        assert not spans.profiled()
        for name in ("statistic", "statistic", "gather"):
            with spans.span(name):
                pass
    with spans.span("selection"):
        pass
    found = clock.read()
    assert set(found) == {"statistic", "gather"}
    assert all(ms > 0 for ms in found.values())
    assert clock.read() == {}, "each reading starts anew"
    with spans.recording(clock):
        assert spans.profiled()
    assert not spans.profiled()


def test_every_part_of_every_family_is_named(any_model: Any) -> None:
    found: dict[str, list[str]] = {}
    for named in named_parts(any_model):
        found.setdefault(named.part, []).append(named.path)
    ffns = find_ffns(any_model)
    layers = len(ffns)
    assert len(found["up"]) == len(found["down"]) == len(found["attention"]) == len(found["layer"]) == layers
    assert ("gate" in found) == (ffns[0].gate is not None)
    assert len(found["head"]) == 1
    assert len([path for path in found["projection"] if "attn" in path]) == 4 * layers
    assert found["model"] == ["model"]
    linears = [path for path, module in any_model.named_modules() if isinstance(module, nn.Linear)]
    named_linears = [path for part in WEIGHT_PARTS for path in found.get(part, [])]
    assert sorted(named_linears) == sorted(linears)


def test_ranges_leave_no_trace_on_the_model(llama: Any) -> None:
    before = model_state.state(llama)
    with pytest.raises(IndexError), ranges(llama):
        llama(torch.tensor([[tiny.VOCABULARY]]))
    model_state.same(before, model_state.state(llama))


def test_ranges_close_when_a_forward_fails(llama: Any) -> None:
    """A failed forward may not leave a range open: the next would lie inside it."""
    depth = 0

    class Open:
        def __enter__(self) -> None:
            nonlocal depth
            depth += 1

        def __exit__(self, *_: object) -> None:
            nonlocal depth
            depth -= 1

    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    hook = find_ffns(llama)[1].down.module.register_forward_pre_hook(fail)
    try:
        with ranges(llama), spans.recording(lambda name: Open()), pytest.raises(RuntimeError, match="planted"):
            llama(tiny.text(1, 4))
    finally:
        hook.remove()
    assert depth == 0


# Traces made by hand.


def event(name: str, start: float, end: float, kind: str = "cpu_op", **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": end - start, "tid": 1, "pid": 1, "args": more}


def phase(name: str, start: float, end: float) -> dict[str, Any]:
    return event(name, start, end, "user_annotation")


def written(folder: Path, events: list[dict[str, Any]]) -> Path:
    path = folder / "t.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": events}, file)
    return path


def table(folder: Path, events: list[dict[str, Any]], counted: set[str], overhead: Overhead = FREE) -> KernelTable:
    return KernelTable(read_trace(written(folder, events), counted), {}, {}, overhead)


def by_name(rows: list[KernelRow]) -> dict[tuple[str, str, str], KernelRow]:
    return {(row.phase, row.part, row.kernel): row for row in rows}


CPU_TRACE = [
    phase("prefill", 0, 1000),
    phase("down: model.layers.0.mlp.down_proj", 100, 900),
    event("aten::linear", 200, 600),
    event("aten::addmm", 250, 550),
    event("aten::copy_", 300, 350),
    phase("statistic", 600, 800),
    event("aten::mul", 650, 750),
    phase("selection", 1000, 1300),
    phase("selection", 1010, 1100),
    event("aten::topk", 1020, 1080),
    phase("gather", 1100, 1290),
    event("aten::index_select", 1110, 1280),
    phase("decode", 1300, 1500),
    phase("up: model.layers.0.mlp.up_proj", 1310, 1490),
    phase("selection", 1320, 1400),
    event("aten::nonzero", 1330, 1390),
    event("aten::mm", 1400, 1480),
    {**event("aten::mm", 1400, 1480), "tid": 2},
]


def test_self_times_phases_and_parts(tmp_path: Path) -> None:
    counted = {"aten::addmm", "aten::mul", "aten::topk", "aten::index_select", "aten::mm", "aten::nonzero"}
    made = table(tmp_path, CPU_TRACE, counted)
    rows = by_name(made.rows())
    ms = {key: round(row.recorded_ms * 1e3) for key, row in rows.items()}
    assert ms == {
        ("prefill", "prefill", PYTHON): 200,
        ("prefill", "down", PYTHON): 200,
        ("prefill", "down", "aten::linear"): 100,
        ("prefill", "down", "aten::addmm"): 250,
        ("prefill", "down", "aten::copy_"): 50,
        ("statistic", "statistic", PYTHON): 100,
        ("statistic", "statistic", "aten::mul"): 100,
        ("selection", "selection", PYTHON): 50,
        ("selection", "selection", "aten::topk"): 60,
        ("gather", "gather", PYTHON): 20,
        ("gather", "gather", "aten::index_select"): 170,
        ("decode", "decode", PYTHON): 20,
        ("decode", "up", PYTHON): 20,
        ("decode", "selection", PYTHON): 20,
        ("decode", "selection", "aten::nonzero"): 60,
        ("decode", "up", "aten::mm"): 80,
    }
    assert rows["prefill", "down", "aten::copy_"].op == "aten::addmm"
    assert rows["prefill", "down", "aten::linear"].op == ""
    assert rows["prefill", "down", "aten::linear"].role == "framework"
    assert rows["decode", "up", "aten::mm"].role == "weights"
    assert rows["decode", "selection", "aten::nonzero"].role == "other"
    phases = made.phases()
    assert phases["prefill"].whole_ms == phases["prefill"].parts_ms == pytest.approx(1.0)
    assert phases["prefill"].recorded_ms == pytest.approx(0.8)
    assert phases["statistic"].whole_ms is None
    modules = {(row.phase, row.part, row.module): row.self_ms for row in made.modules()}
    assert modules["decode", "up", "model.layers.0.mlp.up_proj"] == pytest.approx(0.1)
    assert modules["decode", "selection", "model.layers.0.mlp.up_proj"] == pytest.approx(0.08)


def test_the_cost_of_recording_is_taken_off_what_encloses(tmp_path: Path) -> None:
    rows = by_name(table(tmp_path, CPU_TRACE, {"aten::addmm"}, Overhead(op=7.0, span=11.0)).rows())
    assert rows["prefill", "down", PYTHON].self_ms == pytest.approx(0.2 - 0.007 - 0.011)
    assert rows["prefill", "prefill", PYTHON].self_ms == pytest.approx(0.2 - 0.011)
    assert rows["prefill", "down", "aten::addmm"].self_ms == pytest.approx(0.25 - 0.007)
    assert rows["prefill", "down", "aten::copy_"].self_ms == pytest.approx(0.05)


def test_recording_takes_no_more_of_an_event_than_its_time(tmp_path: Path) -> None:
    """However dear a range is said to be: rows stay positive, and add up to what is left."""
    made = table(tmp_path, CPU_TRACE, {"aten::mm"}, Overhead(op=1.0, span=1000.0))
    rows, phases = made.rows(), made.phases()
    assert all(row.self_ms >= 0 for row in rows)
    assert by_name(rows)["decode", "up", "aten::mm"].self_ms == pytest.approx(0.08)
    assert by_name(rows)["decode", "decode", PYTHON].self_ms == 0
    decode = sum(row.self_ms for row in rows if row.phase == "decode")
    assert decode == pytest.approx(phases["decode"].recorded_ms - phases["decode"].cost_ms)


def test_stages_run_apart_are_charged_for_it(tmp_path: Path) -> None:
    """Each stage of a whole step costs its own call, which an unrecorded step doesn't make."""
    events = [
        phase("decode", 0, 100),
        phase("projection: layers.0", 10, 60),
        event("tda::decode_stage", 20, 50),
        event("aten::mm", 70, 90),
    ]
    trace = read_trace(written(tmp_path, events), {"aten::mm"})
    apart = Overhead(op=1.0, span=2.0, stage=6.0)
    costs = {host.name: apart.within(host) for host in trace.hosts}
    assert costs == {"decode": 3.0, "projection: layers.0": 1.0, "tda::decode_stage": 6.0, "aten::mm": 0.0}
    assert fitted(apart, trace, [80.0]) == pytest.approx((2.0, 4.0, 12.0, 0.0))


GPU_TRACE = [
    phase("decode", 0, 100),
    phase("up: layers.0.up", 5, 60),
    event("aten::mm", 10, 30),
    event("cudaLaunchKernel", 12, 14, "cuda_runtime", correlation=1),
    event("aten::silu", 30, 40),
    event("cudaLaunchKernel", 32, 34, "cuda_runtime", correlation=2),
    event("cudaDeviceSynchronize", 70, 99, "cuda_runtime", correlation=3),
    {**event("gemm", 20, 70, "kernel", correlation=1), "tid": 7},
    {**event("silu_kernel", 70, 90, "kernel", correlation=2), "tid": 7},
    {**event("foreign", 92, 95, "kernel", correlation=99), "tid": 7},
]


def test_recording_costs_what_recorded_steps_take_longer(tmp_path: Path) -> None:
    """Proportion of empty events, size of the difference; never less than empty ones, nor without bound."""
    trace = read_trace(written(tmp_path, CPU_TRACE), {"aten::mm"})
    empty = Overhead(op=4.0, span=8.0)  # a decode step of two ranges and two operators
    estimated = 8 + 8 + 4 + 4
    found = fitted(empty, trace, [200 - 1.5 * estimated])
    assert found == pytest.approx((6.0, 12.0, 0.0, 0.0))
    assert fitted(empty, trace, [300.0]) == empty
    assert fitted(empty, trace, [1.0]) == pytest.approx((20.0, 40.0, 0.0, 0.0))
    assert fitted(empty, trace, []) == empty


def test_device_kernels_belong_where_they_were_launched(tmp_path: Path) -> None:
    made = table(tmp_path, GPU_TRACE, {"aten::mm", "aten::silu"})
    rows = by_name(made.rows())
    ms = {key: round(row.self_ms * 1e3) for key, row in rows.items()}
    assert ms[("decode", "up", "gemm")] == 50
    assert ms[("decode", "up", "silu_kernel")] == 20
    assert ms[("decode", "decode", "foreign")] == 3
    assert ms[("decode", "decode", GAPS)] == 2
    assert ms[("decode", "decode", HOST)] == 20 + 5
    assert rows["decode", "up", "gemm"].op == "aten::mm"
    assert rows["decode", "decode", GAPS].role == rows["decode", "decode", HOST].role == "framework"


@st.composite
def nested(draw: st.DrawFn, start: int = 0, end: int = 4096, depth: int = 4) -> list[dict[str, Any]]:
    """Operators and ranges that nest, within whole microseconds."""
    made: list[dict[str, Any]] = []
    at = start
    while depth and end - at > 2 and draw(st.booleans()):
        first = draw(st.integers(at, end - 1))
        last = draw(st.integers(first + 1, end))
        name, kind = draw(
            st.sampled_from([("aten::mm", "cpu_op"), ("aten::t", "cpu_op"), ("up: a", "user_annotation")])
        )
        made.append(event(name, first, last, kind))
        made += draw(nested(first, last, depth - 1))
        at = last
    return made


@given(nested())
def test_self_times_sum_to_the_range(tmp_path_factory: pytest.TempPathFactory, inner: list[dict[str, Any]]) -> None:
    made = table(tmp_path_factory.mktemp("t"), [phase("decode", 0, 4096), *inner], {"aten::mm"})
    found = made.phases()["decode"]
    assert found.parts_ms == pytest.approx(found.whole_ms)
    assert sum(row.share for row in made.rows()) == pytest.approx(1)


def test_a_step_out_of_line_does_not_count(tmp_path: Path) -> None:
    events = [phase("decode", 1000 * n, 1000 * n + (900 if n == 2 else 100)) for n in range(6)]
    made = table(tmp_path, events, set())
    assert made.phases()["decode"].typical == 3
    assert made.phases()["decode"].recorded_ms == pytest.approx(0.1)


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b"{", mtime=0),
        gzip.compress(b"[]", mtime=0),
        gzip.compress(b'{"traceEvents": []}', mtime=0),
    ],
)
def test_what_is_no_trace_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.json\.gz"):
        read_trace(path)


# Counting.


def weights_flops(model: Any) -> int:
    return sum(2 * module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("kernel", ["torch", "own"])
def test_counts_of_a_dense_step(any_model: Any, kernel: str) -> None:
    """FLOPs of a decode step's linears, and the bytes that they read, by formula."""
    prompt = tiny.text(1, 6)
    with attach(any_model, tda.Dense(dense_kernel=kernel)) as run:
        counter = count(Session(run, prompt, tiny.text(1, WARM_STEPS + STEPS + 1)))
    held = [(spot, number) for spot, number in counter.counts.items() if spot.phase == "decode"]
    linear = [number for spot, number in held if spot.part in WEIGHT_PARTS and number.flops]
    assert sum(number.flops or 0 for number in linear) == weights_flops(any_model)
    weights = [m.weight.nbytes for m in any_model.modules() if isinstance(m, nn.Linear)]
    outputs = [m.out_features + m.in_features for m in any_model.modules() if isinstance(m, nn.Linear)]
    biases = [m.bias.nbytes for m in any_model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    around = 4 * sum(outputs) + sum(biases)
    assert 0 <= sum(n.bytes for n in linear) - sum(weights) <= around
    if kernel == "torch":
        assert sum(n.bytes for n in linear) == sum(weights) + around
    assert counter.drivers == {"prefill": 1, "selection": 1, "decode": 1}


def test_views_move_nothing_and_lookups_what_they_find() -> None:
    table_, index = torch.zeros(1000, 8), torch.tensor([3, 5])
    with Counter() as counter, counter.span("decode"):
        table_.t()
        table_.view(8, 1000)
        torch.nn.functional.embedding(index, table_)
        table_.add_(1)
    found = {spot.op: number.bytes for spot, number in counter.counts.items()}
    assert found["aten::t"] == found["aten::view"] == 0
    assert found["aten::embedding"] == 2 * 2 * 8 * 4 + 2 * 8
    assert found["aten::add_"] == 2 * table_.nbytes


def test_a_static_cache_is_written_where_a_token_goes_and_read_whole() -> None:
    """Four query heads share one of keys and values. A mask hides what is empty; the kernel reads it all the same."""
    query, token = torch.zeros(1, 8, 1, 16), torch.zeros(1, 2, 1, 16)
    keys, values = (torch.zeros(1, 2, 64, 16) for _ in range(2))
    place, mask = torch.tensor([5]), torch.zeros(1, 1, 1, 64)
    with Counter() as counter, counter.span("decode"):
        keys.index_copy_(2, place, token)
        values[:, :, place] = token
        values[:, :, 5:6].copy_(token)
        values[:, :, 6:].zero_()
        found = torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=True)
    counts = {spot.op: number for spot, number in counter.counts.items()}
    assert counts["aten::index_copy_"].bytes == counts["aten::index_put_"].bytes == 2 * token.nbytes + place.nbytes
    assert counts["aten::copy_"].bytes == 2 * token.nbytes
    assert counts["aten::zero_"].bytes == values[:, :, 6:].nbytes
    attention = counts["aten::_scaled_dot_product_flash_attention_for_cpu"]
    whole = query.nbytes + keys.nbytes + values.nbytes + mask.nbytes + found.nbytes
    assert 0 <= attention.bytes - whole <= 8 * 4, "beside the tensors, a float for each head and query at most"
    assert attention.flops == 2 * 8 * 64 * (16 + 16)


CUDA_ATTENTION = {
    "_scaled_dot_product_flash_attention": (),
    "_scaled_dot_product_cudnn_attention": (None, False),
    "_scaled_dot_product_efficient_attention": (None, False),
}


@pytest.mark.parametrize("kernel", CUDA_ATTENTION)
@pytest.mark.parametrize(
    ("heads", "shared", "queries", "keys"), [(32, 8, 1, 513), (32, 8, 7, 7), (4, 4, 5, 9), (4, 1, 3, 3)]
)
def test_attention_on_cuda_is_counted_with_shared_heads(
    kernel: str, heads: int, shared: int, queries: int, keys: int
) -> None:
    """The operators that scaled_dot_product_attention becomes on CUDA; meta tensors have its shapes."""
    query = torch.empty(2, heads, queries, 16, device="meta")
    key, value = (torch.empty(2, shared, keys, 16, device="meta") for _ in range(2))
    with Counter() as counter, counter.span("decode"):
        getattr(torch.ops.aten, kernel)(query, key, value, *CUDA_ATTENTION[kernel])
    pairs = (
        2 * heads * queries * keys
    )  # of a query and a key: each costs a product of 16 for the score, one for the sum
    assert counter.counts[Spot("decode", "decode", f"aten::{kernel}")].flops == pairs * (2 * 16 + 2 * 16)


def test_attention_on_a_cpu_is_counted_with_shared_heads(llama: Any) -> None:
    config, tokens = llama.config, 6
    assert config.num_key_value_heads < config.num_attention_heads
    with attach(llama, tda.Dense()) as run:
        counter = count(Session(run, tiny.text(1, tokens), tiny.text(1, WARM_STEPS + STEPS + 1)))
    found = [n.flops for spot, n in counter.counts.items() if spot.phase == "prefill" and "dot_product" in spot.op]
    assert found == [config.num_hidden_layers * 4 * config.hidden_size * tokens**2]


# Real profiles of tiny models.


PROFILED: dict[str, tuple[Method, Execution, set[str]]] = {
    "dense": (tda.Dense(), "auto", {"gate", "up", "down"}),
    "own dense": (tda.Dense(dense_kernel="own"), "auto", {"gate_up_down"}),
    "griffin": (tda.Griffin(sparsity=0.5), "auto", {"gate_up_down"}),
    "compact griffin": (tda.Griffin(sparsity=0.5), "compact", {"gate_up_down"}),
    "compact griffin by torch": (tda.Griffin(sparsity=0.5), "compact", {"gate_up", "down"}),
    "cats": (tda.CATS(sparsity=0.5), "auto", {"gate_up_down"}),
}
"""By name: method, execution, and the parts of the FFN that read weights in decode."""


@pytest.fixture(params=PROFILED)
def profiled(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, str, KernelTable]:
    model, (method, execution, _) = tiny.model("llama"), PROFILED[request.param]
    if request.param.endswith("by torch"):
        monkeypatch.setattr(native, "problem", lambda ffns: "not wanted")
    with attach(model, method, tiny.thresholds("llama", method), execution=execution) as run:
        served = Session(run, tiny.text(1, 8), tiny.text(1, WARM_STEPS + STEPS + 1))
        serve(served)
        record(served, tmp_path / "case" / "trace.json.gz")
        counter = count(served)
    return model, request.param, tabulate(tmp_path / "case" / "trace.json.gz", counter, FREE)


def test_a_real_profile_is_whole(profiled: tuple[Any, str, KernelTable]) -> None:
    """Shares sum to the whole, every operator that reads weights is there, and each layer's once."""
    model, name, made = profiled
    method, _, parts = PROFILED[name]
    phases = made.phases()
    assert phases["prefill"].steps == REQUESTS
    assert phases["decode"].steps == REQUESTS * STEPS
    for phase in ("prefill", "selection", "decode"):
        assert phases[phase].parts_ms == pytest.approx(phases[phase].whole_ms, rel=0.02)
    rows = made.rows()
    for phase in phases:
        assert sum(row.share for row in rows if row.phase == phase) == pytest.approx(1)
    layers = len(find_ffns(model))
    decode = [row for row in rows if row.phase == "decode" and row.flops]
    assert sum(row.calls for row in decode if row.part == "head") == 1
    fused = "gate_up_down" in parts
    assert sum(row.calls for row in decode if row.part == "projection") == (2 if fused else 4) * layers
    assert {row.part for row in decode if row.ffn} == parts
    if method.name == "griffin":
        assert {"statistic", "gather"} <= set(phases)
        F = find_ffns(model)[0].F
        last = next(row for row in decode if row.part in ("down", "gate_up_down"))
        assert last.flops == (3 if fused else 1) * 2 * layers * (F - int(F * 0.5 + 0.5)) * find_ffns(model)[0].D


def test_recording_costs_something_and_is_known() -> None:
    found = measure_overhead()
    assert found.span > 0
    assert (found.stage > 0) == (problem() is None)


def test_what_recording_costs_is_seen_beside_work_that_slows_most_of_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "problem", lambda: "not in this test")
    quiet = [1.0, 2.0, 4.0, 9.0]  # an operator and a range, bare and recorded
    turns = [[5.0 * time for time in quiet], quiet, [*quiet[:2], 70.0, 80.0], [60.0, 50.0, *quiet[2:]], quiet]
    times = iter([time for turn in turns for time in turn])
    monkeypatch.setattr(overhead, "event_us", lambda work: next(times))
    assert measure_overhead() == Overhead(op=3.0, span=7.0)


def test_peaks_are_told_for_each_phase(llama: Any) -> None:
    with attach(llama, tda.Griffin(sparsity=0.5)) as run:
        found = peaks(Session(run, tiny.text(1, 8), tiny.text(1, WARM_STEPS + STEPS + 1)))
    assert list(found) == ["prefill", "selection", "decode"]
    assert all((peak.bytes is None) != (peak.missing is None) for peak in found.values())


def test_bytes_go_to_the_kernel_that_took_longest(tmp_path: Path) -> None:
    from tda.profiler.counts import Count

    trace = read_trace(written(tmp_path, CPU_TRACE), {"aten::addmm"})
    counts = {Spot("prefill", "down", "aten::addmm"): Count(calls=2, bytes=400, flops=100)}
    rows = by_name(KernelTable(trace, counts, {"prefill": 2}, FREE).rows())
    assert rows["prefill", "down", "aten::addmm"].bytes == 200
    assert rows["prefill", "down", "aten::addmm"].flops == 50
    assert rows["prefill", "down", "aten::addmm"].gb_per_s == pytest.approx(200 / 0.25 / 1e6)
    assert rows["prefill", "down", "aten::copy_"].bytes is None
