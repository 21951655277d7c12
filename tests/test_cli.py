"""The command line: what a user types, and what one sentence a mistake gives."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer

import tda
from tda.cli import main as cli
from tda.cli import signals
from tda.methods import METHODS
from tda.models.reference import WEIGHTS
from tda.results import load
from tests.faults import plant

SENTENCE = "The lantern keeper of Brailon wrote that the river rose again. "
TINY = ["--prompt-tokens", "16", "--new-tokens", "4", "--documents", "2", "--calibration-documents", "2"]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_methods_are_those_of_the_registry(command):
    code, out, _ = command("methods", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)} == set(METHODS)


def test_models_have_sizes_and_sources(command):
    code, out, _ = command("models", "--json")
    rows = {row["name"]: row for row in json.loads(out)["models"]}
    assert code == 0
    assert {"ref:swiglu", "ref:relu", "ref:geglu", "shape:1b", "shape:llama-3-8b"} <= set(rows)
    assert 1.0e9 < rows["shape:1b"]["parameters"] < 1.2e9
    assert all(row["source"] for row in rows.values())


def test_tables_are_printed_for_people(command):
    code, out, _ = command("methods")
    assert code == 0
    assert all(name in out for name in METHODS)


def test_calibrate_then_generate_and_eval_with_the_artifact(command, tmp_path):
    artifact = tmp_path / "deep" / "tda.json"
    code, out, err = command(
        "calibrate", "-m", "ref:swiglu", "-s", "0.5", "--tokens", "64", "--documents", "4", "--out", artifact, "--json"
    )
    assert code == 0, err
    layers = json.loads(out)
    assert len(layers) == 4
    assert sum(row["achieved_sparsity"] for row in layers) / 4 == pytest.approx(0.5, abs=0.03)

    prompt = "Once there was a brave child called Brailon who lived in "
    common = ("-m", "ref:swiglu", "--method", "tda", "-s", "0.5", "--thresholds", artifact)
    code, out, err = command("generate", *common, "--prompt", prompt, "--new-tokens", "12")
    assert code == 0, err
    assert out.startswith(prompt)
    assert len(out.strip()) > len(prompt)
    assert "compact: left out per layer" in err

    code, out, err = command("eval", *common, *TINY, "--json")
    assert code == 0, err
    rows = {row["method"]: row for row in json.loads(out)}
    assert set(rows) == {"dense", "tda"}
    assert rows["dense"]["delta_nll_nats"] == 0
    assert rows["tda"]["sparse_share"] == 0.75  # three of four tokens: the first comes from the dense prefill


def test_thresholds_of_any_options_serve_the_method_with_these_options(command, tmp_path):
    model = ("-m", "ref:swiglu", "--method")
    few = ("--tokens", "32", "--documents", "2", "--out", tmp_path / "made.json")
    code, _, err = command("calibrate", *model, "tt:cett=0.2", *few)
    assert code == 0, err
    text = ("--thresholds", tmp_path / "made.json", "--prompt", "x", "--new-tokens", "2")
    code, _, err = command("generate", *model, "tt:cett=0.2", *text)
    assert code == 0, err
    assert "left out per layer" in err
    assert command("eval", *model, "tt:cett=0.2", "--thresholds", tmp_path / "made.json", *TINY)[0] == 0
    code, _, err = command("generate", *model, "tt:cett=0.1", *text)
    assert code == 2
    assert "cett" in err


def test_eval_on_a_file_of_texts(command, tmp_path):
    text = jsonl(tmp_path / "text.jsonl", [f"{number}. {SENTENCE}" for number in range(4)])
    code, out, err = command(
        "eval", "-m", "ref:relu", "--method", "griffin", "-s", "0.5", "--text", text, *TINY, "--json"
    )
    assert code == 0, err
    assert [row["method"] for row in json.loads(out)] == ["dense", "griffin"]


def test_bench_writes_results_and_report_then_report_again(command, tmp_path):
    out = tmp_path / "results"
    words = ("bench", "-m", "ref:swiglu", "--method", "griffin", "-s", "0.5", "--rounds", "1", "--out", out, *TINY)
    code, stdout, err = command(*words, "--json")
    assert code == 0, err
    assert {row["method"] for row in json.loads(stdout)} >= {"dense", "griffin"}
    assert "report:" in err
    assert "tda: few samples in 3 of " in err
    page = (out / "index.html").read_text()
    assert "ref:swiglu" in page
    assert (out / "table.csv").is_file()
    code, _, err = command("report", out, "--out", tmp_path / "again")
    assert code == 0, err
    assert (tmp_path / "again" / "index.html").is_file()


def test_version(command):
    assert command("--version")[1].startswith("tda ")


MISTAKES = {
    "sparsity": (["bench", "--preset", "smoke", "-s", "1.5"], "0 <= s < 1; got 1.5"),
    "sparsity of a method": (["bench", "--method", "griffin:sparsity=7"], "0 <= sparsity < 1; got 7"),
    "spec": (["bench", "--method", "griffin:rows"], "a method is NAME or NAME:OPTION=VALUE,…, each option once"),
    "option of a method": (["eval", "-m", "ref:swiglu", "--method", "tda:cet=1"], "'tda' has no option 'cet'; it has"),
    "value of an option": (
        ["generate", "-m", "ref:swiglu", "--method", "tda:rows=no", "--prompt", "x"],
        "rows must be",
    ),
    "budget": (["bench", "--budget", "soon"], "budget"),
    "method": (["bench", "--preset", "smoke", "--method", "griffon"], "unknown method 'griffon'; known: cats"),
    "model": (["bench", "-m", "ref:nothing"], "unknown reference model 'ref:nothing'; known: ref:"),
    "shape": (["bench", "-m", "shape:2b"], "unknown shape '2b'; known: shape:25m"),
    "folder": (["eval", "-m", "no/such-folder/here"], "cannot load model"),
    "preset": (["bench", "--preset", "huge"], "'huge' is not one of"),
    "dtype": (["eval", "-m", "ref:swiglu", "--dtype", "int4"], "'int4' is not one of"),
    "device": (["eval", "-m", "ref:swiglu", "--device", "warp"], "unknown device 'warp'"),
    "kind of device": (["bench", "--preset", "smoke", "--device", "meta"], "unknown device 'meta'; accepted here: cpu"),
    "number of a device": (["profile", "--device", "cuda:99"], "no device 'cuda:99': torch sees"),
    "device of a calibration": (
        ["calibrate", "-m", "ref:swiglu", "--out", "x.json", "--device", "cuda:99"],
        "no device 'cuda:99': torch sees",
    ),
    "device of a text": (
        ["generate", "-m", "ref:swiglu", "--prompt", "x", "--device", "cuda:99"],
        "no device 'cuda:99': torch sees",
    ),
    "quality of noise": (["eval", "-m", "shape:0.1b"], "random weights"),
    "text of noise": (["generate", "-m", "shape:0.1b", "--prompt", "x"], "random weights"),
    "missing thresholds": (
        ["generate", "-m", "ref:swiglu", "--method", "tda", "--prompt", "x"],
        "method 'tda' needs thresholds",
    ),
    "no thresholds file": (
        ["generate", "-m", "ref:swiglu", "--method", "tda", "--prompt", "x", "--thresholds", "absent.json"],
        "absent.json",
    ),
    "missing text": (["eval", "-m", "ref:swiglu", "--text", "absent.jsonl"], "no text at absent.jsonl"),
    "no results": (["report", "absent"], "no results at absent"),
    "no thresholds needed": (
        ["calibrate", "-m", "ref:swiglu", "--method", "griffin", "--out", "x.json"],
        "needs no thresholds",
    ),
    "gated only": (
        ["calibrate", "-m", "ref:relu", "--method", "cats", "--out", "x.json"],
        "needs a gated FFN",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_clear_message_and_exit_code_2(command, mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, message = MISTAKES[mistake]
    code, _, err = command(*words)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_thresholds_of_another_model_are_refused(command, tmp_path):
    artifact = tmp_path / "tt.json"
    code, _, err = command(
        "calibrate", "-m", "ref:relu", "--method", "tt", "--tokens", "32", "--documents", "2", "--out", artifact
    )
    assert code == 0, err
    code, _, err = command("generate", "-m", "ref:swiglu", "--method", "tt", "--prompt", "x", "--thresholds", artifact)
    assert code == 2
    assert "belong to 'ref:relu'" in err


def test_overlapping_text_is_refused(command, tmp_path):
    text = jsonl(tmp_path / "text.jsonl", [f"{number}. {SENTENCE * 2}" for number in range(4)])
    words = ("-m", "ref:swiglu", "--method", "tt", "--text", text, "--calibration-text", text)
    code, _, err = command("eval", *words, *TINY)
    assert code == 2
    assert "must be disjoint" in err


def test_unwritable_output(command, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    code, _, err = command("bench", "--preset", "smoke", "--out", blocked / "results")
    assert code == 2
    assert str(blocked) in err


BROKEN_SCORE = """
import tda.bench.scoring


