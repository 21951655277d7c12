"""``tda lm-eval``: lm-eval's own command line with the model tda, and what cannot be run ends as a sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_tokenizers

import tda
from tda import tasks

pytest.importorskip("lm_eval")

TASK = """
task: pets
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
ITEMS = [
    {"question": f"Once upon a time in 19{number}, the quick brown", "choices": ["fox", "lazy dog"], "gold": number % 2}
    for number in range(6)
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    place, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizers.build("llama-3")
    tiny.build("llama", vocab_size=len(tokenizer)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder with a task and its data."""
    data = tmp_path / "pets.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (tmp_path / "pets.yaml").write_text(TASK.format(data=data))
    return tmp_path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lm_eval(tmp_path: Path) -> Run:
    """Run the command in a process of its own: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(tda.__file__).parents[1]), "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-m", "tda.cli.main", "lm-eval", *map(str, words)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    return run


@pytest.mark.slow
def test_a_local_task_runs_under_a_method(lm_eval: Run, pets: Path, model: str) -> None:
    arguments = f"pretrained={model},method=griffin,sparsity=0.25,protocol=decode"
    words = ("--model", "tda", "--model_args", arguments, "--tasks", "pets", "--include_path", pets)
    cached = (*words, "--use_cache", pets / "cache", "--batch_size", "4", "--output_path")
    tokens = {}
    for folder in ("first", "second"):  # the second one finds every answer in the cache
        code, out, err = lm_eval(*cached, pets / folder)
        assert code == 0, err
        assert "|pets " in out
        (told,) = [line for line in out.splitlines() if line.startswith("pets: ")]
        (results,) = (pets / folder).rglob("results_*.json")
        config = json.loads(results.read_text())["config"]
        share = config["sparse_share"]["pets"]
        tokens[folder] = told
        assert f"{100 * share:.4g}% of " in told
        assert told.endswith("scored tokens were computed sparsely under griffin 0.25, protocol decode")
        assert 0 < share < 1
        assert (config["method"], config["protocol"]) == ("griffin:sparsity=0.25,rows=per_row", "decode")
        assert config["achieved_sparsity"] == pytest.approx([13 / 53] * 2, abs=1e-5)
    assert tokens["first"] == tokens["second"]
    code, _, err = lm_eval(*(str(word).replace("griffin", "magnitude") for word in cached), pets / "third")
    assert code == 2
    assert "give another --use_cache" in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--tasks", "nosuch"], "Tasks not found: nosuch"),
        (["--model_args", "pretrained={model},method=grifin"], "unknown method 'grifin'"),
        (["--model_args", "pretrained={model},method=griffin,spars=1"], "model tda knows no 'spars'"),
        (["--model_args", "pretrained={model},method=tt"], "got neither"),
        (["--model_args", "method=griffin"], "model tda needs a model"),
        (["--model_args", "pretrained={pets}/nosuch"], "nosuch"),
        (["--model_args", "pretrained={model},method=tt,thresholds={pets}/nosuch"], "there is no {pets}/nosuch"),
        (["--include_path", "{pets}/broken"], "lm-eval: DatasetGenerationError"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(wrong: list[str], told: str, lm_eval: Run, pets: Path, model: str) -> None:
    broken = pets / "broken"
    broken.mkdir()
    (broken / "pets.jsonl").write_text('{"question": "a"\n')
    (broken / "pets.yaml").write_text(TASK.format(data=broken / "pets.jsonl"))
    (broken / "pets.yaml").rename(pets / "pets.yaml") if "broken" in wrong[-1] else None
    words = ["--model", "tda", "--tasks", "pets", "--model_args", "pretrained={model}", "--include_path", "{pets}"]
    words[words.index(wrong[0]) + 1] = wrong[1] if "broken" not in wrong[-1] else "{pets}"
    code, _, err = lm_eval(*(word.format(model=model, pets=pets) for word in words))
    assert code == 2, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("tda: ")
    assert told.format(pets=pets) in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["ls", "--help"], ["run", "--help"]])
def test_help_is_lm_evals_own(words: list[str], lm_eval: Run) -> None:
    code, out, _ = lm_eval(*words)
    assert code == 0
    assert out.startswith("usage: lm-eval")


def test_without_the_extra_it_is_a_sentence(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    code, _, err = command("lm-eval", "--help")
    assert code == 2
    assert err.startswith("tda: tasks need the extra 'eval': pip install 'tda-bench[eval]'")
    assert len(err.splitlines()) == 1


def test_generated_tokens_have_no_protocol(command: Run) -> None:
    from tda.cli.lm_eval import shares
    from tda.tasks.model import TDALM

    tokenizer = tiny_tokenizers.build("llama-3")
    lm = TDALM.of(tiny.build("llama", vocab_size=len(tokenizer)), tokenizer, tda.Griffin(sparsity=0.5))
    lm.tally.by_request = {("read", 0, 0): (1000, 1000), ("written", 0, 0): (4, 3), ("written", 1, 0): (4, 3)}
    lm.tally.generated = {"written"}
    assert shares(lm) == [
        "read: 100% of 1,000 scored tokens were computed sparsely under griffin 0.5, protocol all_sparse",
        "written: 75% of 8 generated tokens were computed sparsely under griffin 0.5",
    ]
