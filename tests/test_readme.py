"""README: short, and every command and block of code in it is executed.

Nothing is substituted: the tests make the model and the text that the examples name (`path/to/model`, `my.jsonl`).
Options that make a command short are added behind its own. What cannot run inside a test is checked as in all documents
(`test_docs.py`): `make` by a dry run, `pip install` by the extras that it names.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import documentation
import pytest
from conftest import ROOT
from documentation import CONTRIBUTING, README

SMALL = ("--prompt-tokens", "16", "--new-tokens", "4", "--rounds", "1")
OF_A_MODEL = {"models": (), "bench": (*SMALL, "--documents", "2", "--calibration-documents", "2"), "report": ()}
OF_COMMITS = {
    "compare": (*SMALL, "--blocks", "4"),
    "bisect": (*SMALL, "--blocks", "4"),
    "nightly": ("--config", "small.toml"),
}
NIGHT = """
blocks = 4
confirm_blocks = 4
[[grids]]
name = "speed"
[grids.options]
models = ["shape:25m"]
methods = ["griffin:sparsity=0.5"]
prompt_tokens = 16
new_tokens = 4
rounds = 1
"""
COMMANDS = [words for block in documentation.blocks(README, "sh") for words in block.commands]
PYTHON = [block.text for block in documentation.blocks(README, "python")]


def of_tda(kind: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """Commands of a kind, made short."""
    return [[*words[1:], *kind[words[1]]] for words in COMMANDS if words[0] == "tda" and words[1] in kind]


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documentation.make_examples(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_pages_are_short() -> None:
    assert len(README.read_text().splitlines()) <= 120
    assert len(CONTRIBUTING.read_text().splitlines()) <= 60


def test_every_block_and_command_is_executed() -> None:
    assert {block.language for block in documentation.blocks(README)} == {"sh", "python"}
    run = [words for words in COMMANDS if words[0] not in ("make", "pip")]
    assert len(run) == len(of_tda(OF_A_MODEL)) + len(of_tda(OF_COMMITS))


@pytest.mark.usefixtures("examples")
def test_python_attaches_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    exec(PYTHON[0], {})
    assert "[0.5, 0.5, 0.5, 0.5]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("examples")
def test_python_measures() -> None:
    names: dict[str, object] = {}
    for text in PYTHON:
        exec(text, names)
    assert Path("results/python/results.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("examples")
def test_commands_measure_a_model(command: Callable[..., tuple[int, str, str]]) -> None:
    for words in of_tda(OF_A_MODEL):
        code, _, err = command(*words)
        assert code == 0, err
    assert Path("results/page/index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("words", of_tda(OF_COMMITS), ids=lambda words: words[0])
def test_commands_compare_commits(
    words: list[str], command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a clone with two more commits, which change nothing: what is noise may well be seen in 4 blocks."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    monkeypatch.chdir(tmp_path / "clone")
    Path("small.toml").write_text(NIGHT)
    author = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for number in ("1", "2"):
        Path("README.md").write_text(number)
        subprocess.run(["git", *author, "commit", "--quiet", "-am", number], check=True)
    code, out, err = command(*words)
    assert code in (0, 1, 3), err
    assert out
