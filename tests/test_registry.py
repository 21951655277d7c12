"""Registries: one file is one entry, found on first use."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tda.methods
from tda.families import FAMILIES
from tda.methods import METHODS, method, takes_sparsity
from tda.metrics import METRICS
from tda.registry import Registry


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[str]]:
    """A package of two entries, found by its own registry."""
    package = tmp_path / "zoo_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from tda.registry import Registry\nZOO = Registry('animal', 'zoo_of_tests')\n"
    )
    for name in ("lion", "ape"):
        (package / f"{name}.py").write_text(f"from zoo_of_tests import ZOO\nZOO.register('{name}')('{name.upper()}')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import zoo_of_tests

    yield zoo_of_tests.ZOO
    for name in [name for name in sys.modules if name.startswith("zoo_of_tests")]:
        del sys.modules[name]


def test_entries_are_found_in_order_of_their_files(zoo: Registry[str]) -> None:
    assert dict(zoo) == {"ape": "APE", "lion": "LION"}
    assert list(zoo) == ["ape", "lion"]
    assert len(zoo) == 2
    assert "ape" in zoo
    assert "cow" not in zoo


def test_nothing_is_imported_before_the_first_use(zoo: Registry[str]) -> None:
    assert "zoo_of_tests.lion" not in sys.modules
    assert zoo["ape"] == "APE"
    assert "zoo_of_tests.lion" in sys.modules


def test_unknown_names_list_the_known_ones(zoo: Registry[str]) -> None:
    with pytest.raises(ValueError, match="unknown animal 'cow'; known: ape, lion"):
        zoo["cow"]


def test_a_name_is_taken_once(zoo: Registry[str]) -> None:
    list(zoo)
    with pytest.raises(ValueError, match="animal 'ape' is registered twice"):
        zoo.register("ape")("other")


def test_every_file_of_a_registry_package_registers_something() -> None:
    for registry in (METHODS, FAMILIES, METRICS):
        home = importlib.import_module(registry.package)
        assert len(registry) >= len(list(pkgutil.iter_modules(home.__path__)))


def test_methods_by_name() -> None:
    assert set(METHODS) >= {
        "dense",
        "random",
        "magnitude",
        "static_mean",
        "tt",
        "griffin",
        "glass",
        "tda",
        "cats",
        "oracle",
        "int8",
    }
    for name, kind in METHODS.items():
        given = {"sparsity": 0.25} if takes_sparsity(name) else {}
        made = method(name, 0.25)
        assert type(made) is kind
        assert made.name == name
        assert made == kind(**given)
        assert hash(made) == hash(kind(**given))
        assert kind.__doc__
        assert "sparsity" not in made.options
    assert method("tt").sparsity == 0.5
    assert method("griffin", rows="shared").options == {"rows": "shared"}
    assert method("griffin", prior_tokens=0).options == {"rows": "per_row"}
    assert method("griffin", prior_tokens=32).options == {"rows": "per_row", "prior_tokens": 32}


def test_wrong_methods_by_name() -> None:
    with pytest.raises(ValueError, match="unknown method 'griffon'"):
        method("griffon", 0.5)
    with pytest.raises(
        ValueError, match="method 'griffin' has no option 'density'; it has sparsity, quantization, prior_tokens, rows"
    ):
        method("griffin", 0.5, density=0.5)
    with pytest.raises(ValueError, match="0 <= sparsity < 1"):
        method("griffin", 1.5)
    with pytest.raises(AttributeError, match=r"module 'tda\.methods' has no attribute 'Griffon'"):
        tda.methods.Griffon  # noqa: B018


def test_methods_are_frozen() -> None:
    for name in METHODS:
        with pytest.raises(AttributeError):
            method(name).sparsity = 0.1
