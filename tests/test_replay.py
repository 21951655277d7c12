"""Profiles on CUDA, from traces made by hand: replays told apart, the idle time, costs that kernels tell."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda import spans
from tda.profiler.capture import tabulate
from tda.profiler.counts import Counter, Spot
from tda.profiler.kernels import KernelTable
from tda.profiler.overhead import Overhead
from tda.profiler.records import GAPS, HOST, KernelRow
from tda.profiler.replay import ReplayedKernel, read_order, tell_apart
from tda.profiler.trace import read_trace
from tests import profiles
from tests.profiles import CLONE, COPY, CUDA_STEP, CudaTrace, Ran

FREE = Overhead(0.0, 0.0)
OPERATORS = {ran.op for ran in CUDA_STEP if ran.op} | {"aten::copy_", "aten::clone", "aten::mm", "aten::topk"}
REPLAYED = [(ran.kernel, ran.us) for ran in CUDA_STEP]


def table(
    folder: Path,
    kernels: Sequence[tuple[str, float]] | None = None,
    *,
    order: Sequence[Ran] | None = CUDA_STEP,
    overhead: Overhead = FREE,
    plain_us: Sequence[float] = (),
    counter: Counter | None = None,
) -> KernelTable:
    """The table of a request's trace, its replays told apart by an order."""
    counter = counter or Counter()
    for op in OPERATORS:
        counter.counts[Spot("", "", op)].calls += 1
    path = profiles.write_replays(folder / "t.json.gz", kernels)
    told = None if order is None else profiles.write_order(folder / "order.json.gz", order)
    return tabulate(path, counter, overhead, plain_us, told)


def decode(made: KernelTable) -> list[KernelRow]:
    return [row for row in made.rows() if row.phase == "decode"]


def us(rows: Sequence[KernelRow]) -> dict[tuple[str, str, str], float]:
    return {(row.part, row.op, row.kernel): pytest.approx(row.recorded_ms * 1e3) for row in rows}


def test_the_order_is_that_of_the_launches_inside_the_graph(tmp_path: Path) -> None:
    found = read_order(profiles.write_order(tmp_path / "order.json.gz"), OPERATORS)
    wanted = [ReplayedKernel(ran.kernel, ran.part, ran.module, ran.op or ran.kernel) for ran in CUDA_STEP]
    assert list(found) == wanted


def test_a_trace_without_a_graph_has_no_order(tmp_path: Path) -> None:
    trace = CudaTrace()
    with trace.around("decode"):
        trace.work(CUDA_STEP)
    assert read_order(trace.write(tmp_path / "t.json.gz")) == ()


def test_kernels_of_a_replay_take_the_places_of_the_order(tmp_path: Path) -> None:
    """One name in several parts has a row in each, with the operators that launched it."""
    made = table(tmp_path)
    wanted: dict[tuple[str, str, str], float] = {
        ("model", "aten::copy_", COPY): 1.0,
        ("model", "aten::clone", CLONE): 1.0,
    }
    for ran in CUDA_STEP:
        key = ran.part, ran.op or ran.kernel, ran.kernel
        wanted[key] = wanted.get(key, 0.0) + ran.us
    found = us(decode(made))
    assert made.untold == ()
    assert {key: value for key, value in found.items() if key[2] not in (GAPS, HOST)} == wanted
    rows = {(row.part, row.kernel): row for row in decode(made)}
    assert rows["projection", "_rows"].calls == 2
    assert rows["projection", "_rows"].role == rows["down", "_finish"].role == "weights"
    assert rows["selection", "_list"].role == "other"
    modules = {(row.part, row.module): row.self_ms * 1e3 for row in made.modules() if row.phase == "decode"}
    assert modules["projection", "model.layers.0.self_attn.o_proj"] == pytest.approx(9.5)
    assert modules["down", "model.layers.0.mlp"] == pytest.approx(9.75)


