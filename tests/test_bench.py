"""The bench: what it runs, in which order, and what survives a failure."""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import tiny
import torch
from rich.console import Console

from tda import device as facts
from tda.bench import measure, window
from tda.bench.measure import DROPPED_PASSES, MOST_PASSES, PASSES, FirstRequest, Passes, Timing, time_case
from tda.bench.outcome import speed, validity_flags
from tda.bench.plan import Plan, Subject
from tda.bench.planning import plan_for, plan_of
from tda.bench.prepare import prepare
from tda.bench.presets import PRESETS
from tda.bench.run import Bench, run_bench
from tda.bench.traffic import Traffic, decode_traffic
from tda.cases import Inputs, MethodSpec
from tda.config import BenchConfig
from tda.contracts import Method, PromptMethod
from tda.engine import attach
from tda.engine.backends import attachment_cache
from tda.engine.phases import decode, prefill
from tda.engine.session import Session
from tda.families import find_ffns
from tda.kernels import BackendInfo
from tda.kernels.compact import CompactFFN
from tda.methods import METHODS, Griffin, method
from tda.models import load_model
from tda.quality import rows_of
from tda.records import SPEED, Measurement, Record, merge
from tda.results import load
from tda.telemetry import ConditionChange, Series, Telemetry
from tda.telemetry.fields import GPU_FIELDS
from tda.view import FFN
from tests import nights

QUIET = Console(quiet=True)
TINY = Plan(
    (Subject("ref:swiglu", prompt_tokens=16, new_tokens=4),),
    methods=("griffin", "tda", "tt", "oracle"),
    sparsities=(0.5,),
    speed_methods=("griffin", "tda", "tt"),
    rounds=2,
    documents=3,
    calibration_documents=2,
)


def run(plan: Plan, out: Path, **options: object) -> list:
    return Bench(plan, out, console=QUIET, **options).run()


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    run(TINY, out)
    return out


def test_every_case_is_measured_and_says_why_not_what(finished):
    merged = {(r.case.method, r.case.control): r for r in run(TINY, finished)}
    assert {name for name, _ in merged} == {"dense", "griffin", "tda", "tt", "oracle"}
    assert {key for key in merged if key[1]} == {("dense", "a_a"), ("griffin", "cross_domain")}
    for (name, control), record in merged.items():
        assert record.status == "ok"
        timed = name != "oracle" and control != "cross_domain"
        for quantity in SPEED:
            own = quantity not in ("statistic_ms", "selection_ms", "choice_ms", "gather_ms", "energy_j_per_token")
            assert bool(record.samples(quantity)) == timed or not own, (name, quantity)
            assert bool(record.samples(quantity)) or record.measurements[quantity].missing
    griffin = merged["griffin", None]
    assert len(griffin.samples("decode_ms")) == 2 * 3  # rounds x (new tokens - 1): the first comes from prefill
    assert (griffin.execution, griffin.backend) == ("compact", "c")
    assert merged["tt", None].execution == "indexed"
    assert merged["oracle", None].execution == "masked"
    assert len(griffin.samples("nll_nats")) == 3 + 2  # scored documents, and one per timed round
    assert len(griffin.samples("task_recall_accuracy")) == 3
    assert griffin.achieved_sparsity == pytest.approx((0.5,) * 4)


def test_rerun_measures_nothing_again(finished, monkeypatch):
    before = lines(finished)
    monkeypatch.setattr("tda.bench.rounds.time_case", lambda *args, **kwargs: pytest.fail("timed again"))
    run(TINY, finished)
    assert lines(finished) == before


