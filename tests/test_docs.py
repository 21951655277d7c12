"""The documents: links lead somewhere, commands and code hold, words are those of the glossary."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import click
import documentation
import pytest
import typer
from conftest import ROOT
from documentation import PAGES

from tda.cases import MethodSpec
from tda.cli.main import app
from tda.methods import METHODS, build

COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
LANGUAGES = {"sh", "python", "toml", "json"}
"""Of fenced blocks: each has a test."""
SLOW = {"docs/guide/own-model.md"}
"""Pages whose Python measures."""
each_page = pytest.mark.parametrize("page", PAGES, ids=documentation.name)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in documentation.links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in documentation.anchors(target), link


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    """But for placeholders, as NAME, and what programs write."""
    ours = re.compile(r"(?:tda|tests|benchmarks|reports|profiles|experiments|tools|docs)/[a-z0-9_./-]+")
    named = {span for span in documentation.spans(page) if ours.fullmatch(span) and "/out/" not in span}
    assert [one for one in named if not (ROOT / one).exists()] == []


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / link.partition("#")[0]).resolve() for link in documentation.links(index)}
    assert {page for page in PAGES if page.is_relative_to(index.parent)} - {index} <= named


@each_page
def test_numbers_have_their_leading_zero(page: Path) -> None:
    assert re.findall(r"(?<![\w.)\]/`])\.\d+", documentation.prose(page)) == []


@each_page
def test_words_are_those_of_the_glossary(page: Path) -> None:
    avoided = documentation.replaced_words()
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", documentation.prose(page))
    found = re.findall(rf"\b(?:{'|'.join(map(re.escape, avoided))})s?\b", " ".join(text.split()), re.IGNORECASE)
    assert found == [] or page == documentation.GLOSSARY


def check_tda(words: list[str]) -> None:
    """Options and methods exist; nothing is run."""
    found = COMMANDS[words[1]].make_context(words[1], words[2:]).params
    for spec in found.get("methods") or ():
        build(MethodSpec.parse(spec))


def check_make(words: list[str]) -> None:
    subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def check_pip(words: list[str]) -> None:
    """What is installed is this project, with extras that it has."""
    (extras,) = (word.removeprefix(".").strip("[]") for word in words if word.startswith("."))
    assert set(extras.split(",")) - {""} <= EXTRAS.keys()


def check_python(words: list[str]) -> None:
    """The module exists."""
    assert words[1] == "-m"
    assert (ROOT / words[2].replace(".", "/")).is_dir() or (ROOT / f"{words[2].replace('.', '/')}.py").is_file()


CHECKS = {"tda": check_tda, "make": check_make, "pip": check_pip, "python": check_python}


@each_page
def test_commands_parse(page: Path) -> None:
    assert {block.language for block in documentation.blocks(page)} <= LANGUAGES
    for words in (words for block in documentation.blocks(page, "sh") for words in block.commands):
        CHECKS[words[0]](words)


@each_page
def test_commands_within_sentences_exist(page: Path) -> None:
    for words in (span.split() for span in documentation.spans(page) if span.startswith("tda ")):
        if words[1] in COMMANDS and words[1] != "lm-eval":
            known = {flag for option in COMMANDS[words[1]].params for flag in (*option.opts, *option.secondary_opts)}
            assert {word.partition("=")[0] for word in words[2:] if word.startswith("-")} <= {*known, "--help"}
        else:
            assert words[1] in ("COMMAND", "lm-eval", "--help"), words


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, id=documentation.name(page), marks=pytest.mark.slow if documentation.name(page) in SLOW else ()
        )
        for page in PAGES
        if page.parent != ROOT and documentation.blocks(page, "python")
    ],
)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page in their order; what they register is forgotten."""
    documentation.make_examples(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "griffin" in METHODS  # all of the package's own are registered by now
    monkeypatch.setattr(METHODS, "register", lambda name: lambda kind: kind)
    names: dict[str, object] = {"__name__": "a_page"}
    for block in documentation.blocks(page, "python"):
        exec(block.text, names)


@each_page
def test_data_parse(page: Path) -> None:
    for block in documentation.blocks(page, "toml"):
        tomllib.loads(block.text)
    for line in (line for block in documentation.blocks(page, "json") for line in block.text.splitlines()):
        json.loads(line)