def test_the_idle_time_is_gaps_and_what_the_host_adds(tmp_path: Path) -> None:
    """The graph and what follows were launched in time, so between them the device is to blame; before, the host."""
    made = table(tmp_path)
    rows = {row.kernel: row for row in decode(made)}
    found = made.phases()["decode"]
    assert found.whole_ms is not None
    gaps, busy = CudaTrace.GAP_US * len(CUDA_STEP), sum(us for _, us in REPLAYED) + 2.0
    assert rows[GAPS].recorded_ms * 1e3 == pytest.approx(gaps)
    assert rows[HOST].recorded_ms * 1e3 == pytest.approx(found.whole_ms * 1e3 - gaps - busy)
    assert rows[GAPS].role == rows[HOST].role == "framework"
    assert sum(row.recorded_ms for row in decode(made)) == pytest.approx(found.whole_ms, abs=1e-9)


def test_replays_that_differ_are_aligned_and_what_has_no_place_is_told(tmp_path: Path) -> None:
    replay = [("Memset (Device)", 0.5), *REPLAYED]
    del replay[3]  # the norm's product: the attention's, of the same name, stays
    made = table(tmp_path, replay)
    rows = {(row.part, row.kernel): row for row in decode(made)}
    assert rows["decode", "Memset (Device)"].recorded_ms == pytest.approx(0.5e-3)
    assert rows["decode", "Memset (Device)"].role == "other"
    assert rows["attention", "elementwise_kernel<Mul>"].recorded_ms == pytest.approx(1.25e-3)
    assert rows["head", "_rows"].recorded_ms == pytest.approx(30e-3)
    (sentence,) = made.untold
    assert "of 14 kernels of a replayed step, 1 (1 × Memset (Device)) have no place" in sentence
    assert "of 14 kernels of that one, 1 (1 × elementwise_kernel<Mul>) are not in the replay" in sentence


def test_without_an_order_nothing_is_guessed(tmp_path: Path) -> None:
    made = table(tmp_path, order=None)
    assert {row.part for row in decode(made)} == {"decode", "model"}
    assert {row.role for row in decode(made)} == {"other", "framework"}
    (sentence,) = made.untold
    assert "of 14 kernels of a replayed step, 14 (4 × _rows, 3 × elementwise_kernel<Mul>, " in sentence


def test_replays_outside_decode_are_left_alone(tmp_path: Path) -> None:
    trace = CudaTrace()
    with trace.around("prefill"):
        trace.replay([("theirs", 5.0)])
        trace.wait()
    found = tell_apart(read_trace(trace.write(tmp_path / "t.json.gz")), ())
    assert found.untold == ()
    assert found.kernels[0].place is not None
    assert found.kernels[0].place.part == "prefill"


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 900), st.integers(0, 3)), max_size=20))
def test_rows_of_a_step_sum_to_it_however_kernels_overlap(
    tmp_path_factory: pytest.TempPathFactory, ran: list[tuple[int, int, int]]
) -> None:
    """On several streams, beyond the step's end, launched elsewhere or by nobody known."""
    trace = CudaTrace()
    with trace.around("decode"):
        trace.now += 2000.0
    kernel = {"ph": "X", "cat": "kernel", "pid": 0}
    for start, us, stream in ran:
        trace.events.append({**kernel, "tid": stream, "name": f"k{stream}", "ts": start, "dur": us,
                             "args": {"correlation": stream}})  # fmt: skip
    trace.events.append({**kernel, "tid": 9, "name": "far", "ts": 1e6, "dur": 1.0, "args": {}})
    found = read_trace(trace.write(tmp_path_factory.mktemp("t") / "t.json.gz"))
    rows = KernelTable(found, {}, {}, FREE).rows()
    ((begin, end),) = found.steps["decode"]
    assert sum(row.recorded_ms for row in rows) * 1e3 == pytest.approx(end - begin, abs=1e-6)
    assert all(row.recorded_ms >= 0 for row in rows)


