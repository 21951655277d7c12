"""What people read or type has no word that the glossary replaces: commands, columns, pages, reports, public names."""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import documentation
import pytest
import typer
from conftest import ROOT

import tda
from tda.cli.main import app
from tda.derived import DERIVED
from tda.history.table import COLUMNS as HISTORY
from tda.records import MEASUREMENTS
from tda.records import Record as AnyRecord
from tda.web.dashboard.formatting import HEADINGS
from tda.web.report import table
from tda.web.report.sections.machines import COLUMNS as MACHINES

PACKAGE = ROOT / "tda"
TEMPLATES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".html", ".js"))
WRITERS = ("web", "nightly", "changes", "history", "cli", "doctor", "bench", "tasks", "sweep")
"""Parts of the package whose strings people read."""
FIXED = ("foreign_load", "left_out", "shape:NAME")
"""Stored or public names that stay: what records, histories and contract.md call things."""
ALSO = (
    r"shows it again",
    r"pointed at",
    r"lies beside",
    r"strives?",
    r"the ruler",
    r"\bplayed",
    r"(?<![\w.)\]/`%:+])\.\d+\b",
)
"""Beside the words of the glossary: phrases of our own, and numbers without their leading zero."""
QUOTED = re.compile(r'"([^"\n]*)"')
CODE = re.compile(r"`+[^`]*`+|\{%.*?%\}|\{#.*?#\}|\{\{.*?\}\}|<style.*?</style>|<script.*?</script>|<[^>]*>", re.DOTALL)


def found_in(text: str) -> list[str]:
    for name in FIXED:
        text = text.replace(name, "")
    words = "|".join(map(re.escape, documentation.replaced_words()))
    return re.findall(rf"\b(?:{words})s?\b|(?:{'|'.join(ALSO)})", " ".join(CODE.sub(" ", text).split()), re.IGNORECASE)


def commands(name: str, command: click.Command) -> Iterator[tuple[str, str]]:
    """Names and help of a command, its options, and the commands below it."""
    options = [(*one.opts, *one.secondary_opts, getattr(one, "help", None) or "") for one in command.params]
    yield name, " ".join([name, command.help or "", *(" ".join(option) for option in options)])
    for below, one in getattr(command, "commands", {}).items():
        yield from commands(f"{name} {below}", one)


def public() -> Iterator[tuple[str, str]]:
    """Names and docstrings of the package's public objects and of their public members."""
    for name in tda.__all__:
        one = getattr(tda, name)
        yield name, f"{name} {inspect.getdoc(one) or ''}"
        if inspect.isclass(one):
            for member, value in vars(one).items():
                if not member.startswith("_"):
                    yield f"{name}.{member}", f"{member} {inspect.getdoc(value) or '' if callable(value) else ''}"


def columns() -> Iterator[tuple[str, str]]:
    for name, kind in {**MEASUREMENTS, **DERIVED}.items():
        yield name, f"{name} {kind.meaning}"
    for column in (*table.COLUMNS, *table.OPTIONAL, *table.LAST, *MACHINES):
        yield column.name, f"{column.name} {column.heading}"
    for name in HISTORY:
        yield name, name
    for name, heading in HEADINGS.items():
        yield name, heading
    for name, field in AnyRecord.model_fields.items():
        yield name, f"{name} {field.description or ''}"


def strings(path: Path) -> str:
    """The sentences of a module: its strings with a space in them, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}
    kept = (one for one in ast.walk(tree) if isinstance(one, ast.Constant) and id(one) not in docs)
    return "\n".join(one.value for one in kept if isinstance(one.value, str) and " " in one.value)


def check(places: Iterable[tuple[str, str]]) -> None:
    held = [(name, found_in(text)) for name, text in places]
    assert len(held) > 10
    assert [(name, words) for name, words in held if words] == []


def test_commands_and_options() -> None:
    check(commands("tda", typer.main.get_command(app)))


def test_columns_and_measurements() -> None:
    check(columns())


def test_public_names() -> None:
    check(public())


def test_pages() -> None:
    texts = ((path, path.read_text(encoding="utf-8")) for path in TEMPLATES)
    check((str(path), " ".join(QUOTED.findall(text)) if path.suffix == ".js" else text) for path, text in texts)


@pytest.mark.parametrize("part", WRITERS)
def test_sentences_of_the_program(part: str) -> None:
    paths = sorted((PACKAGE / part).rglob("*.py"))
    assert [(path.name, words) for path in paths if (words := found_in(strings(path)))] == []


@pytest.mark.parametrize("text", ["a foreign load", "two suspects", "an anchor", "shows it again", "at .5 of it"])
def test_what_is_replaced_is_found(text: str) -> None:
    assert len(found_in(text)) == 1