def broken(*arguments):
    raise RuntimeError("planted")


tda.bench.scoring.Evaluator.add = broken
"""


def test_a_failed_case_ends_with_exit_code_1(command, tmp_path, monkeypatch):
    plant(tmp_path / "fault", monkeypatch, BROKEN_SCORE)
    words = ("-m", "ref:swiglu", "--method", "griffin", "-s", "0.5", "--rounds", "1", *TINY)
    code, _, err = command("bench", *words, "--out", tmp_path)
    assert code == 1
    assert "planted" in err


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP])
def ending(request):
    """A signal that ends a process unless it does something about it."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def command_that(monkeypatch, work: Callable[[], None]) -> None:
    """Have the command line run this and nothing else."""
    app = typer.Typer()
    app.command()(work)
    monkeypatch.setattr(cli, "app", app)


def test_a_signal_that_ends_is_handled_as_ctrl_c_is(command, monkeypatch, ending):
    def work() -> None:
        try:
            signal.raise_signal(ending)
        except KeyboardInterrupt:
            signal.raise_signal(ending)  # `timeout` sends it to the process, and once more to its group
            typer.echo("kept", err=True)
            raise

    command_that(monkeypatch, work)
    assert command() == (128 + ending, "", f"kept\ntda: ended by {ending.name}\n")
    assert signal.getsignal(ending) is signal.SIG_DFL