def test_truncated_last_line_is_measured_again(finished, tmp_path):
    text = (finished / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").write_text(text[: len(text) - 400])
    run(TINY, tmp_path)
    found = load(tmp_path)
    assert len(found.problems) == 1
    assert {(r.series, r.round) for r in found.records} == {(r.series, r.round) for r in load(finished).records}


def fake_timing(name: str = "griffin", ms: float = 5.0, execution: str = "compact") -> Timing:
    weights = 2e6 if name == "dense" else 1e6
    traffic, streams, change = Traffic(weights, 0.0), (1.5, 2.5), others_used(0.0)
    passes = Passes(prefill=[8.0, 8.0], first_token=[8.1, 8.1])
    return Timing(passes, 20.0, [ms] * 3, None, execution, "torch", (0.5,), traffic, streams, change, None)


def others_used(percent: float) -> ConditionChange:
    """A second on two cores of which others used some."""
    return ConditionChange(1.0, {}, {"foreign_percent": percent}, {}, on_gpu=False, cores=2, quota=None, threads=2)


def speed_only(monkeypatch, order: list[str], fail: str | None = None, interrupt_at: int | None = None) -> Plan:
    """A plan whose timings are made up, so that only the loop itself is under test."""

    def time_case(model, built: Method, *args: object, **kwargs: object) -> Timing:
        if interrupt_at is not None and len(order) == interrupt_at:
            raise KeyboardInterrupt
        order.append(built.name)
        if built.name == fail:
            raise RuntimeError("planted")
        return fake_timing(built.name)

    monkeypatch.setattr("tda.bench.rounds.time_case", time_case)
    monkeypatch.setattr("tda.bench.stage.first_request", lambda *args: FirstRequest(100.0, 1, None))
    subject = Subject("ref:swiglu", prompt_tokens=8, new_tokens=4, quality=False)
    return Plan((subject,), methods=("griffin", "magnitude"), speed_methods=("griffin", "magnitude"), rounds=4)


def test_rounds_are_interleaved_in_balanced_order(monkeypatch, tmp_path):
    order: list[str] = []
    plan = speed_only(monkeypatch, order)
    run(plan, tmp_path)
    size = 2 + 2 * len(plan.sparsities)  # dense twice
    rounds = [order[start : start + size] for start in range(0, len(order), size)]
    assert len(rounds) == 4
    assert all(sorted(part) == sorted(rounds[0]) and part.count("dense") == 2 for part in rounds)
    assert rounds[1] == rounds[0][::-1]
    assert rounds[3] == rounds[2][::-1]
    assert rounds[0] != rounds[2]


def test_a_failing_case_is_a_record_and_the_others_go_on(monkeypatch, tmp_path):
    order: list[str] = []
    merged = run(speed_only(monkeypatch, order, fail="magnitude"), tmp_path)
    status = {(r.case.method, r.case.sparsity): r.status for r in merged}
    assert status["griffin", 0.5] == "ok"
    assert status["magnitude", 0.5] == "ok"  # its memory was measured, though no round was
    broken = [r for r in load(tmp_path).records if r.status == "error"]
    assert {r.case.method for r in broken} == {"magnitude"}
    assert all("planted" in (r.reason or "") for r in broken)
    failed = next(r for r in merged if r.case.method == "magnitude")
    assert "rounds failed: RuntimeError: planted" in (failed.reason or "")
    assert not failed.samples("decode_ms")


def test_a_failure_is_tried_twice_and_not_for_ever(monkeypatch, tmp_path):
    order: list[str] = []
    plan = speed_only(monkeypatch, order, fail="magnitude")
    run(plan, tmp_path)
    first = order.count("magnitude")
    assert first == 2 * len(plan.sparsities)  # of four rounds
    run(plan, tmp_path)
    assert order.count("magnitude") == 2 * first
    run(plan, tmp_path)
    assert order.count("magnitude") == 2 * first


def test_interrupt_keeps_finished_rounds_and_goes_on(monkeypatch, tmp_path):
    order: list[str] = []
    plan = speed_only(monkeypatch, order, interrupt_at=10)
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path)
    rounds = {r.round for r in load(tmp_path).records}
    assert rounds == {0, 1}
    assert not (tmp_path / "running.json").exists()
    order.clear()
    run(speed_only(monkeypatch, order), tmp_path)
    assert len(order) == 3 * 8  # rounds 2 to 4, eight cases each


def test_a_death_of_the_process_is_noted_by_the_next_run(monkeypatch, tmp_path):
    plan = speed_only(monkeypatch, [])
    case = plan.case(plan.subjects[0], method("griffin", 0.5))
    marker = {"case": case.model_dump(mode="json"), "inputs": {"text": "abc"}, "round": 2}
    (tmp_path / "running.json").write_text(json.dumps(marker))
    run(plan, tmp_path)
    crash = [r for r in load(tmp_path).records if r.status == "crash"]
    assert [(r.case, r.inputs.text, r.round) for r in crash] == [(case, "abc", 2)]


