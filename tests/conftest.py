"""Fixtures of all tests. Nothing here opens a connection, and a GPU is used by tests marked `gpu` only."""

import functools
import gc
import importlib
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait leave the core to others: beside other work tests take a fraction of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker per core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny
import torch

from tda import limits
from tda.device import machine
from tda.kernels.native import build, isa, library

build.TIMEOUT_S = 900  # a compiler beside other work takes its time

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which only tests of its kernels do.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    # Bandwidth is measured beside every timed case, and its value looked at nowhere: a buffer of 16 MiB serves.
    limits.STREAM_BYTES = 1 << 24
    limits.machine = lambda device: machine(device).model_copy(update={"cache_bytes": None})  # type: ignore[assignment]

# What a user, a terminal or a git hook may have set, and a test's expectation must not depend on.
for _name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "PY_COLORS"):
    os.environ.pop(_name, None)
for _name in [name for name in os.environ if name.startswith("GIT_") and not name.startswith("GIT_CONFIG")]:
    del os.environ[_name]
for _name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of a make around the tests: none of its words are for theirs
    os.environ.pop(_name, None)
_OWN_GIT = {"commit.gpgsign": "false", "core.hooksPath": os.devnull, "core.autocrlf": "false"}
os.environ["GIT_CONFIG_COUNT"] = str(len(_OWN_GIT))
for _place, (_key, _value) in enumerate(_OWN_GIT.items()):
    os.environ |= {f"GIT_CONFIG_KEY_{_place}": _key, f"GIT_CONFIG_VALUE_{_place}": _value}
os.umask(0o022)

# `make gpu-check` runs where nothing is installed for it: its tests need neither of the two packages.
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    # Every run draws the same examples, so that a failure in CI is a failure at the desk. Nor is an example refused for
    # what the machine does meanwhile. `make test-all` draws many, by --hypothesis-profile.
    settings.register_profile(
        "few",
        deadline=None,
        max_examples=10,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile("many", settings.get_profile("few"), max_examples=50)
    settings.load_profile("few")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "what pytest-timeout would read")


ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected lives to the end, so the garbage collector skips it: a bench calls it often."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; this machine has none")
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords hold the names of folders too
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learnt of a played machine stays out of the user's cache, and a home folder need not be writable."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache / "triton"))


@pytest.fixture
def kernels_in_c() -> None:
    """The test skips where the kernels in C cannot run."""
    if library.problem() is not None:
        pytest.skip(f"no kernels in C here: {library.problem()}")


@pytest.fixture(scope="session")
def compiled_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., library.Kernels]:
    """The kernels for an instruction set and with more flags, each compiled once; skips where they cannot run here."""
    cache, load = str(tmp_path_factory.getbasetemp() / "cache"), library.library.__wrapped__

    @functools.cache
    def loaded(name: str, *flags: str) -> library.Kernels:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", cache)
            patch.setenv(isa.VARIABLE, name)
            patch.setattr(build, "FLAGS", (*build.FLAGS, *flags))
            return load()

    def wanted(name: str, *flags: str) -> library.Kernels:
        try:
            return loaded(name, *flags)
        except (build.BuildError, ValueError) as error:
            pytest.skip(str(error))

    return wanted


X86 = platform.machine() == "x86_64"


@pytest.fixture(scope="module", params=[one.name for one in isa.X86] if X86 else [isa.NATIVE])
def each_isa(request: pytest.FixtureRequest, compiled_for: Callable[..., library.Kernels]) -> Iterator[None]:
    """The kernels in C run as compiled for each instruction set that this processor has, not only for the widest."""
    kernels = compiled_for(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "library", lambda: kernels)
        yield


@pytest.fixture(params=tiny.names())
def any_model(request: pytest.FixtureRequest) -> Any:
    """A tiny model of each family, shared by all tests: leave it as it was."""
    return tiny.model(request.param)


@pytest.fixture
def llama() -> Any:
    """A tiny gated model with biases, shared by all tests: leave it as it was."""
    return tiny.model("llama")


@pytest.fixture
def opt() -> Any:
    """A tiny plain model with biases and ReLU, shared by all tests: leave it as it was."""
    return tiny.model("opt")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command of the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        cli = importlib.import_module("tda.cli.main")
        monkeypatch.setattr("sys.argv", ["tda", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data that the project does not ship; the test skips where it is absent."""
    folder = Path(os.environ.get("TDA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real data of these tests is not here: set TDA_SHARED_DATA to its folder")
    return folder
