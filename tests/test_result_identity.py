"""A result knows what it is of: other texts, weights, code and sizes are measured anew; a kill leaves nothing out."""

import errno
import json
import logging
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tda
from tda import device as facts
from tda.bench import rounds
from tda.bench.plan import Plan, Subject
from tda.bench.planning import plan_for
from tda.bench.run import Bench
from tda.bench.store import INNOCENT_ATTEMPTS, Folder, RecordPlace, Store
from tda.cases import Case, Inputs
from tda.config import BenchConfig
from tda.models import load_model
from tda.models.digest import weights_digest
from tda.process import alone
from tda.records import Failure, Record
from tda.results import append_lines, load
from tda.web.report import build_report, verdict_rows, warning_lines
from tda.web.report.gather import gather
from tda.web.report.setting import settings
from tda.web.report.table import frame
from tda.worth import DEFAULT

TINY = Plan(
    (Subject("ref:swiglu", prompt_tokens=16, new_tokens=4),),
    methods=("griffin",),
    sparsities=(0.5,),
    rounds=2,
    documents=3,
    calibration_documents=2,
)


def bench(plan: Plan, out: Path) -> list[Record]:
    """Records of a folder after a bench."""
    return Bench(plan, out, console=Console(quiet=True)).run()


ONCE = replace(TINY, rounds=1)


def text(path: Path, word: str, words: int = 40) -> Path:
    rows = (json.dumps({"text": " ".join(f"{word} {row} {n}." for n in range(words))}) for row in range(12))
    path.write_text("\n".join(rows) + "\n")
    return path


def nll(record: Record) -> tuple[float, ...]:
    return record.samples("nll_nats")


def kept_lines(out: Path) -> int:
    return len((out / "results.jsonl").read_text().splitlines())


def problems(*folders: Path) -> list[str]:
    return list(gather(folders)[0].problems)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a bench of `TINY` left: copy it before changing it."""
    out = tmp_path_factory.mktemp("measured")
    bench(TINY, out)
    return out


@pytest.fixture
def own_copy(measured: Path, tmp_path: Path) -> Path:
    """Such a folder of the test's own."""
    return shutil.copytree(measured, tmp_path / "copy")


def test_another_text_is_another_result(tmp_path: Path) -> None:
    """A rerun on another text gave the old text's numbers before."""
    plans = [replace(ONCE, text=text(tmp_path / f"{word}.jsonl", word)) for word in ("cat", "dog")]
    first = bench(plans[0], tmp_path / "out")
    both = bench(plans[1], tmp_path / "out")
    alone_on_it = bench(plans[1], tmp_path / "other")
    told = {(one.case, one.inputs.text_name): nll(one) for one in both}
    for name, own in (("cat.jsonl", first), ("dog.jsonl", alone_on_it)):
        assert {one.case.key: told.get((one.case, name)) for one in own} == {one.case.key: nll(one) for one in own}
    assert len(settings(both)) == 2
    assert {setting.name_among(settings(both)) for setting in settings(both)} == {
        "ref:swiglu (cat.jsonl)",
        "ref:swiglu (dog.jsonl)",
    }