def test_statistic_choice_and_lists_of_a_prompt_have_rows(tmp_path: Path) -> None:
    rows = {(row.phase, row.part, row.kernel): row for row in table(tmp_path).rows()}
    us = {key: row.recorded_ms * 1e3 for key, row in rows.items() if key[0] not in ("decode",)}
    assert us["statistic", "statistic", "_factors"] == pytest.approx(5)
    assert us["statistic", "statistic", "_sum"] == pytest.approx(7)
    assert us["selection", "selection", "radixSort"] == pytest.approx(6)
    assert us["gather", "gather", "_list"] == pytest.approx(4)
    assert us["prefill", "down", "gemm"] == pytest.approx(40)
    assert {key[2] for key in us if key[1] in ("prefill", "selection")} == {GAPS, HOST, "radixSort"}


# What recording costs.


def test_what_recorded_replays_take_longer_is_taken_off_the_gaps(tmp_path: Path) -> None:
    """The device notes each kernel of a replay: rows then sum to what steps take with nobody watching."""
    whole = table(tmp_path).phases()["decode"].whole_ms
    assert whole is not None
    plain_us = whole * 1e3 - 6.0
    made = table(tmp_path, overhead=Overhead(op=0.25, span=0.25), plain_us=[plain_us] * 4)
    assert made.overhead.kernel == pytest.approx((6.0 - 4 * 0.25) / len(CUDA_STEP))  # a model, a graph, a copy, a clone
    assert sum(row.self_ms for row in decode(made)) * 1e3 == pytest.approx(plain_us)
    rows = {row.kernel: row for row in decode(made)}
    assert rows["fmha_cutlassF"].self_ms == rows["fmha_cutlassF"].recorded_ms
    assert (rows[GAPS].recorded_ms - rows[GAPS].self_ms) * 1e3 == pytest.approx(5.0)
    assert (rows[HOST].recorded_ms - rows[HOST].self_ms) * 1e3 == pytest.approx(1.0)
    quick = table(tmp_path, overhead=Overhead(op=0.25, span=0.25), plain_us=[whole * 1e3] * 4)
    assert quick.overhead.kernel == 0


# Costs that kernels tell.


def test_a_cost_is_heard_by_who_listens() -> None:
    heard: list[tuple[str, int, int]] = []
    spans.cost("_rows", 1, 2)
    assert not spans.counted()
    with spans.counting(lambda *told: heard.append(told)):
        assert spans.counted()
        spans.cost("_rows", 30, 4)
    with pytest.raises(RuntimeError, match="stop"), spans.counting(lambda *told: None):
        raise RuntimeError("stop")
    assert not spans.counted()
    assert heard == [("_rows", 30, 4)]


def played_step() -> None:
    """Launches as the kernels in Triton make them, each telling its cost."""
    for part, kernel, nbytes, flops in (
        ("projection", "_rows", 9000, 9000),
        ("projection", "_rows", 9500, 9500),
        ("gate_up", "_rows", 21000, 21000),
        ("selection", "_list", 30, 0),
        ("down", "_down", 8000, 8000),
    ):
        with spans.span(part):
            spans.cost(kernel, nbytes, flops)


def test_costs_are_joined_with_kernels_of_replays_and_of_prompts(tmp_path: Path) -> None:
    with Counter() as counter, spans.recording(counter.span), spans.counting(counter.cost):
        spans.cost("_rows", 10**9, 10**9)  # outside any phase: warm steps
        with spans.span("prefill"), spans.span("statistic"):
            spans.cost("_sum", 700, 0)
        with spans.span("decode"):
            played_step()
        with spans.span("decode"):
            played_step()
    rows = {(row.part, row.kernel): row for row in table(tmp_path, counter=counter).rows()}
    assert rows["projection", "_rows"].bytes == rows["projection", "_rows"].flops == 18500
    assert rows["projection", "_rows"].gb_per_s == pytest.approx(1.0)
    assert rows["gate_up", "_rows"].gb_per_s == pytest.approx(1.0)
    assert rows["down", "_down"].bytes == 8000
    assert (rows["selection", "_list"].bytes, rows["selection", "_list"].flops) == (30, None)
    assert rows["head", "_rows"].bytes is None, "nobody told"
    assert rows["statistic", "_sum"].bytes == 700
