"""A test asks what a user can ask: no private name of the package or of its benchmarks stands in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEFINED = re.compile(r"(?:\bdef |\bclass |\bself\.)(_[A-Za-z]\w*)|^[ ]*(_[A-Za-z]\w*) *[:=]", re.MULTILINE)
"""A name that a file gives to a function, a class, an attribute or a variable."""
PATCHING = ("setattr", "getattr", "hasattr", "delattr", "object")
"""What takes an attribute's name as its second argument; the last is that of `mock.patch`."""
OTHERS = {
    "_loglikelihood_tokens": "lm-eval's name for scoring token ids, which models of it define",
    "_name": "ctypes' name for the path of a library",
}
"""Names that the package defines too, and that a test has from elsewhere."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of what a test takes from other objects, by attribute, import, keyword or string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_own(node):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (
                (node.lineno, part) for name in node.names for part in (name.name, *str(node.module).split("."))
            )
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, str(word.arg)) for word in node.keywords)
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in PATCHING and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                yield node.lineno, str(node.args[1].value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            parts = node.value.split(".")
            yield from ((node.lineno, part) for part in parts if all(map(str.isidentifier, parts)))


def private(source: str, theirs: set[str]) -> list[tuple[int, str]]:
    if theirs.isdisjoint(re.findall(r"\b_\w+", source)):
        return []
    return [(line, name) for line, name in used(ast.parse(source)) if is_private(name) and name in theirs]


@pytest.fixture(scope="module")
def theirs() -> set[str]:
    """Private names of the package and the benchmarks."""
    files = [path for folder in ("tda", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for found in DEFINED.findall(path.read_text()) for name in found if name}


def test_tests_use_no_private_name(theirs: set[str]) -> None:
    found = [
        (path.name, *one)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for one in private(path.read_text(), theirs)
    ]
    assert [one for one in found if one[-1] not in OTHERS] == []
    assert {name for *_, name in found} == OTHERS.keys(), "each exception is needed"


@pytest.mark.parametrize(
    "line",
    [
        "module._made()",
        "from tda.part import _made",
        "Part(_made=1)",
        "monkeypatch.setattr(Part, '_made', None)",
        "mock.patch.object(Part, '_made')",
        "monkeypatch.setattr('tda.part._made', None)",
    ],
)
def test_each_way_to_a_private_name_is_seen(line: str) -> None:
    assert private(line, {"_made"}) == [(1, "_made")]
    assert private(line.replace("_made", "made"), {"_made"}) == []
    assert private("self._made = self._made()", {"_made"}) == []
