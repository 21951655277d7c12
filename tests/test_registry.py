"""Registries: one file is one entry, found on first use."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tda
import tda.methods
from tda.families import FAMILIES
from tda.methods import METHODS, method, takes_sparsity
from tda.metrics import METRICS
from tda.quantizers import QUANTIZERS
from tda.registry import Registry
from tda.web.dashboard.pages import PAGES
from tda.web.report.sections import SECTIONS


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[str]]:
    """A package of two entries, found by its own registry."""
    package = tmp_path / "zoo_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from tda.registry import Registry\nZOO = Registry('animal', 'zoo_of_tests', fits=lambda entry: entry != 42)\n"
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


def plug_in(folder: Path, name: str, code: str, version: str = "1.2") -> None:
    """An installed distribution with one module, which is a plug-in of the zoo."""
    (folder / f"{name}_of_tests.py").write_text(code)
    facts = folder / f"{name}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (facts / "entry_points.txt").write_text(f"[zoo_of_tests]\n{name} = {name}_of_tests\n")
    importlib.invalidate_caches()


@pytest.fixture
def modules() -> Iterator[None]:
    """Modules that a test imports are forgotten."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


class Cow: ...


@pytest.mark.usefixtures("modules")
class TestPlugIns:
    def test_an_entry_point_adds_an_entry(self, zoo: Registry[Any], tmp_path: Path) -> None:
        code = "from zoo_of_tests import ZOO\nassert 'ape' in ZOO\n@ZOO.register('cow')\nclass Cow: ...\n"
        plug_in(tmp_path, "farm", code)
        assert list(zoo) == ["ape", "lion", "cow"]
        assert zoo.plug_in(zoo["cow"]) == "farm 1.2"
        assert zoo.plug_in(Cow) is None

    def test_one_that_is_imported_first_is_known_too(self, zoo: Registry[Any], tmp_path: Path) -> None:
        """As where a worker is handed a method of it."""
        plug_in(tmp_path, "farm", "from zoo_of_tests import ZOO\n@ZOO.register('cow')\nclass Cow: ...\n")
        importlib.import_module("farm_of_tests")
        assert set(zoo) == {"ape", "lion", "cow"}
        assert zoo.plug_in(zoo["cow"]) == "farm 1.2"

    @pytest.mark.parametrize(
        ("code", "why"),
        [
            ("import no_such_module_of_tests", "ModuleNotFoundError: No module named 'no_such_module_of_tests'"),
            (
                "from zoo_of_tests import ZOO\nZOO.register('ape')('mine')",
                "ValueError: animal 'ape' is registered twice",
            ),
            ("from zoo_of_tests import ZOO\nZOO.register('bat')(42)", "TypeError: 42 is no animal"),
            ("import sys\nsys.exit('bye')", "SystemExit: bye"),
        ],
    )
    def test_one_that_fails_is_left_out_with_one_warning(
        self, zoo: Registry[Any], tmp_path: Path, code: str, why: str
    ) -> None:
        plug_in(tmp_path, "farm", f"from zoo_of_tests import ZOO\nZOO.register('cow')('COW')\n{code}\n")
        plug_in(tmp_path, "pond", "from zoo_of_tests import ZOO\nZOO.register('duck')('DUCK')\n")
        with pytest.warns(UserWarning, match="plug-in") as said:
            assert dict(zoo) == {"ape": "APE", "lion": "LION", "duck": "DUCK"}
        assert [str(one.message) for one in said] == [f"plug-in farm 1.2 is skipped: {why}"]

    def test_a_malformed_entry_point_is_left_out(self, zoo: Registry[Any], tmp_path: Path) -> None:
        plug_in(tmp_path, "farm", "")
        (tmp_path / "farm-1.2.dist-info" / "entry_points.txt").write_text("[zoo_of_tests]\nfarm = not a module!!\n")
        with pytest.warns(UserWarning, match=r"farm 1\.2 is skipped"):
            assert set(zoo) == {"ape", "lion"}
        assert zoo.plug_in(Cow) is None


@pytest.mark.parametrize("entry", [42, int, tda.PromptMethod, tda.Griffin(sparsity=0.5)])
def test_what_is_no_method_is_refused(entry: Any) -> None:
    with pytest.raises(TypeError, match="method"):
        METHODS.register("odd")(entry)
    assert "odd" not in METHODS


@pytest.mark.parametrize("registry", [FAMILIES, METRICS, QUANTIZERS, PAGES, SECTIONS], ids=lambda one: one.kind)
def test_a_number_is_no_entry(registry: Registry[Any]) -> None:
    with pytest.raises(TypeError, match="42"):
        registry.register("odd")(42)


def test_a_metric_may_not_take_the_name_of_another_measurement() -> None:
    kind = tda.MeasurementKind(unit="nats/token", better="lower", meaning="entropy of the next token")
    with pytest.raises(ValueError, match=r"'decode_ms' .*another kind"):
        tda.metric("decode_ms", kind)(lambda method, dense: method.nll)
    assert "decode_ms" not in METRICS


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
    with pytest.raises(ValueError, match=r"'griffin' .*'density'; .*sparsity, quantization, prior_tokens, rows"):
        method("griffin", 0.5, density=0.5)
    with pytest.raises(ValueError, match="0 <= sparsity < 1"):
        method("griffin", 1.5)
    with pytest.raises(AttributeError, match=r"'tda\.methods' .*'Griffon'"):
        tda.methods.Griffon  # noqa: B018


def test_methods_are_frozen() -> None:
    for name in METHODS:
        with pytest.raises(AttributeError):
            method(name).sparsity = 0.1