def test_a_rerun_says_what_it_reuses_and_why_not_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tda")
    plan = replace(ONCE, text=text(tmp_path / "a.jsonl", "cat"))
    for _ in range(2):
        bench(plan, tmp_path)
    count = kept_lines(tmp_path)
    plan.text.write_text(text(tmp_path / "b.jsonl", "dog").read_text())  # the same name, other words
    caplog.clear()
    bench(plan, tmp_path)
    assert kept_lines(tmp_path) == 2 * count
    (told,) = [one for one in caplog.messages if "reused" in one]
    assert told.count("reused") == 1
    assert f"0 results of an earlier run are reused; {count} are not" in told
    assert "another text (a.jsonl then, a.jsonl now)" in told


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A plan with a method that is calibrated, and the folder of its bench."""
    out = tmp_path_factory.mktemp("calibrated")
    plan = replace(ONCE, methods=("tda",), calibration_text=text(out / "calibration.jsonl", "bird", 400))
    bench(plan, out)
    return plan, out


@pytest.mark.parametrize("change", ["nothing", "weights", "change of the code", "calibration", "documents", "seed"])
def test_what_a_result_depends_on_is_in_its_key(
    change: str, calibrated: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, before = calibrated
    out = shutil.copytree(before, tmp_path / "out")
    if change == "weights":
        loaded = load_model("ref:swiglu")
        with torch.no_grad():
            loaded.model.lm_head.weight[0, 0] += 1.0
        plan = replace(plan, loaded={"ref:swiglu": loaded})
    elif change == "change of the code":
        state = facts.commit().model_copy(update={"dirty": True, "change": "abc"})
        monkeypatch.setattr(facts, "commit", lambda: state)
    elif change == "calibration":
        plan = replace(plan, calibration_text=text(tmp_path / "calibration.jsonl", "fish", 400))
    elif change == "documents":
        plan = replace(plan, documents=4)
    elif change == "seed":
        plan = replace(plan, seed=1)
    after = bench(plan, out)
    new = [one for one in after if one.series not in {record.series for record in load(before).records}]
    changed = {"nothing": set(), "calibration": {"tda"}}.get(change, {"dense", "tda"})
    assert {one.case.method for one in new} == changed
    assert (kept_lines(out) > kept_lines(before)) == bool(changed)
    files = [len(list((one / "thresholds").iterdir())) for one in (before, out)]
    assert files == [1, 1 if change in ("nothing", "documents", "seed") else 2]


def test_a_digest_of_weights_sees_every_tensor_and_each_once() -> None:
    model = load_model("ref:swiglu").model
    before = weights_digest(model)
    assert weights_digest(load_model("ref:swiglu").model) == before
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.view(-1)
            held = flat[-1].clone()
            flat[-1] += 1
            assert weights_digest(model) != before
            flat[-1] = held
    assert weights_digest(model) == before


def test_models_and_methods_may_be_objects(tmp_path: Path) -> None:
    loaded = load_model("ref:relu")
    options = {"documents": 2, "rounds": 1, "prompt_tokens": 16, "new_tokens": 4, "calibration_documents": 2}
    found = tda.run_bench(
        tmp_path, models=[tuple(loaded)], methods=[tda.Griffin(sparsity=0.5, rows="shared")], **options
    )
    by_name = plan_for(["ref:relu"], ["griffin:sparsity=0.5,rows=shared"], options)
    assert {one.case.key for one in found if one.case.control is None} == {one.key for one in by_name.cases()}
    assert all(one.status == "ok" and one.samples("nll_nats") for one in found if one.case.control != "a_a")
    with pytest.raises(ValueError, match="two models have one name"):
        plan_for([loaded.model, loaded.model], [], {})


def test_what_is_measured_later_leaves_a_speed_up_as_it_was(own_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of one process were paired with the dense runs of another."""
    monkeypatch.setattr("tda.bench.cells.PROCESS", "another")
    before = {case.label: case.speedup for setting in settings(load(own_copy).records) for case in setting.cases}
    after = bench(replace(TINY, sparsities=(0.75,)), own_copy)
    (setting,) = settings(load(own_copy).records)
    found = {case.label: case.speedup for case in setting.cases}
    assert {**found, **before}.keys() == found.keys() | {"griffin 0.75"}
    assert found["griffin 0.5"] == before["griffin 0.5"]
    (dense,) = [one for one in after if one.case.is_baseline]
    assert set(dense.measurements["decode_ms"].groups) == {1, 2, 3, 4}
    assert len(nll(dense)) == 3 + 2  # documents that were scored again count once


def test_numbers_of_two_states_of_the_code_are_no_ratio(lines: list[dict], tmp_path: Path) -> None:
    """The speed-up of one was over the dense run of the other."""
    slower = [json.loads(json.dumps(timed(line, 50.0))) for line in lines]
    for line in slower:
        line["inputs"]["change"] = "abcdef12"
    told = [timed(line, 2.5 if of(line, "griffin") else 5.0) for line in lines]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*slower, *told]))
    both = settings(load(tmp_path).records)
    assert [[round(case.speedup.value, 6) for case in one.cases if case.speedup] for one in both] == [
        [1.0, 1.0, 1.0],
        [1.0, 1.0, 2.0],
    ]
    assert both[0].name_among(both) == "ref:swiglu (uncommitted change abcdef)"