def test_a_signal_that_comes_again_later_ends_what_still_cleans_up(command, monkeypatch, ending):
    monkeypatch.setattr(signals, "SAME_S", 0.0)

    def work() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(ending)
        signal.raise_signal(ending)
        typer.echo("hangs", err=True)

    command_that(monkeypatch, work)
    assert command() == (128 + ending, "", f"tda: ended by {ending.name}\n")


def test_a_signal_that_is_ignored_stays_so(command, monkeypatch, ending):
    signal.signal(ending, signal.SIG_IGN)
    command_that(monkeypatch, lambda: signal.raise_signal(ending))
    assert command() == (0, "", "")
    assert signal.getsignal(ending) is signal.SIG_IGN


def test_ctrl_c_and_mistakes_end_as_ever(command, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    def mistaken() -> None:
        raise ValueError("wrong")

    command_that(monkeypatch, interrupted)
    assert command()[0] == 130
    command_that(monkeypatch, mistaken)
    assert command() == (2, "", "tda: wrong\n")


def test_an_interrupted_profile_says_what_stays(command, monkeypatch, tmp_path):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tda.bench.profile.run_profile", interrupted)
    code, _, err = command("profile", "--out", tmp_path)
    assert code == 130
    assert f"cases that are whole stay in {tmp_path}" in err


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_ended_bench_keeps_what_is_done_and_the_same_command_goes_on(tmp_path, how, code):
    words = [sys.executable, "-m", "tda.cli.main", "bench", "-m", "ref:swiglu", "--method", "griffin", "-s", "0.5"]
    words += ["--rounds", "200", "--budget", "none", "--precision", "none", "--out", str(tmp_path), *TINY]
    heard = functools.partial(signal.signal, how, signal.SIG_DFL)  # a background job is deaf to Ctrl-C
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heard)
    results = tmp_path / "results.jsonl"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (results.is_file() and results.read_text().count("\n") > 8):
        time.sleep(0.1)
    process.send_signal(how)
    _, err = process.communicate()
    assert process.returncode == code
    assert not (tmp_path / "running.json").exists()
    assert "The same command goes on" in err
    done = load(tmp_path).records
    words[words.index("200")] = str(max(record.round for record in done) + 2)
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    everything = load(tmp_path).records
    assert everything[: len(done)] == done
    assert len(everything) == len(done) + 2 * 3  # two more rounds of dense, its control and griffin


