"""Building the C library: broken compilers, folders that cannot be used, files cut short, and what runs instead."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch

import tda
from tda.kernels import native
from tda.kernels.native import build as building
from tda.kernels.native import library
from tda.kernels.native.build import BuildError, build

ROOT = Path(__file__).resolve().parent.parent
works = pytest.mark.usefixtures("kernels_in_c")
LOAD = "import torch, tda; print(tda.kernels.backend().name)"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, in which nothing was built yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tda" / "kernels"


@pytest.fixture
def first_use(home: Path) -> Iterator[Path]:
    """The library as in a process that has not asked for it yet; afterwards it is asked for anew."""
    _forget()
    yield home
    _forget()


def _forget() -> None:
    library.library.cache_clear()
    library.problem.cache_clear()


def elsewhere(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A library that the compiler made."""
    path = tmp_path_factory.mktemp("built") / "kernels.so"
    building._compile(building.compiler(), path)
    return path.read_bytes()


@pytest.fixture
def compiled(built: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is compiled, by a compiler that takes no time."""
    made: list[Path] = []

    def write(command: list[str], path: Path) -> None:
        made.append(path)
        path.write_bytes(built)

    monkeypatch.setattr(building, "_compile", write)
    return made


@works
class TestCache:
    def test_built_once_and_kept(self, home: Path, compiled: list[Path]) -> None:
        path = build()
        assert path.parent == home
        assert home.stat().st_mode & 0o077 == 0
        assert [file.name for file in home.iterdir()] == [path.name]
        assert build() == path
        assert compiled == [path]

    def test_other_flags_are_another_file(
        self, home: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = build()
        monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-DOTHER"))
        assert build() != first

    @pytest.mark.parametrize("kept", [0, 10, 5000, -33, -1])
    def test_a_file_cut_short_is_built_again(self, home: Path, compiled: list[Path], built: bytes, kept: int) -> None:
        path = build()
        path.write_bytes(built[:kept])
        assert build() == path
        assert compiled == [path, path]
        assert path.read_bytes() == built

    def test_a_process_that_finds_a_file_cut_short(self, home: Path, built: bytes) -> None:
        """Loading one can end a process with SIGBUS, so that a compiler must be asked first."""
        home.mkdir(parents=True, mode=0o700)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(building, "_compile", lambda command, path: path.write_bytes(built[: len(built) // 2]))
            path = build()
        done = elsewhere(LOAD)
        assert (done.stdout, done.stderr) == ("c\n", "")
        assert path.stat().st_size == len(built)

    def test_a_folder_that_others_may_write_to_is_not_used(self, home: Path, compiled: list[Path]) -> None:
        home.mkdir(parents=True)
        home.chmod(0o777)
        path = build()
        assert home not in path.parents
        assert path.is_file()
        assert not list(home.iterdir())

    def test_a_folder_that_cannot_be_made(
        self, tmp_path: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a read-only file system; the superuser, too, is refused a folder below a file."""
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        path = build()
        assert path.is_file()
        assert tmp_path not in path.parents

    def test_a_user_without_a_home(self, compiled: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
        assert build().is_file()

    def test_two_processes_at_once(self, home: Path) -> None:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(elsewhere, [LOAD] * 2))
        assert [(run.stdout, run.stderr) for run in done] == [("c\n", "")] * 2
        assert len(list(home.iterdir())) == 1


class TestBrokenCompilers:
    @pytest.mark.parametrize(
        ("compiler", "reason"),
        [
            ("false", "false: exit status 1"),
            ("/nonexistent/cc", "/nonexistent/cc: No such file or directory"),
            ("true", "No such file or directory"),  # says that it compiled, and did not
            ('cc "', "No closing quotation"),
            ("cc -fno-such-flag", "fno-such-flag"),
        ],
    )
    def test_the_reason_is_named(
        self, first_use: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str
    ) -> None:
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(BuildError, match=reason):
            build()
        assert reason in str(library.problem())
        backend = tda.kernels.backend()
        assert backend.name == "torch"
        assert reason in backend.reason
        assert not first_use.exists() or not list(first_use.iterdir())

    def test_no_compiler_given_is_cc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "  ")
        assert building.compiler() == ["cc"]
        monkeypatch.setenv("CC", "ccache gcc-12")
        assert building.compiler() == ["ccache", "gcc-12"]

    def test_a_compiler_that_hangs(self, first_use: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", f"{sys.executable} -c 'import time; time.sleep(60)'")
        monkeypatch.setattr(building, "TIMEOUT_S", 0.2)
        with pytest.raises(BuildError, match="took too long"):
            build()

    def test_what_does_not_load_is_named(
        self, first_use: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "broken.so").write_bytes(b"no library")
        monkeypatch.setattr(library, "build", lambda: tmp_path / "broken.so")
        with pytest.raises(BuildError, match="what was built does not load"):
            library.library()


@pytest.fixture
def no_compiler(first_use: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent/cc")


@pytest.mark.usefixtures("no_compiler")
class TestWithoutKernels:
    def test_indexed_is_refused_with_what_to_do(self) -> None:
        words = r"'indexed' of 'griffin' needs kernels of our own: /nonexistent/cc: No such file .*; use 'compact'"
        with (
            pytest.raises(ValueError, match=words),
            tda.attach(tiny.model("llama"), tda.Griffin(), execution="indexed"),
        ):
            pass

    def test_auto_runs_compact_and_says_why(self) -> None:
        model, prompt = tiny.model("llama"), tiny.text(1, 9)
        wanted = []
        for execution in ("masked", "auto"):
            with tda.attach(model, tda.Griffin(), execution=execution) as run:
                wanted.append(model.generate(prompt, max_new_tokens=6, do_sample=False))
                ran = run.execution
        assert torch.equal(*wanted)
        assert ran == "compact"
        assert "/nonexistent/cc" in run.backend
        assert run.backend.startswith("torch (")

    def test_per_token_methods_run_on_torch(self) -> None:
        model, method = tiny.model("llama"), tda.CATS()
        with tda.attach(model, method, tiny.thresholds("llama", method), execution="indexed") as run:
            model.generate(tiny.text(1, 9), max_new_tokens=3, do_sample=False)
            assert run.execution == "indexed"
            assert run.backend.startswith("torch (")


@works
def test_backend_tells_what_runs() -> None:
    assert tda.kernels.backend().name == "c"
    assert native.problem([]) is None


def test_import_builds_nothing(home: Path) -> None:
    done = elsewhere("import tda, tda.kernels, tda.engine.attach, tda.kernels.native; tda.Griffin()")
    assert (done.returncode, done.stderr) == (0, "")
    assert not home.exists()


def test_the_source_is_installed_with_the_package() -> None:
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["tda"]
    source = building.SOURCE.relative_to(ROOT / "tda")
    assert any(source.match(pattern) for pattern in data)
