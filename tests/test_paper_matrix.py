"""The paper's matrix up to the weights: its architectures as folders, its nine tasks in the hub's fields."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizers
from task_rows import ROWS, write_lines

from tda.bench.presets import PAPER_TASKS
from tda.models import load_model

MODELS = {"opt": "opt", "gemma": "llama-2", "llama": "llama-3", "mistral": "llama-2"}
"""The kinds of the paper's models, and a tokenizer like each one's."""
WORDS = "river lantern keeper stone bridge winter morning letter garden window silver market".split()  # noqa: SIM905


def folder(place: Path, kind: str) -> Path:
    """A tiny model of a kind with its tokenizer, as the hub has it."""
    tokenizer = tiny_tokenizers.build(MODELS[kind])
    model = tiny.build(kind, vocab_size=len(tokenizer), max_position_embeddings=512)
    model.save_pretrained(place / kind)
    tokenizer.save_pretrained(place / kind)
    return place / kind


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three items of each task."""
    place = tmp_path_factory.mktemp("data")
    for task in PAPER_TASKS:
        row = json.dumps(ROWS[task].row)
        write_lines(place / f"{task}.jsonl", [json.loads(row.replace("cat", word)) for word in ("cat", "cow", "ox")])
    return place


@pytest.mark.slow
def test_every_step_up_to_the_weights_is_run(command: Any, tmp_path: Path, data: Path) -> None:
    text = write_lines(
        tmp_path / "text.jsonl", [{"text": " ".join(f"{word}{n}" for word in WORDS * 60)} for n in range(8)]
    )
    words = ["--preset", "paper", "--device", "cpu", "--dtype", "float32", "--task-data", data, "-s", "0.5"]
    words += ["--prompt-tokens", "32", "--new-tokens", "4", "--rounds", "5", "--calibration-documents", "4"]
    outs = []
    for kind in MODELS:
        outs.append(tmp_path / "out" / kind)
        model = folder(tmp_path, kind)
        code, _, err = command(
            "bench", *words, "--calibration-text", text, "-m", model, "--out", outs[-1], "--precision", "none"
        )
        assert code == 0, err
        assert "plan: 9 tasks" in err
    code, _, err = command("report", *outs, "--out", tmp_path / "page")
    assert code == 0, err
    with (tmp_path / "page" / "paper.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows} == {*PAPER_TASKS, "average"}
    assert {Path(row["model"]).name for row in rows} == set(MODELS)
    scored = [row for row in rows if row["task"] != "average"]
    assert len(scored) == len(MODELS) * len(PAPER_TASKS) * 4
    assert {row["method"] for row in scored} == {"dense", "tt 0.5", "griffin 0.5", "tda 0.5"}
    assert all(0 <= float(row["value"]) <= 1 and int(row["items"]) >= 1 for row in scored), scored
    html = (tmp_path / "page" / "index.html").read_text()
    assert "18–25% lower" in html
    assert "not yet run" not in html


@pytest.mark.parametrize("kind", MODELS)
def test_the_folders_load_as_they_are(tmp_path: Path, kind: str) -> None:
    model, tokenizer = load_model(str(folder(tmp_path, kind)))
    assert model.config.model_type == kind
    assert len(tokenizer) <= model.config.vocab_size