@pytest.mark.slow
def test_smoke_preset_covers_every_method(tmp_path):
    words = [sys.executable, "-m", "tda.cli.main", "bench", "--preset", "smoke", "--budget", "none"]
    words += ["--precision", "none", "--out", str(tmp_path), "-m", "ref:wide"]  # in no larger size, whatever the cache
    subprocess.run(words, check=True, capture_output=True)
    records = load(tmp_path).records
    assert {record.case.method for record in records} == {name for name, kind in METHODS.items() if kind.in_presets}
    assert all(record.status == "ok" for record in records)
    assert (tmp_path / "index.html").is_file()


def without_bos(folder: Path) -> Path:
    """The model ref:swiglu with a tokenizer that has no BOS."""
    shutil.copytree(WEIGHTS / "swiglu", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_prompt_that_holds_nothing_to_begin_with_is_refused(command, tmp_path):
    code, out, err = command("generate", "-m", without_bos(tmp_path / "model"), "--prompt", "", "--new-tokens", "2")
    assert (code, out) == (2, "")
    assert err.startswith("tda: the prompt is empty, and the tokenizer of ")
    code, _, err = command("generate", "-m", tmp_path / "model", "--prompt", "a", "--new-tokens", "2")
    assert code == 0, err
    code, _, err = command("generate", "-m", "ref:swiglu", "--prompt", "", "--new-tokens", "2")
    assert code == 0, err


def test_a_prompt_that_is_no_text_is_refused(command):
    code, _, err = command("generate", "-m", "ref:swiglu", "--prompt", os.fsdecode(b"caf\xe9"), "--new-tokens", "2")
    assert code == 2
    assert err.startswith("tda: expected Unicode text, got U+DCE9, half of a surrogate pair, as character 4")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers in its config.json is 1000000000; expected a whole number"),
        ({"hidden_size": 10**6}, "parameters need "),
        ({"model_type": "bert"}, "unsupported architecture 'bert'"),
        ({"rope_parameters": "abc"}, "its config.json makes no model: "),
        (None, "its tokenizer cannot be loaded: "),
    ],
)
def test_a_folder_that_holds_no_model_is_one_sentence(command, tmp_path, changes, told):
    model = tmp_path / "model"
    shutil.copytree(WEIGHTS / "swiglu", model)
    if changes is None:
        (model / "tokenizer.json").unlink()
    else:
        fields = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(fields | changes))
    code, out, err = command("eval", "-m", model, *TINY)
    assert (code, out) == (2, "")
    assert err.startswith(f"tda: cannot load model '{model}': ")
    assert told in err


# What was tried by others.


