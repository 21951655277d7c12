"""A bench with tasks: scores beside latency in one record, answers that outlive a kill, leaks and failures told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tda.bench import tasks as stage
from tda.bench.run import run_bench
from tda.models import load_model
from tda.records import Record
from tda.results import load
from tda.tasks.outputs import read_items

WORDS = tuple("river lantern keeper stone bridge winter morning letter garden window silver market".split())  # noqa: SIM905
SIZES: dict[str, Any] = {"prompt_tokens": 32, "new_tokens": 4, "rounds": 2, "calibration_documents": 4}
ASKED: dict[str, Any] = {"methods": ["griffin", "tt"], "sparsities": [0.5], "tasks": ["hellaswag", "xsum"], "items": 6}


def sentence(seed: int, words: int = 14) -> str:
    return " ".join(WORDS[(seed * 5 + place * place * (seed + 1)) % len(WORDS)] for place in range(words))


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained model as a user has one: a folder."""
    place = tmp_path_factory.mktemp("model")
    model, tokenizer = load_model("ref:swiglu")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    choices = [
        {
            "query": f"{number}: {sentence(number)}",
            "choices": [sentence(100 + number, 3), "the end"],
            "gold": number % 2,
        }
        for number in range(8)
    ]
    lines(place / "hellaswag.jsonl", choices)
    articles = [{"prompt": f"{number}. {sentence(number)}", "answers": [sentence(number, 4)]} for number in range(8)]
    lines(place / "xsum.jsonl", articles)
    return place


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("text")

    def texts(first: int) -> list[dict[str, Any]]:
        return [{"text": " ".join(f"{word}{first + number}" for word in WORDS * 12)} for number in range(20)]

    return {
        "text": lines(place / "evaluation.jsonl", texts(100)),
        "calibration_text": lines(place / "calibration.jsonl", texts(500)),
    }


def run(out: Path, folder: str, data: Path, text: dict[str, Path], **options: Any) -> list[Record]:
    return run_bench(out, models=[folder], task_data=data, **{**SIZES, **ASKED, **text, "documents": 2, **options})


def journal(out: Path) -> list[str]:
    """Keys of the answers that were kept, in order."""
    files = (out / stage.ANSWERS).glob("*.jsonl")
    return [json.loads(line)["key"] for path in files for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, folder: str, data: Path, text: dict[str, Path]) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run(out, folder, data, text)
    return out


def records(out: Path) -> dict[str, Record]:
    from tda.records import merge

    return {record.case.method: record for record in merge(load(out).records) if record.case.control is None}


def test_one_record_has_scores_likelihood_latency_and_memory(finished: Path) -> None:
    for record in records(finished).values():
        for name in ("task_hellaswag_acc", "task_hellaswag_acc_norm", "task_xsum_rougeL", "task_xsum_output_tokens"):
            assert len(record.samples(name)) == 6, name
            assert record.measurements[name].groups == tuple(range(6))
        for name in ("nll_nats", "decode_ms", "generation_ms", "peak_memory_bytes"):
            assert record.samples(name), name
        assert set(record.tasks) == {"hellaswag", "xsum"}


def test_every_scored_token_is_sparse_and_every_generated_one_but_the_first(finished: Path) -> None:
    for method, record in records(finished).items():
        items, _ = read_items(next((finished / "items" / "xsum").glob(f"{method}*.jsonl")))
        assert [item.tokens for item in items] == list(record.samples("task_xsum_output_tokens"))
        if method == "dense":
            assert [record.tasks[name].sparse_share for name in ("hellaswag", "xsum")] == [0, 0]
            continue
        assert record.tasks["hellaswag"].sparse_share == 1
        assert [item.sparse_tokens for item in items] == [item.tokens - 1 for item in items]


def test_a_second_run_answers_nothing_anew(finished: Path, folder: str, data: Path, text: dict[str, Path]) -> None:
    before, answers = len(load(finished).records), journal(finished)
    run(finished, folder, data, text)
    assert len(load(finished).records) == before
    assert journal(finished) == answers
    assert len(set(answers)) == len(answers)


