"""No module, class or function is longer than a reader holds, and no type name has two meanings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("tda", "benchmarks", "profiles", "reports", "experiments", "tools")
               for path in (ROOT / folder).rglob("*.py"))  # fmt: skip
MODULE, CLASS, FUNCTION = 350, 150, 50
"""Lines at most; what is longer says why in a comment ``# long: REASON`` right above it, a module in its head."""
REASON = re.compile(r"\s*# long: \w")


def too_long(path: Path, root: Path = ROOT) -> Iterator[str]:
    """What in a file is longer than it may be and gives no reason: the file, or ``file:name``."""
    text = path.read_text(encoding="utf-8")
    tree, lines, name = ast.parse(text), text.splitlines(), path.relative_to(root).as_posix()
    head = next((node.lineno for node in tree.body if not isinstance(node, ast.Expr)), 1)
    if len(lines) > MODULE and not any(map(REASON.match, lines[: head - 1])):
        yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            most = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
            if (node.end_lineno or 0) - node.lineno >= most and not REASON.match(lines[first - 2]):
                yield f"{name}:{node.name}"


def type_names(path: Path) -> Iterator[str]:
    """Classes of a file, and what it assigns to names in CamelCase: aliases of types."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = (
            [node.name] if isinstance(node, ast.ClassDef) else [one.id for one in targets if isinstance(one, ast.Name)]
        )
        yield from (
            name for name in names if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name) or isinstance(node, ast.ClassDef)
        )


def doubled() -> set[str]:
    """Type names that more than one file defines."""
    names = [name for path in FILES for name in set(type_names(path))]
    return {name for name in names if names.count(name) > 1}


def test_lengths() -> None:
    assert not {name for path in FILES for name in too_long(path)}


def test_a_type_name_has_one_meaning() -> None:
    assert not doubled()


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
def test_the_rule(text: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(text)
    assert len(list(too_long(tmp_path / "module.py", tmp_path))) == count