@pytest.mark.parametrize(
    ("finished", "hours", "code", "words"),
    [
        ("2020-01-01T00:00:00+00:00", "36", 1, "no night ended within 36 hours"),
        ("2020-01-01T00:00:00", "inf", 0, "hours ago"),  # one without a time zone
        ("2020-01-01T00:00:00+00:00", "1e12", 0, "hours ago"),
        ("2020-01-01T00:00:00+00:00", "nan", 1, "no night ended within nan hours"),
        ("2999-01-01T00:00:00+00:00", "36", 1, "ended in the future: a clock was wrong"),
        ("yesterday", "36", 1, "the last night ended inf hours ago"),
    ],
)
def test_a_check_of_nights_is_not_blinded(command, tmp_path, finished, hours, code, words):
    (tmp_path / "nights").mkdir()
    commit = {"hash": "a" * 40, "date": "2020-01-01", "subject": "Begin", "status": "measured"}
    told = {"id": "n", "started": "2020-01-01T00:00:00+00:00", "finished": finished, "anchor": "a" * 40}
    (tmp_path / "nights" / "n.json").write_text(json.dumps(told | {"commits": [commit]}))
    found, out, err = command("nightly", "--history", tmp_path, "--check", "--max-age-hours", hours)
    assert (found, words in out + err) == (code, True), out + err


@pytest.mark.parametrize("option", ["--tokens", "--documents"])
@pytest.mark.parametrize("count", ["0", "-5"])
def test_calibrating_on_no_text_ends_at_once(command, tmp_path, option, count):
    code, _, err = command(
        "calibrate", "-m", "ref:swiglu", "--method", "tda", "-s", 0.5, option, count, "--out", tmp_path / "a.json"
    )
    assert code == 2
    assert option in err
    assert "greater than or equal to 1" in " ".join(err.replace("│", " ").split())


def test_what_is_left_out_is_said_once(command, tmp_path):
    code, _, err = command(
        *("calibrate", "-m", "ref:swiglu", "--method", "tda:sparsity=0.5", "-s", 0.7, "--out", tmp_path / "a.json")
    )
    assert code == 2
    assert re.search(r"said twice: .*'tda:sparsity=0\.5' .*--sparsity 0\.7", err)


def test_a_folder_scored_on_built_in_stories_is_warned_of(command, tmp_path):
    folder = shutil.copytree(WEIGHTS / "swiglu", tmp_path / "own")
    few = ("--prompt-tokens", 16, "--new-tokens", 4, "--documents", 2, "--calibration-documents", 2)
    code, _, err = command("eval", "-m", folder, "--method", "tda", "-s", 0.5, *few)
    assert code == 0
    assert "scored and calibrated on built-in stories of another kind" in " ".join(err.split())
    code, _, err = command("eval", "-m", "ref:swiglu", "--method", "tda", "-s", 0.5, *few)
    assert "built-in" not in err
    code, _, err = command("eval", "-m", f"ref:{folder}", "--method", "griffin", "-s", 0.5, *few)
    assert code == 2
    assert "unknown reference model" in err


def test_thresholds_of_other_weights_are_warned_of(command, tmp_path):
    """Those of a base model passed on any fine-tune of it without a word."""
    folder, artifact = shutil.copytree(WEIGHTS / "swiglu", tmp_path / "own"), tmp_path / "a.json"
    few = ("--method", "tda", "-s", 0.5, "--documents", 2)
    code, _, err = command("calibrate", "-m", "ref:swiglu", "--tokens", 32, *few, "--out", artifact)
    assert code == 0, err
    sizes = (
        "--prompt-tokens",
        16,
        "--new-tokens",
        4,
        "--text",
        jsonl(tmp_path / "t.jsonl", [f"{n} {SENTENCE}" for n in range(9)]),
    )
    words = ("eval", *few, *sizes, "--thresholds", artifact, "-m")
    assert "other weights" not in command(*words, "ref:swiglu")[2]
    model = tda.load_model(str(folder))[0]
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1.0
    model.save_pretrained(folder)
    for asked in (
        words,
        ("generate", *few[:4], "--prompt", SENTENCE[:9], "--new-tokens", 2, "--thresholds", artifact, "-m"),
    ):
        code, _, err = command(*asked, folder)
        assert code == 0, err
        assert "were made on other weights" in " ".join(err.split())


def test_a_terminal_without_a_letter_gets_the_result(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tda.cli.main", "methods"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