def test_other_items_are_asked_and_take_the_place(
    finished: Path, folder: str, data: Path, text: dict[str, Path]
) -> None:
    answers = journal(finished)
    run(finished, folder, data, text, tasks=["hellaswag"], items=8)
    added = journal(finished)[len(answers) :]
    assert len(added) == 3 * 2 * 2  # two further items of two choices, in three cases
    assert len(records(finished)["griffin"].samples("task_hellaswag_acc")) == 8
    assert len(records(finished)["griffin"].samples("task_xsum_rougeL")) == 6


@pytest.mark.slow
def test_a_killed_bench_goes_on_with_what_it_has(tmp_path: Path, folder: str, data: Path) -> None:
    words = [
        "eval",
        "-m",
        folder,
        "--task",
        "hellaswag,xsum",
        "--task-data",
        str(data),
        "--method",
        "griffin",
        "-s",
        "0.5",
    ]
    words += ["--prompt-tokens", "16", "--new-tokens", "2", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "tda.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        held = len(journal(tmp_path / "out"))
        while process.poll() is None:
            files = (tmp_path / "out" / stage.ANSWERS).glob("*.jsonl")
            if sum(path.read_bytes().count(b"\n") for path in files) > held:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        output, _ = process.communicate()
        if process.returncode != -signal.SIGKILL:
            break
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (output, done.stderr)
    keys = journal(tmp_path / "out")
    assert len(set(keys)) == len(keys) == 2 * (8 * 2 + 8)
    found = records(tmp_path / "out")
    assert {len(found[name].samples("task_hellaswag_acc")) for name in ("dense", "griffin")} == {8}


def test_a_failing_task_is_told_and_tried_again(
    tmp_path: Path, folder: str, data: Path, text: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own: Callable[..., Any] = stage.run

    def broken(lm: Any, task: Any, **options: Any) -> Any:
        if task.content.name == "xsum" and lm.method.name == "griffin":
            raise RuntimeError("planted")
        return own(lm, task, **options)

    monkeypatch.setattr(stage, "run", broken)
    run(tmp_path, folder, data, text)
    griffin = records(tmp_path)["griffin"]
    assert griffin.tasks["xsum"].failure == "RuntimeError: planted"
    assert griffin.samples("task_hellaswag_acc")
    assert griffin.samples("decode_ms")
    assert not griffin.samples("task_xsum_rougeL")
    monkeypatch.setattr(stage, "run", own)
    run(tmp_path, folder, data, text)
    assert records(tmp_path)["griffin"].tasks["xsum"].failure is None
    assert records(tmp_path)["griffin"].samples("task_xsum_rougeL")


@pytest.mark.parametrize("where", ["question", "answer", "example"])
def test_a_leak_is_refused_before_anything_is_measured(
    tmp_path: Path, folder: str, data: Path, text: dict[str, Path], where: str
) -> None:
    own = tmp_path / "data"
    own.mkdir()
    planted = " ".join(f"{word}501" for word in WORDS * 2)
    item = {"query": "What comes next?", "choices": [sentence(7, 3), "the end"], "gold": 0}
    if where == "question":
        item["query"] = f"Read this: {planted}"
    elif where == "answer":
        item["choices"] = [planted, "the end"]
    else:
        lines(own / "hellaswag.train.jsonl", [{**item, "query": f"An example: {planted}"}])
    lines(own / "hellaswag.jsonl", [item, {**item, "query": "And then?"}])
    with pytest.raises(ValueError, match=r"calibration .*task hellaswag .*item [01]"):
        run(tmp_path / "out", folder, own, text, tasks=["hellaswag"], shots=1 if where == "example" else 0)
    assert not load(tmp_path / "out").records


def test_the_calibration_text_of_saved_thresholds_is_refused(
    tmp_path: Path, folder: str, text: dict[str, Path]
) -> None:
    model, tokenizer = load_model(folder)
    from tda import TT

    texts = [json.loads(line)["text"] for line in text["calibration_text"].read_text().splitlines()]
    fitted = TT(sparsity=0.5).fit(model, texts[:2], tokenizer=tokenizer)
    lines(tmp_path / "xsum.jsonl", [{"prompt": f"Sum up: {texts[1]}", "answers": ["so"]}])
    with pytest.raises(ValueError, match=r"task xsum, item 0: .* calibration"):
        run(tmp_path / "out", folder, tmp_path, {}, tasks=["xsum"], methods=[fitted], sparsities=[], documents=None)


def test_what_a_budget_cuts_is_kept_and_named(
    tmp_path: Path, folder: str, data: Path, text: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def few(self: stage.Tasks) -> None:
        seen.append(1)
        if len(seen) > 6:
            raise stage.OutOfTimeError

    monkeypatch.setattr(stage.Tasks, "advance", few)
    run(tmp_path, folder, data, text)
    assert any("task xsum of" in item.what for item in load(tmp_path).left_out)
    answers = len(journal(tmp_path))
    assert answers > 0
    monkeypatch.undo()
    run(tmp_path, folder, data, text)
    assert len(set(journal(tmp_path))) == len(journal(tmp_path)) > answers
    assert not load(tmp_path).left_out


def test_a_task_that_the_model_has_no_room_for_is_refused_first(tmp_path: Path, folder: str) -> None:
    lines(tmp_path / "coqa.jsonl", [{"prompt": "Who?", "answers": ["me"]}, {"prompt": "Where?", "answers": ["here"]}])
    config = json.loads((Path(folder) / "config.json").read_text())
    small = tmp_path / "small"
    shutil.copytree(folder, small)
    (small / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200}))
    with pytest.raises(ValueError, match=r"task coqa .* 256 new .* 200 positions"):
        run(tmp_path / "out", str(small), tmp_path, {}, tasks=["coqa"], methods=["griffin"], documents=None)
    assert not load(tmp_path / "out").records


# The commands.


def test_eval_of_tasks_prints_scores_beside_latency(command: Any, tmp_path: Path, folder: str, data: Path) -> None:
    out = tmp_path / "out"
    words = ("--task", "hellaswag,xsum", "--task-data", data, "--items", "5", "--method", "griffin", "-s", "0.5")
    sizes = ("--prompt-tokens", "16", "--new-tokens", "2")
    code, printed, err = command("eval", "-m", folder, *words, *sizes, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(printed)
    assert {"dense", "griffin"} <= {row["method"] for row in found["cases"]}
    rows = {(row["method"], row["task"]): row for row in found["tasks"]}
    griffin = rows["griffin 0.5", "hellaswag"]
    assert (griffin["score"], griffin["items"], griffin["sparse tokens"]) == ("acc_norm", "5", "100.0%")
    assert griffin["decode (ms)"].endswith(", cache-resident")
    assert rows["dense", "xsum"]["sparse tokens"] == "0.0%"
    assert "plan: 2 tasks" in err
    page = (out / "index.html").read_text()
    assert "hellaswag: acc_norm" in page
    assert "cache-resident" in page
    assert (out / "items.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "helaswag"], "hellaswag"),
        (["--task", "hellaswag", "--task-data", "nowhere"], "holds no data"),
        (["--task", "hellaswag"], "hellaswag.jsonl"),
        (["--task", "hellaswag", "--over", "length"], "--over"),
        (["--task", "hellaswag", "--items", "0"], "items"),
        (["--task", ""], "a task has a name"),
        (["--items", "3"], "--items: for tasks, and none is named"),
        (["--task", "hellaswag", "--shots", "-1"], "shots"),
    ],
)
def test_mistakes_are_one_sentence(command: Any, tmp_path: Path, folder: str, words: list[str], message: str) -> None:
    code, _, err = command("eval", "-m", folder, *words, "--method", "griffin", "--out", tmp_path / "out")
    assert code == 2, err
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_the_papers_matrix_is_told_as_a_plan(command: Any) -> None:
    code, printed, err = command("bench", "--preset", "paper", "--dry-run", "--json")
    assert code == 0, err
    rows = json.loads(printed)
    assert rows[0]["model"] == "facebook/opt-350m"
    assert len(rows) == 6
    assert all(row["cases"] == 11 for row in rows)
    assert all(row["weights (GB)"] > 0.5 and row["tasks (hours)"] > 0 for row in rows)
    code, printed, err = command("bench", "--preset", "paper", "--dry-run")
    assert code == 0
    assert "tda sweep --preset paper --ray-address ADDRESS" in err


def test_hours_follow_from_items(command: Any) -> None:
    def hours(*words: str) -> float:
        code, printed, err = command(
            "bench", "--preset", "paper", "-m", "facebook/opt-350m", "--task", "xsum", *words, "--dry-run", "--json"
        )
        assert code == 0, err
        found: float = json.loads(printed)[0]["tasks (hours)"]
        return found

    assert hours() == pytest.approx(11_334 / 1_000 * hours("--items", "1000"), rel=0.1)
