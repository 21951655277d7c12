"""A file imports only lower floors, and `import tda` does nothing."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tda

PACKAGE = Path(tda.__file__).parent
# Part after part may import the ones before it; a floor is what the floors above it may rely on.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_version", "cache", "names", "cases", "config", "process", "schedule", "git", "interrupts", "registry", "worth"),
    ("logs", "records", "results", "statistics", "digits", "derived", "thresholds", "spans"),
    (
        "as_built",
        "quantizers",
        "view",
        "selection",
        "finite",
        "fitting",
        "contracts",
        "cores",
        "telemetry",
        "processor",
        "device",
        "limits",
    ),
    ("kernels", "prompt_statistics", "families", "methods", "reference", "models"),
    ("engine",),
    ("calibration", "metrics", "quality", "tasks", "profiler"),
    ("bench",),
    ("sweep",),
    ("history", "changes", "nightly", "doctor", "web", "cli"),
)
ORDER = {part: place for place, part in enumerate(part for floor in FLOORS for part in floor)}
EXTERNAL_FROM_FLOOR = {
    "torch": 2, "transformers": 3, "rich": 5, "ray": 7, "typer": 8, "matplotlib": 8, "pandas": 8, "jinja2": 8,
}  # fmt: skip


def floor_of(part: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module but the façade."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").rstrip(".")
        if name:
            yield name, path


MODULES = list(modules())
each_module = pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of its code, under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not follow"
            if node.module == "tda":
                yield from (f"tda.{alias.name}" for alias in node.names)
            elif node.module is not None:
                yield node.module


def parts_imported(path: Path) -> set[str]:
    """First-level parts of the package that a file imports; `__version__` is no part."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("tda.")} - {"__version__"}


@each_module
def test_no_import_goes_up(name: str, path: Path) -> None:
    own = name.split(".")[0]
    assert own in ORDER, f"tda.{own} is on no floor yet: say in FLOORS where it stands"
    for part in parts_imported(path):
        assert part in ORDER, f"tda.{part}, which tda.{name} imports, is on no floor yet"
        assert part == own or ORDER[part] < ORDER[own], f"tda.{name} imports tda.{part}, which stands above it"
    assert "tda" not in set(imported(path)), f"tda.{name} imports the façade"


@each_module
def test_heavy_libraries_stay_up(name: str, path: Path) -> None:
    """Records, results and statistics are read where there is no torch; charts are drawn at the top only."""
    for library, floor in EXTERNAL_FROM_FLOOR.items():
        if any(found.split(".")[0] == library for found in imported(path)):
            assert floor_of(name.split(".")[0]) >= floor, f"tda.{name} imports {library}"


def test_all_parts_exist() -> None:
    """A part that is gone must not stay in FLOORS."""
    assert set(ORDER) == {name.split(".")[0] for name, _ in MODULES}


def loaded_after(code: str) -> set[str]:
    """First-level names of the modules in memory after some code in a fresh interpreter."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_import_loads_nothing_heavy() -> None:
    loaded = loaded_after("import tda; dir(tda); tda.__version__")
    assert "tda" in loaded
    heavy = {"torch", "transformers", "numpy", "pandas", "matplotlib", "pydantic", "typer", "rich", "scipy", "pynvml"}
    assert not heavy & loaded


def test_results_are_read_without_torch() -> None:
    loaded = loaded_after("import tda.results, tda.statistics, tda.thresholds")
    assert not {"torch", "transformers"} & loaded


def test_methods_are_listed_without_transformers() -> None:
    assert "transformers" not in loaded_after("import tda; tda.Griffin(sparsity=.5); tda.kernels.backend()")


def test_every_public_name_resolves() -> None:
    for name in tda.__all__:
        assert getattr(tda, name) is not None
        assert name in dir(tda)
    with pytest.raises(AttributeError, match=r"'tda' .*'Griffon'.* CATS"):
        tda.Griffon  # noqa: B018
