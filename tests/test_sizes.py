"""No module, class or function is longer than a reader holds, and no type name has two meanings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tda", "benchmarks", "profiles", "reports", "experiments", "tools")
MODULE, CLASS, FUNCTION = 350, 150, 50
"""Lines at most; what is longer has a comment ``# long: REASON`` above it, a module in its first lines."""
REASON = re.compile(r"\s*# long: \w+")

EXEMPT_YET: frozenset[str] = frozenset({})
"""What is too long still, without a reason: this list only shrinks."""

TWO_MEANINGS_YET: frozenset[str] = frozenset({})
"""Type names that several modules define still: this list only shrinks."""

FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def too_long(path: Path) -> Iterator[str]:
    """What in a file is longer than it may be and gives no reason: the file, or ``file:name``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    tree, name = ast.parse("\n".join(lines)), path.relative_to(ROOT).as_posix()
    start = next((node.lineno for node in tree.body if not isinstance(node, ast.Expr)), 1)
    if len(lines) > MODULE and not any(REASON.match(line) for line in lines[:start]):
        yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            most = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
            if (node.end_lineno or 0) - node.lineno >= most and not REASON.match(lines[first - 2]):
                yield f"{name}:{node.name}"


def type_names(path: Path) -> Iterator[str]:
    """Classes of a file, and aliases of types: names in CamelCase that are assigned."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", target.id):
                    yield target.id


def doubled() -> set[str]:
    """Type names that more than one file defines."""
    homes: dict[str, set[Path]] = {}
    for path in FILES:
        for name in type_names(path):
            homes.setdefault(name, set()).add(path)
    return {name for name, paths in homes.items() if len(paths) > 1}


def test_lengths() -> None:
    found = {name for path in FILES for name in too_long(path)}
    assert found <= EXEMPT_YET, f"too long, and without a reason: {sorted(found - EXEMPT_YET)}"
    assert found >= EXEMPT_YET, f"short enough by now, so take them off the list: {sorted(EXEMPT_YET - found)}"


def test_a_type_name_has_one_meaning() -> None:
    found = doubled()
    assert found <= TWO_MEANINGS_YET, f"defined in several modules: {sorted(found - TWO_MEANINGS_YET)}"
    assert found >= TWO_MEANINGS_YET, f"one meaning by now, so take them off: {sorted(TWO_MEANINGS_YET - found)}"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x = 1\n" * 351, 1),
        ("# long: one table\n" + "x = 1\n" * 351, 0),
        ("x = 1\n# long: too late\n" + "x = 1\n" * 351, 1),
        ("def f():\n" + "    x = 1\n" * 49, 0),
        ("def f():\n" + "    x = 1\n" * 50, 1),
        ("# long: one table\n@cache\ndef f():\n" + "    x = 1\n" * 50, 0),
        ("# long:\ndef f():\n" + "    x = 1\n" * 50, 1),
        ("class A:\n" + "    x = 1\n" * 150, 1),
    ],
)
def test_the_rule(text: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_sizes.ROOT", tmp_path)
    (tmp_path / "module.py").write_text(text)
    assert len(list(too_long(tmp_path / "module.py"))) == count