def test_two_calibrations_are_told_apart(lines: list[dict], tmp_path: Path) -> None:
    more = [json.loads(json.dumps(line)) for line in lines if line["case"]["method"] == "griffin"]
    for line in more:
        line["inputs"]["calibration"] = "0123456789abcdef"
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    (setting,) = settings(load(tmp_path).records)
    labels = [case.label for case in setting.cases if case.method == "griffin" and not case.record.case.control]
    assert sorted(labels) == ["griffin 0.5 [calibration 01234567]", "griffin 0.5 [calibration not told]"]


def test_two_texts_of_one_name_are_told_apart(tmp_path: Path, lines: list[dict]) -> None:
    other = json.loads(json.dumps(lines))
    for line in other:
        line["inputs"]["text"] = "0123456789abcdef"
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *other]))
    both = settings(load(tmp_path).records)
    assert len({setting.name_among(both) for setting in both}) == 2


def test_an_edited_configuration_is_another_model() -> None:
    """Old numbers were reused where an epsilon in config.json had changed."""
    model = load_model("ref:swiglu").model
    before = weights_digest(model)
    model.config.rms_norm_eps = 0.5
    assert weights_digest(model) != before


def test_a_document_counts_once_however_often_a_text_holds_it(tmp_path: Path) -> None:
    """One document twenty times over gave an interval as narrow as one of twenty documents."""
    line = text(tmp_path / "one.jsonl", "cat", 100).read_text().splitlines()[0]
    (tmp_path / "same.jsonl").write_text(f"{line}\n" * 20)
    with pytest.raises(ValueError, match=r"1 different documents .*20 tokens, 4 "):
        bench(replace(ONCE, text=tmp_path / "same.jsonl"), tmp_path / "out")


def test_true_is_not_one(tmp_path: Path, lines: list[dict]) -> None:
    line = next(line for line in lines if of(line, "griffin"))
    line = {**line, "case": {**line["case"], "options": {**line["case"]["options"], "max_keep": True}}}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    (record,) = load(tmp_path).records
    store = Store(tmp_path, [record], Folder(tmp_path))
    one = record.case.model_copy(update={"options": {**record.case.options, "max_keep": 1}})
    assert not store.missing(RecordPlace(record.case, record.inputs, record.round))
    assert store.missing(RecordPlace(one, record.inputs, record.round))
    with pytest.raises(ValueError, match="seed must be a whole number; got True"):
        plan_for(["ref:swiglu"], ["random:seed=true,sparsity=0.5"], {}).build()


def test_a_zero_has_no_sign(lines: list[dict]) -> None:
    case = Record.model_validate(lines[0]).case.model_dump()
    cases = [Case.model_validate({**case, "sparsity": zero}) for zero in (0.0, -0.0)]
    assert cases[0].key == cases[1].key


def test_a_folder_is_one_model_with_and_without_a_slash() -> None:
    assert BenchConfig(models=("a/m/", "a/m")).models == ("a/m",)


@pytest.mark.parametrize("marker", [b"\xff\xfe", b"[" * 100_000, b"{}", b"3"])
def test_a_marker_that_is_garbage_is_no_case(own_copy: Path, marker: bytes) -> None:
    (own_copy / "running.json").write_bytes(marker)
    assert Folder(own_copy).left_running() is None


# What ends a process.


def killed_in(folder: Path, whole: list[str]) -> Record:
    """Leave a folder as a run does that was killed in Griffin's second round."""
    died = next(line for line in whole if '"griffin"' in line and '"round":2' in line)
    (folder / "results.jsonl").write_text("\n".join(line for line in whole if line != died) + "\n")
    marker = {name: json.loads(died)[name] for name in ("case", "inputs", "round")}
    (folder / "running.json").write_text(json.dumps(marker))
    return Record.model_validate_json(died)


def test_a_kill_is_not_the_case_s_fault(own_copy: Path) -> None:
    """Two kills in one case left it out for ever before."""
    whole = (own_copy / "results.jsonl").read_text().splitlines()
    for _ in range(2):
        killed_in(own_copy, whole)
        merged = bench(TINY, own_copy)
    assert all(one.status == "ok" for one in merged)
    (griffin,) = [one for one in merged if one.case.method == "griffin" and one.case.control is None]
    assert len(set(griffin.measurements["decode_ms"].groups)) == 2