def test_results_of_another_machine_or_commit_are_not_mixed(finished, tmp_path):
    for what, change in (("machine", {"cpu": "another"}), ("commit", {"hash": "0" * 40})):
        record = json.loads((finished / "results.jsonl").read_text().splitlines()[0])
        record[what] |= change
        (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
        with pytest.raises(ValueError, match=f"another {what}"):
            run(TINY, tmp_path)


@pytest.mark.parametrize(("first", "then"), [("", ""), ("calibration ", "evaluation ")])
def test_overlapping_text_is_refused_before_anything_runs(tmp_path, first, then):
    """Whole texts in common, or only a passage."""
    sentence = " ".join(f"word{number}" for number in range(60))
    paths = [tmp_path / "calibration.jsonl", tmp_path / "evaluation.jsonl"]
    for path, opening in zip(paths, (first, then), strict=True):
        path.write_text("".join(json.dumps({"text": f"{opening}{n} {sentence}"}) + "\n" for n in range(9)))
    subject = Subject("ref:swiglu", prompt_tokens=150, new_tokens=50)
    plan = replace(TINY, subjects=(subject,), text=paths[1], calibration_text=paths[0])
    with pytest.raises(ValueError, match="calibration"):
        prepare(plan, subject)


def test_a_timed_round_keeps_raw_samples():
    passes = Passes([8.0, 9.0], [8.1, 9.1], [0.5, 0.4], [1.0, 2.0], [0.6, 1.5], [0.3, 0.4])
    found = speed(replace(fake_timing(), passes=passes))
    assert {name: part.samples for name, part in found.items()} == {
        "prefill_ms": (8.0, 9.0),
        "ttft_ms": (8.1, 9.1),
        "statistic_ms": (0.5, 0.4),
        "selection_ms": (1.0, 2.0),
        "choice_ms": (0.6, 1.5),
        "gather_ms": (0.3, 0.4),
        "decode_ms": (5.0, 5.0, 5.0),
        "generation_ms": (20.0,),
        "stream_gb_per_s": (1.5, 2.5),
        "weight_bytes_per_token": (1e6,),
        "bytes_per_token": (1e6,),
    }


def test_what_a_case_does_not_do_is_missing_and_not_zero():
    found = speed(fake_timing("dense", execution="dense"))
    for name in ("statistic_ms", "selection_ms", "choice_ms", "gather_ms"):
        assert not found[name].samples
        assert found[name].missing


@pytest.fixture(scope="module")
def prepared():
    plan = replace(TINY, methods=("griffin", "magnitude", "tt"))
    return prepare(plan, plan.subjects[0])


@pytest.mark.parametrize(
    ("name", "clocked"),
    [
        ("griffin", {"statistic", "selection", "choice", "gather"}),
        ("magnitude", {"selection", "choice", "gather"}),
        ("tt", set()),
        ("dense", set()),
    ],
)
def test_statistic_choice_and_gather_are_clocked_by_themselves(prepared, name, clocked):
    built = next(found for found, _ in prepared.methods if found.name == name)
    passes = time_case(prepared.model, built, prepared.timed[:1], "auto", keep_logits=False).passes
    assert PASSES <= len(passes.prefill) <= MOST_PASSES
    for part in ("statistic", "selection", "choice", "gather"):
        taken = getattr(passes, part)
        assert len(taken) == (len(passes.prefill) if part in clocked else 0), part
        assert all(ms > 0 for ms in taken)
    assert all(first > ms for first, ms in zip(passes.first_token, passes.prefill, strict=True))
    if "selection" in clocked:
        parts = zip(passes.selection, passes.choice, passes.gather, strict=True)
        assert all(whole >= choice + gather for whole, choice, gather in parts)
    if "statistic" in clocked:
        assert all(part < whole for part, whole in zip(passes.statistic, passes.prefill, strict=True))


def test_each_pass_of_the_prompt_is_a_request_of_its_own(prepared, monkeypatch):
    """The selection is made anew, and the passes do not add up in it."""
    prompts, _ = rows_of(prepared.timed[:1], torch.device("cpu"))
    monkeypatch.setattr(measure, "MOST_PASSES", 4)
    monkeypatch.setattr(measure, "PASSES_MS", float("inf"))
    requests, chosen, select = [], [], Session.select

    def noting(session):
        select(session)
        requests.append(session.run.attachment.requests.last)
        chosen.append([layer.clone() for layer in session.run.selection()])

    monkeypatch.setattr(Session, "select", noting)
    passes = time_case(prepared.model, method("griffin", 0.5), prepared.timed[:1], "auto", keep_logits=False).passes
    served = 1 + DROPPED_PASSES + 4  # the first is the warm-up's
    assert len(set(map(id, requests))) == served
    assert [int(request.prompt().tokens) for request in requests] == [prompts.shape[1]] * served
    assert len(passes.prefill) == len(passes.selection) == len(passes.statistic) == 4
    assert all(torch.equal(a, b) for layers in chosen for a, b in zip(chosen[0], layers, strict=True))


def test_masked_execution_has_no_speed():
    found = speed(fake_timing(execution="masked"))
    assert all(found[name].missing and not found[name].samples for name in SPEED)


def test_foreign_load_and_few_rounds_are_flagged():
    busy = replace(fake_timing(), change=others_used(20.0))
    flags = validity_flags(busy, "cpu", rounds=4)
    assert flags["foreign_load"].raised
    assert flags["few_samples"].raised
    assert not validity_flags(fake_timing(), "cpu", rounds=5)["foreign_load"].raised


@pytest.mark.parametrize(
    ("megabytes", "cache", "ms", "is_raised"),
    [
        (100.0, 32, 5.0, False),  # 20 GB/s of 20
        (100.0, 32, 4.2, True),  # faster than memory, whatever the system says of its cache
        (30.0, 32, 3.0, True),  # fits, and work beside the reading hides how fast it is read
        (100.0, None, 5.0, False),
        (100.0, None, 4.0, True),
        (
            400.0,
            50,
            16.4,
            False,
        ),  # at 1.22: an eighth of the weights in a cache cannot give that, so the ruler was slow
    ],
)
def test_residence_is_told_by_size_and_by_speed(monkeypatch, megabytes, cache, ms, is_raised):
    here = facts.machine("cpu").model_copy(update={"cache_bytes": cache and cache * 10**6})
    monkeypatch.setattr("tda.bench.outcome.machine", lambda device: here)
    timing = replace(fake_timing(ms=ms), traffic=Traffic(megabytes * 1e6, 0.0), streams_gb_per_s=(19.0, 21.0))
    flag = validity_flags(timing, "cpu", rounds=5)["cache_resident"]
    assert flag.raised == is_raised
    assert f"{megabytes:.0f} MB of weights" in flag.detail
    assert f"{megabytes / ms / 20:.2f} of the stream bandwidth" in flag.detail


@pytest.mark.parametrize("name", ["ref:swiglu", "ref:relu"])
def test_traffic_counts_the_bytes_of_named_parameters(name):
    """Against a count by hand over parameter names: tied head read, embedding tables not, FFN by density."""
    model = load_model(name).model
    ffns = find_ffns(model)
    size = {path: p.numel() * p.element_size() for path, p in model.named_parameters()}
    untied = "lm_head.weight" in size
    tables = [path for path in size if "embed_positions" in path or (untied and "embed_tokens" in path)]
    always = sum(n for path, n in size.items() if path not in tables)

    def part(word: str) -> int:
        return sum(n for path, n in size.items() if f".{word}." in path)

    down, down_bias = ("fc2", part("fc2") - part_weight(size, "fc2")) if "relu" in name else ("down_proj", 0)
    inputs = ("fc1",) if "relu" in name else ("gate_proj", "up_proj")
    half = always - 0.5 * (sum(map(part, inputs)) + part(down) - down_bias)
    dense = decode_traffic(model, ffns, METHODS["dense"](), [1.0] * len(ffns), 0, 1)
    griffin = decode_traffic(model, ffns, method("griffin", 0.5), [0.5] * len(ffns), 0, 1)
    tt = decode_traffic(model, ffns, method("tt", 0.5), [0.5] * len(ffns), 0, 1)
    assert dense.weights == always
    assert griffin.weights == half
    assert tt.weights == always - 0.5 * (part(down) - down_bias)


def part_weight(size: dict[str, int], word: str) -> int:
    return sum(n for path, n in size.items() if f".{word}.weight" in path)


def test_key_value_cache_is_counted():
    model = load_model("ref:swiglu").model
    config = model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * (128 // 4) * 4
    ffns = find_ffns(model)
    for batch in (1, 3):
        traffic = decode_traffic(model, ffns, METHODS["dense"](), [1.0] * len(ffns), 100, batch)
        assert traffic.cache == per_token * 100 * batch


def test_batch_counts_the_union_of_the_rows(tmp_path):
    """Two rows with sets of their own read more than one row does, and no more than both."""
    plan = replace(TINY, batch=2)
    prepared = prepare(plan, plan.subjects[0])
    griffin = method("griffin", 0.5)
    one, two = (
        time_case(prepared.model, griffin, prepared.timed[:rows], "compact", keep_logits=False).traffic.weights
        for rows in (1, 2)
    )
    dense = decode_traffic(prepared.model, find_ffns(prepared.model), METHODS["dense"](), [1.0] * 4, 0, 1).weights
    assert one < two < dense


@pytest.mark.parametrize("rows", [1, 3])
def test_sparsity_and_traffic_are_those_of_the_timed_steps_alone(prepared, rows):
    """Warm-up and generate count nothing: the steps of a per-token method differ in what they read."""
    built = next(found for found, _ in prepared.methods if found.name == "tt")
    documents = prepared.scored[:rows]
    timing = time_case(prepared.model, built, documents, "indexed", keep_logits=False)
    prompts, continuations = rows_of(documents, torch.device("cpu"))
    read = []
    with attach(prepared.model, built, execution="masked") as run:
        _, cache = prefill(prepared.model, prompts)
        for token in continuations[:, :-1].split(1, dim=1):
            decode(prepared.model, token, cache)
            read.append([float(layer.any(0).double().mean()) for layer in run.selection()])
        assert timing.achieved_sparsity == pytest.approx(run.achieved_sparsity(), abs=1e-9)
    union = [sum(layer) / len(layer) for layer in zip(*read, strict=True)]
    cached = prompts.shape[1] + continuations.shape[1] / 2
    wanted = decode_traffic(prepared.model, find_ffns(prepared.model), built, union, cached, rows)
    assert timing.traffic.weights == pytest.approx(wanted.weights, rel=1e-9)
    assert timing.traffic.cache == wanted.cache


def test_timed_quality_equals_the_score_of_the_same_documents(finished):
    """The pass that is timed token by token gives the same NLL as the one-pass score of those documents."""
    from tda.engine.score import score

    prepared = prepare(TINY, TINY.subjects[0])
    griffin = method("griffin", 0.5)
    document = prepared.timed[0]
    expected = score(prepared.model, griffin, document.prompt.unsqueeze(0), document.continuation.unsqueeze(0))
    record = next(r for r in load(finished).records if r.case.method == "griffin" and r.round == 1)
    assert record.samples("nll_nats")[0] == pytest.approx(float(expected.nll[0, 1:].mean()), abs=2e-5)


def test_presets_are_valid_and_cover_every_method():
    for preset, plan in PRESETS.items():
        if preset in ("gpu", "paper"):
            assert set(plan.methods) | {"dense"} == set(plan.speed_methods) <= set(METHODS), "their time is for these"
        else:
            assert set(plan.methods) == {name for name, kind in METHODS.items() if kind.in_presets}, preset
        taken = plan_of(BenchConfig(preset=preset))
        assert replace(taken, subjects=plan.subjects) == plan
        assert len(taken.subjects) == len(plan.subjects)


@pytest.mark.parametrize(
    ("megabytes", "dtype", "taken"),
    [
        (8, None, "ref:wide"),
        (34, None, "ref:wide"),
        (36, None, "ref:wide:2x"),
        (32, "bfloat16", "ref:wide:2x"),
        (105, None, "ref:wide:4x"),
        (100_000, None, "ref:wide:16x"),
    ],
)
def test_a_preset_takes_its_model_in_a_size_that_no_cache_holds(monkeypatch, megabytes, dtype, taken):
    monkeypatch.setattr("tda.bench.model_size.cache_bytes", lambda device: megabytes * 10**6)
    for preset in ("smoke", "default", "nightly"):
        plan = plan_of(BenchConfig(preset=preset, dtype=dtype, budget="none"))
        first, *others = plan.subjects
        assert (first.model, first.quality, first.speed) == (taken, True, True), preset
        assert {subject.layer_sparsity_from for subject in others if subject.speed} <= {taken}
    named = plan_of(BenchConfig(models=("ref:wide", "shape:25m"), dtype=dtype))
    assert [subject.model for subject in named.subjects] == ["ref:wide", "shape:25m"], "who names a model gets that one"


def test_the_model_of_both_axes_ships_where_no_cache_is_known(monkeypatch):
    monkeypatch.setattr("tda.bench.model_size.cache_bytes", lambda device: None)
    assert [subject.model for subject in plan_of(BenchConfig()).subjects] == ["ref:wide"]


def test_plan_of_models_named_by_hand():
    plan = plan_for(["shape:0.1b", "ref:relu"], ["griffin"], {"preset": "smoke", "new_tokens": 5, "batch": 2})
    trained, shape = plan.subjects
    assert (trained.model, trained.quality, trained.speed) == ("ref:relu", True, True)
    assert (shape.model, shape.quality, shape.layer_sparsity_from) == ("shape:0.1b", False, "ref:relu")
    assert (shape.new_tokens, plan.batch, plan.speed_methods) == (5, 2, ("griffin",))
    assert [built.name for built in plan.build()][:2] == ["dense", "griffin"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sparsities": (1.0,)}, r"sparsities\.0: .*0 <= s < 1; got 1\.0"),
        ({"methods": ("griffon",)}, "griffon"),
        ({"methods": ("griffin:speed=1",)}, "griffin.*speed"),
        ({"methods": ("griffin:rows=some",)}, "rows"),
        ({"rounds": -1}, "rounds: .* greater than or equal to 0; got -1"),
        ({"new_tokens": 1}, "new_tokens"),
        ({"execution": "fast"}, "execution: .*'masked'.*; got 'fast'"),
        ({"preset": "huge"}, "preset: .*'smoke'"),
        ({"sparsity": (0.5,)}, "unknown option 'sparsity'; known: preset, models, methods, sparsities"),
    ],
)
def test_wrong_plans_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        plan_of(BenchConfig.of({"preset": "smoke", **options}))


def test_quality_of_random_weights_is_refused():
    with pytest.raises(ValueError, match="random weights"):
        Subject("shape:0.1b", quality=True)


class PlayedMemory:
    """The memory of a GPU: peaks one after another, and what its graphs hold."""

    device, problem, pools = torch.device("cuda"), None, 50
    peaks: ClassVar[list[int]] = []

    def __init__(self, device: torch.device) -> None:
        self.peak = self.peaks.pop(0)

    def allocated(self) -> int:
        return self.peak

    def read(self) -> int:
        return self.peak + self.pools


@pytest.mark.parametrize(("peaks", "wanted"), [((500, 400), 500), ((420, 400), 450)])
def test_the_pool_of_a_graph_counts_once(monkeypatch, prepared, peaks, wanted):
    """While it is captured its memory is allocated; afterwards it is held beside what is allocated."""
    monkeypatch.setattr(measure, "PeakMemory", PlayedMemory)
    monkeypatch.setattr(PlayedMemory, "peaks", list(peaks))
    found = measure.first_request(prepared.model, method("griffin", 0.5), prepared.timed[:1], "auto")
    assert found.peak_bytes == wanted
    assert found.problem is None


@pytest.mark.gpu
def test_cuda_timing_has_events_memory_and_driver_facts():
    model = load_model("ref:swiglu", device="cuda").model
    document = prepare(TINY, TINY.subjects[0]).timed[0]
    timing = time_case(model, method("griffin", 0.5), [document], "auto", keep_logits=False)
    assert all(ms > 0 for ms in timing.decode_ms)
    first = measure.first_request(model, method("griffin", 0.5), [document], "auto")
    assert min(first.attach_ms, first.peak_bytes) > 0
    assert torch.cuda.is_available()


def test_the_schema_of_a_line_lies_beside_the_results(finished):
    schema = json.loads((finished / "results.schema.json").read_text())
    line = lines(finished)[0]
    assert set(schema["required"]) <= set(line)
    assert set(line) <= set(schema["properties"])


# What a run is of.


@pytest.fixture
def on_texts(tmp_path) -> Plan:
    """A plan on texts of its own, with a model in memory."""
    for name in ("evaluation", "calibration"):
        lines = [json.dumps({"text": f"keeper {number} of {name} wrote a line of it."}) for number in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    paths = {"text": tmp_path / "evaluation.jsonl", "calibration_text": tmp_path / "calibration.jsonl"}
    return replace(TINY, methods=("griffin", "tt"), loaded={"ref:swiglu": load_model("ref:swiglu")}, **paths)


def inputs_of(plan: Plan) -> dict[str, Inputs]:
    """On what each method of a plan is measured."""
    return {built.name: inputs for built, inputs in prepare(plan, plan.subjects[0]).methods}


def rewrite(path: Path | None) -> None:
    assert path is not None
    path.write_text(path.read_text().replace("keeper", "reader"))


CHANGES = {
    "text": (lambda plan: rewrite(plan.text), {"text", "documents"}),
    "documents": (lambda plan: replace(plan, documents=4), {"documents"}),
    "prompt length": (
        lambda plan: replace(plan, subjects=(replace(plan.subjects[0], prompt_tokens=17),)),
        {"documents", "calibration"},
    ),
    "calibration text": (lambda plan: rewrite(plan.calibration_text), {"calibration"}),
    "calibration documents": (lambda plan: replace(plan, calibration_documents=3), {"calibration"}),
    "weights": (
        lambda plan: plan.loaded["ref:swiglu"].model.model.layers[1].mlp.up_proj.weight.data[3, 5].add_(0.5),
        {"weights"},
    ),
    "nothing": (lambda plan: plan, set()),
    "the text's name": (
        lambda plan: replace(plan, text=plan.text.rename(plan.text.with_name("other.jsonl"))),
        {"text_name"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_run_is_of_is_told_by_digest(on_texts, change):
    """Each method's inputs differ in what changed, and calibration is no matter of one without thresholds."""
    alter, told = CHANGES[change]
    before, changed = inputs_of(on_texts), alter(on_texts)
    after = inputs_of(changed if isinstance(changed, Plan) else on_texts)
    for name, own in (("griffin", told - {"calibration"}), ("tt", told)):
        one, other = (found[name].model_dump() for found in (before, after))
        assert {field for field in one if one[field] != other[field]} == own
        assert (before[name].key == after[name].key) == (not own - {"text_name"})


def test_a_rerun_takes_what_is_equal_and_measures_the_rest(on_texts, tmp_path):
    plan, out = replace(on_texts, subjects=(replace(on_texts.subjects[0], speed=False),)), tmp_path / "out"

    def measured() -> list[str]:
        before = len(load(out).records) if (out / "results.jsonl").exists() else 0
        run(plan, out)
        return sorted(record.case.method for record in load(out).records[before:])

    assert measured() == ["dense", "griffin", "tt"]
    assert measured() == []
    rewrite(plan.calibration_text)
    assert measured() == ["tt"]
    rewrite(plan.text)
    assert measured() == ["dense", "griffin", "tt"]
    anew = {record.series: record.samples("nll_nats") for record in run(plan, tmp_path / "anew")}
    found = {record.series: record.samples("nll_nats") for record in run(plan, out)}
    assert anew.items() <= found.items()
    assert len(found) == 3 + 1 + 3


def test_random_tokens_follow_from_the_seed_and_not_from_the_number_of_rounds():
    plan = Plan((Subject("shape:25m", prompt_tokens=8, new_tokens=4, quality=False),), methods=("griffin",), rounds=1)
    first = inputs_of(plan)["griffin"]
    assert inputs_of(replace(plan, rounds=3))["griffin"] == first
    assert inputs_of(replace(plan, seed=1))["griffin"].documents != first.documents


def test_a_shape_in_memory_may_have_any_weights():
    shape, model = Subject("shape:25m", prompt_tokens=8, new_tokens=4, quality=False), load_model("shape:25m")
    plan = Plan((shape,), methods=("griffin",), rounds=1, loaded={"shape:25m": model})
    before = inputs_of(plan)["griffin"]
    model.model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    assert inputs_of(plan)["griffin"].weights != before.weights


def test_a_shape_has_the_layers_of_the_model_that_it_imitates_also_at_an_error_level():
    shape = Subject("shape:25m", prompt_tokens=8, new_tokens=4, quality=False, layer_sparsity_from="ref:swiglu")
    plan = Plan((shape,), methods=("tt:cett=0.2", "tt"), sparsities=(0.5,), rounds=1)
    shares = {
        "tt:allocation=equal_error,cett=0.2": [0.2, 0.6],
        "tt:sparsity=0.5,allocation=uniform,cett=none": [0.4],
    }
    profile = {MethodSpec.parse(text): layers for text, layers in shares.items()}
    found = {str(b.sparsity): b.thresholds for b, _ in prepare(plan, shape, profile=profile).methods if b.thresholds}
    assert (found["None"].targets[0], found["None"].targets[-1]) == (0.2, 0.6)
    assert set(found["0.5"].targets) == {0.4}


@dataclass(frozen=True, kw_only=True)
class First(PromptMethod):
    """A method of somebody else's: it keeps the first neurons."""

    name: ClassVar[str] = "first"
    step: int = 1

    def scores(self, ffn: FFN, statistic: object, prompt: object) -> torch.Tensor:
        return -torch.arange(ffn.F, dtype=torch.float32).unsqueeze(0)


def test_models_and_methods_may_be_objects(tmp_path):
    own, (model, tokenizer) = tiny.build("llama"), load_model("ref:swiglu")
    model.config._name_or_path = "mine"
    methods = [First(step=2), Griffin(sparsity=0.3), "tt:cett=0.2"]
    options = {"rounds": 1, "prompt_tokens": 8, "new_tokens": 3, "documents": 2, "calibration_documents": 2}
    records = run_bench(tmp_path, models=[own, (model, tokenizer)], methods=methods, **options)
    assert {record.status for record in records} == {"ok"}
    named = {str(record.case): record for record in records if record.case.control is None}
    labels = ("dense", "first 0.5 (step=2)", "griffin 0.3", "tt (allocation=equal_error, cett=0.2)")
    cases = {f"{case} on {name}" for name in ("mine", "LlamaForCausalLM") for case in labels}
    assert set(named) == cases
    assert named["first 0.5 (step=2) on mine"].case.options == {"step": 2}
    for text, record in named.items():
        assert record.samples("decode_ms")
        assert bool(record.samples("nll_nats")) == text.endswith("mine")
        assert record.inputs.text_name == ("built-in stories" if text.endswith("mine") else "random tokens")


class Mine(Griffin):
    """A variant that forgot to take a name."""


def test_a_method_of_ones_own_has_a_spec_and_a_name_of_its_own():
    assert str(First(sparsity=0.25).spec) == "first:sparsity=0.25,step=1"
    shape = Subject("shape:25m", quality=False)
    for methods in ((Mine(sparsity=0.5),), ("griffin", Mine(sparsity=0.5))):
        with pytest.raises(ValueError, match=r"Mine .*Griffin .*'griffin'"):
            Plan((shape,), methods=methods)


@pytest.mark.parametrize(
    ("models", "options", "told"),
    [
        ([tiny.build("llama"), tiny.build("llama")], {}, "two models have one name"),
        (["ref:swiglu", "ref:swiglu"], {}, "two models have one name"),
        ([tiny.build("llama").to("meta")], {"device": "cpu"}, "stay where they are, on one device: meta; got 'cpu'"),
        ([tiny.build("llama"), tiny.build("gemma").to("meta")], {}, "on one device: cpu, meta"),
        (["ref:swiglu"], {"methods": [Griffin]}, "methods"),
        (["ref:swiglu"], {"model": "ref:relu"}, "unknown option 'model'"),
    ],
)
def test_objects_that_cannot_be_told_apart_or_moved_are_refused(tmp_path, models, options, told):
    with pytest.raises(ValueError, match=told):
        run_bench(tmp_path, models=models, **options)


# The telemetry pass.


def prefilled(name: str) -> tuple:
    """A tiny request that is ready to be decoded: what attaches, the model, and the rows."""
    prepared = prepare(replace(TINY, methods=(name,)), TINY.subjects[0])
    built = next(found for found, _ in prepared.methods if found.name == name)
    return prepared.model, attach(prepared.model, built), rows_of(prepared.timed[:1], "cpu")


@pytest.mark.parametrize("name", ["dense", "magnitude", "griffin", "tt"])
def test_a_window_repeats_the_same_steps_on_the_same_selection(name, monkeypatch):
    steps: list[tuple[int, torch.Tensor]] = []
    gathers: list[object] = []

    def spied_decode(model, token, cache):
        length = cache.get_seq_length()
        steps.append((length, decode(model, token, cache)))
        return steps[-1][1]

    load_rows = CompactFFN.load
    monkeypatch.setattr(CompactFFN, "load", lambda self, kept: (gathers.append(self), load_rows(self, kept))[1])
    monkeypatch.setattr("tda.engine.session.decode", spied_decode)
    monkeypatch.setattr(window, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    _, attached, (prompts, continuations) = prefilled(name)
    with torch.no_grad(), attached as run:
        session = Session(run, prompts, continuations)
        session.prefill()
        session.select()
        before = len(gathers)
        tokens = window.decode_for(2, session)  # the played clock ticks once a repetition
    count = continuations.shape[1] - 1
    assert tokens == len(steps) == 2 * count
    assert [length for length, _ in steps] == 2 * [prompts.shape[1] + step for step in range(count)]
    for (_, one), (_, other) in zip(steps[:count], steps[count:], strict=True):
        assert torch.equal(one, other)
    assert len(gathers) == before


def test_on_a_cpu_there_is_no_window_and_the_record_says_so(finished):
    record = next(r for r in load(finished).records if r.case.method == "griffin" and r.round == 1)
    for quantity in window.GPU_MEASUREMENTS:
        assert record.measurements[quantity].missing.endswith(" CPU")
    machine_flags = {"foreign_load", "oversubscribed", "throttling", "clocks"}
    assert machine_flags | {"few_samples", "cache_resident"} == set(record.flags)


def test_a_failed_telemetry_pass_leaves_the_times(monkeypatch, tmp_path):
    def fails(*args: object) -> None:
        raise RuntimeError("planted")

    plan = speed_only(monkeypatch, [])
    monkeypatch.setattr("tda.bench.gpu_telemetry.gpu_use", fails)
    prepared = prepare(plan, plan.subjects[0])
    monkeypatch.setattr("tda.bench.subject.prepare", lambda *args, **kwargs: prepared)
    monkeypatch.setattr(facts, "machine", lambda device: nights.MACHINE)
    monkeypatch.setattr("tda.kernels.backend", lambda device: BackendInfo("triton", "played"))
    merged = run(replace(plan, device="cuda", rounds=1), tmp_path)
    for record in merged:
        assert record.samples("decode_ms")
        reason = record.measurements["energy_j_per_token"].missing
        assert reason.endswith(": RuntimeError: planted")
    assert not (tmp_path / "running.json").exists()


def played_gpu(monkeypatch, tmp_path, used: dict[str, Measurement], order: list[str]) -> list[Record]:
    """Records of three rounds on a played GPU that is used so."""
    plan = speed_only(monkeypatch, order)
    monkeypatch.setattr("tda.bench.gpu_telemetry.gpu_use", lambda model, method, *args: order.append("sampled") or used)
    prepared = prepare(plan, plan.subjects[0])
    monkeypatch.setattr("tda.bench.subject.prepare", lambda *args, **kwargs: prepared)
    monkeypatch.setattr(facts, "machine", lambda device: nights.MACHINE)
    monkeypatch.setattr("tda.kernels.backend", lambda device: BackendInfo("triton", "played"))
    run(replace(plan, device="cuda", rounds=3), tmp_path)
    return [record for record in load(tmp_path).records if record.round]


def test_the_use_of_a_gpu_is_sampled_once_a_case(monkeypatch, tmp_path):
    order: list[str] = []
    used = {name: Measurement.of(name, [float(place + 1)]) for place, name in enumerate(window.GPU_MEASUREMENTS)}
    records = played_gpu(monkeypatch, tmp_path, used, order)
    cases = len({record.series for record in records})
    assert order.count("sampled") == cases
    assert order[cases : 2 * cases] == ["sampled"] * cases, "after the times of the first round"
    for record in records:
        found = record.measurements["power_w"]
        assert found.samples == ((3.0,) if record.round == 1 else ())
        assert found.missing == (None if record.round == 1 else window.SAMPLED_BEFORE)
    assert all(record.samples("energy_j_per_token") == (4.0,) for record in merge(records))


def test_what_cannot_be_sampled_keeps_its_reason(monkeypatch, tmp_path):
    used = {name: Measurement.absent(name, "no driver: none") for name in window.GPU_MEASUREMENTS}
    records = played_gpu(monkeypatch, tmp_path, used, [])
    assert {record.measurements["power_w"].missing for record in records} == {"no driver: none"}


def test_where_attachments_leave_something_each_case_is_attached_before_the_rounds(monkeypatch, tmp_path):
    order: list[str] = []
    plan = speed_only(monkeypatch, order)
    monkeypatch.setattr("tda.engine.backends.attachment_cache.free_bytes", lambda device: 1e9)
    monkeypatch.setattr("tda.bench.rounds.attach_once", lambda model, method, execution: order.append("attached"))
    run(plan, tmp_path)
    cases = len({record.series for record in load(tmp_path).records})
    assert order[:cases] == ["attached"] * cases
    assert order.count("attached") == cases
    assert not attachment_cache.CACHES
    order.clear()
    run(plan, tmp_path)
    assert not order


def test_attaching_is_measured_once_a_case(finished):
    records = load(finished).records
    for record in records:
        timed = any(one.series == record.series and one.round for one in records)
        assert len(record.samples("attach_ms")) == (timed and record.round == 0)


def test_a_gpu_without_samples_gives_reasons():
    told = {f"gpu0/{name}": Series(device="gpu0", unit="x", missing="no driver: none") for name in GPU_FIELDS}
    found = window.measurements(Telemetry(seconds=1.0, rate_hz=0.0, series=told), 5)
    assert {name: part.missing for name, part in found.items()} == dict.fromkeys(
        window.GPU_MEASUREMENTS, "no driver: none"
    )


@pytest.mark.gpu
def test_a_gpu_tells_its_use_in_a_window():
    model = load_model("ref:swiglu", device="cuda").model
    document = prepare(TINY, TINY.subjects[0]).timed[0]
    found = window.gpu_use(model, method("griffin", 0.5), None, [document], "auto")
    assert set(found) == set(window.GPU_MEASUREMENTS)
    assert all(part.samples or part.missing for part in found.values())
    assert found["gpu_memory_bytes"].samples