def test_a_case_in_which_runs_end_again_and_again_is_given_up(own_copy: Path) -> None:
    whole = (own_copy / "results.jsonl").read_text().splitlines()
    for number in range(1, INNOCENT_ATTEMPTS + 1):
        died = killed_in(own_copy, whole)
        bench(TINY, own_copy)
        failed = [one for one in load(own_copy).records if one.status != "ok"]
        assert [(one.status, one.failure) for one in failed] == [("crash", Failure(kind="lost"))] * number
        place = (died.case.key, died.inputs.key, 2)
        there = [one for one in load(own_copy).records if (one.case.key, one.inputs.key, one.round) == place]
        assert any(one.status == "ok" for one in there) == (number < INNOCENT_ATTEMPTS)
        whole = [*whole, *(one.model_dump_json() for one in failed[-1:])]


def test_one_bad_model_of_several_is_a_record(tmp_path: Path) -> None:
    bad = Subject(str(tmp_path / "missing"), prompt_tokens=16, new_tokens=4)
    merged = bench(replace(ONCE, subjects=(bad, *TINY.subjects)), tmp_path / "out")
    failed = [one for one in merged if one.status != "ok"]
    assert [(one.case.model, one.status) for one in failed] == [(bad.model, "error")]
    assert "cannot load model" in str(failed[0].reason)
    assert sum(one.status == "ok" for one in merged) > 2
    with pytest.raises(ValueError, match="cannot load model"):
        bench(replace(ONCE, subjects=(bad,)), tmp_path / "alone")


def test_a_folder_is_held_by_one_bench(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ValueError, match="another measurement is running in"):
        bench(TINY, tmp_path)


def test_a_full_disk_names_the_file_and_leaves_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_lines(path, ["a" * 1000])
    script = (
        "import resource, signal, sys; from pathlib import Path; from tda.results import append_lines\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "append_lines(Path(sys.argv[1]), ['b' * 1500, 'c' * 1500])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert done.returncode == 1
    assert f"[Errno {errno.EFBIG}]" in done.stderr
    assert str(path) in done.stderr
    assert "the same command goes on" in done.stderr
    assert path.read_text() == "a" * 1000 + "\n"


def test_a_torn_round_that_was_measured_again_is_nobody_s_complaint(own_copy: Path, tmp_path: Path) -> None:
    lines = (own_copy / "results.jsonl").read_text().splitlines()
    torn = next(line for line in lines if '"round":2' in line)
    (own_copy / "results.jsonl").write_text("\n".join([*lines, torn]) + "\n")
    assert problems(own_copy) == []
    assert problems(own_copy, own_copy) == []  # one folder given twice is one folder
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.jsonl").write_text("\n".join(lines) + "\n")
    (told,) = problems(own_copy, other)
    assert "records repeat a case and round" in told


# Values without bounds.


@pytest.fixture(scope="module")
def lines(measured: Path) -> list[dict]:
    return [json.loads(line) for line in (measured / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "value"), [("decode_ms", -1.0), ("decode_ms", 0.0), ("decode_ms", 1e308), ("nll_nats", float("nan")),
                        ("top1_disagreement", 1.5), ("stream_gb_per_s", float("inf")), ("perplexity", 0.0),
                        ("decode_ms", True), ("decode_ms", "5")]
)  # fmt: skip
def test_a_value_out_of_range_is_named_and_the_rest_is_shown(
    lines: list[dict], name: str, value: float, tmp_path: Path
) -> None:
    place = next(n for n, line in enumerate(lines) if line["measurements"].get(name, {}).get("samples"))
    bad = json.loads(json.dumps(lines[place]))
    bad["measurements"][name]["samples"][0] = value
    held = [*lines[:place], bad, *lines[place + 1 :]]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))
    groups = gather([tmp_path])
    assert len(groups[0].problems) == 1, f"{name} of {value!r} is shown"
    (told,) = groups[0].problems
    assert f"line {place + 1} skipped" in told
    assert name in told or "finite" in told or "number" in told
    assert len(frame(groups)) == len({(line["case"]["method"], line["case"]["control"]) for line in lines})


def test_a_value_in_another_unit_is_named(lines: list[dict], tmp_path: Path) -> None:
    bad = json.loads(json.dumps(next(line for line in lines if "decode_ms" in line["measurements"])))
    bad["measurements"]["decode_ms"]["unit"] = "s"
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [bad, *lines]))
    (told,) = gather([tmp_path])[0].problems
    assert "decode_ms is in 's'; it is told in 'ms'" in told


@pytest.mark.parametrize("sparsity", [7.0, 1e308, -0.1, 1.0])
def test_a_sparsity_out_of_range_is_named(lines: list[dict], sparsity: float, tmp_path: Path) -> None:
    bad = json.loads(json.dumps(lines[0]))
    bad["case"]["sparsity"] = sparsity
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [bad, *lines[1:]]))
    (told,) = gather([tmp_path])[0].problems
    assert "case.sparsity" in told


def test_a_round_with_fewer_layers_is_named_and_left_out(lines: list[dict], tmp_path: Path) -> None:
    """It took the whole page down before."""
    place = max(n for n, line in enumerate(lines) if line["achieved_sparsity"] and line["case"]["method"] == "griffin")
    bad = json.loads(json.dumps(lines[place]))
    bad["achieved_sparsity"] = bad["achieved_sparsity"][:2]
    held = [*lines[:place], bad, *lines[place + 1 :]]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))
    (told,) = build_report([tmp_path], tmp_path).problems
    assert "2 layers" in told


# Verdicts.


def timed(line: dict, ms: float) -> dict:
    """A line whose decode steps all took so long."""
    made = json.loads(json.dumps(line))
    if made["round"]:
        made["measurements"]["decode_ms"]["samples"] = [ms] * len(made["measurements"]["decode_ms"]["samples"])
    return made


def of(line: dict, method: str, control: str | None = None) -> bool:
    return (line["case"]["method"], line["case"]["control"]) == (method, control)


def loaded(lines: list[dict], folder: Path, rounds: int = 6) -> list[Record]:
    """The lines, their first round so often, with the same times in each."""
    folder.mkdir(exist_ok=True)
    first = [line for line in lines if line["round"] == 1]
    repeated = [{**line, "round": number} for number in range(1, rounds + 1) for line in first]
    for line in repeated:
        line["flags"] = {}
    untimed = [line for line in lines if line["round"] == 0]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*untimed, *repeated]))
    return load(folder).records


def test_a_speed_up_over_its_limit_is_not_a_headline(lines: list[dict], tmp_path: Path) -> None:
    """1.40 of a possible 1.35 was printed without a word."""
    found = loaded([timed(line, 0.5 if of(line, "griffin") else 5.0) for line in lines], tmp_path)
    (told,) = warning_lines(found)
    assert "a speed-up of 10 is more than the bytes allow" in told
    (row,) = verdict_rows(found, DEFAULT)
    assert row["verdict"].startswith("cannot tell: speed not trusted (above its roofline)")


def test_a_control_that_leaves_one_out_speaks_over_the_setting(lines: list[dict], tmp_path: Path) -> None:
    off = [timed(line, 5.375 if of(line, "dense", "a_a") else 5.0) for line in lines]
    (told,) = warning_lines(loaded(off, tmp_path))
    assert told.startswith("A/A control in ")
    assert "dense is 0.93 [0.93, 0.93] times as fast as itself" in told


def test_what_is_in_order_raises_no_doubt(lines: list[dict], tmp_path: Path) -> None:
    assert warning_lines(loaded([timed(line, 5.0) for line in lines], tmp_path)) == []


def test_inputs_that_are_not_told_are_no_inputs_of_their_own() -> None:
    assert Inputs().data == ""
    assert Inputs(text="a").data != Inputs(text="b").data
    assert Inputs(text="a").data == Inputs(text="a", change="x", text_name="t", revision="r").data
    assert Inputs(text="a").key != Inputs(text="a", change="x").key
    assert Inputs(text="a").key != Inputs(text="a", plug_in="sine 1.0").key


# Seen to fail where a mend is undone, as the tests before them did not.


def test_a_marker_tells_the_case_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, timed = [], rounds.time_case

    def look(*given: Any, **options: Any) -> Any:
        left = tmp_path / "running.json"
        told = json.loads(left.read_text()) if left.is_file() else {"case": {"method": None}, "round": None}
        seen.append((told["case"]["method"], told["round"]))
        return timed(*given, **options)

    monkeypatch.setattr(rounds, "time_case", look)
    bench(ONCE, tmp_path)
    assert set(seen) == {("dense", 1), ("griffin", 1)}
