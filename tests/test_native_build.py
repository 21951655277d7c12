"""Building the C library: broken compilers, folders that cannot be used, files cut short, and what runs instead."""

import errno
import os
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import tiny
import torch

import tda
from tda.kernels import native
from tda.kernels.native import build as building
from tda.kernels.native import isa, library, private
from tda.kernels.native.build import BuildError, build

ROOT = Path(__file__).resolve().parent.parent
works = pytest.mark.usefixtures("kernels_in_c")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
OTHER = 12345
"""A user's number that is not ours."""
LOAD = "import torch, tda; print(tda.kernels.backend().name)"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, in which nothing was built yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tda" / "kernels"


@pytest.fixture
def first_use(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The library as in a process that has not asked for it yet; afterwards it is asked for anew."""
    monkeypatch.delenv("TDA_ISA", raising=False)
    _forget()
    yield home
    _forget()


def _forget() -> None:
    library.library.cache_clear()
    library.problem.cache_clear()


def elsewhere(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def quick(compiled_for: Callable[..., library.Kernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that takes no time, since it has the library already. Each that it makes is a line of this file."""
    given = tmp_path / "library.so"
    given.write_bytes(Path(compiled_for("native")._name).read_bytes()[: -building.DIGEST])
    command, log = tmp_path / "cc", tmp_path / "log"
    command.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *-dM*) exec {shlex.join(building.compiler())} "$@";; *-shared*) echo >> {log};; esac\n'
        f'while [ "$1" != -o ]; do shift; done\nexec cp {given} "$2"\n'
    )
    command.chmod(0o700)
    log.touch()
    monkeypatch.setenv("CC", str(command))
    return log


def count(log: Path) -> int:
    return len(log.read_text().splitlines())


@works
class TestCache:
    def test_built_once_and_kept(self, home: Path, quick: Path) -> None:
        path, isa = build()
        assert path.parent == home
        assert f"-{isa}-" in path.name
        assert [file.name for file in home.iterdir()] == [path.name]
        assert build().path == path
        assert count(quick) == 1

    def test_other_flags_are_another_file(self, home: Path, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = build()
        monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-DOTHER"))
        assert build() != first

    @pytest.mark.parametrize("kept", [0, 10, 5000, -33, -1])
    def test_a_file_cut_short_is_built_again(self, home: Path, quick: Path, kept: int) -> None:
        path = build().path
        whole = path.read_bytes()
        path.write_bytes(whole[:kept])
        assert build().path == path
        assert count(quick) == 2
        assert path.read_bytes() == whole

    def test_a_process_that_finds_a_file_cut_short(self, home: Path, quick: Path) -> None:
        """Loading one can end a process with SIGBUS, so that a compiler must be asked first."""
        path = build().path
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[: size // 2])
        done = elsewhere(LOAD)
        assert (done.stdout, done.stderr) == ("c\n", "")
        assert path.stat().st_size == size

    def test_two_processes_at_once(self, home: Path, quick: Path) -> None:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(elsewhere, [LOAD] * 2))
        assert [(run.stdout, run.stderr) for run in done] == [("c\n", "")] * 2
        assert len(list(home.iterdir())) == 1


@works
class TestFolders:
    """Where the cache cannot be used, a folder of this process serves."""

    def test_that_cannot_be_made(self, tmp_path: Path, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a read-only file system; the superuser, too, is refused a folder below a file."""
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        path = build().path
        assert path.is_file()
        assert tmp_path not in path.parents

    def test_that_is_full(self, home: Path, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = private.write

        def full(path: Path, content: bytes) -> None:
            if path.parent == home:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, content)

        monkeypatch.setattr(private, "write", full)
        path = build().path
        assert path.is_file()
        assert home not in path.parents

    def test_none_at_all(self, home: Path, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(private, "write", full)
        with pytest.raises(BuildError, match="no folder that can hold what is built"):
            build()

    def test_of_a_user_without_a_home(self, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
        assert build().path.is_file()

    @pytest.mark.parametrize("given", [None, "", "relative/cache"])
    def test_below_the_home_where_none_is_given(
        self, given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path is to be ignored, says the specification of XDG_CACHE_HOME."""
        monkeypatch.delenv("XDG_CACHE_HOME")
        if given is not None:
            monkeypatch.setenv("XDG_CACHE_HOME", given)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert building.kernels_folder() == tmp_path / ".cache" / "tda" / "kernels"


@pytest.fixture
def open_to_all() -> Iterator[None]:
    """A user whose files are written so that everyone may write them."""
    before = os.umask(0)
    yield
    os.umask(before)


@works
@pytest.mark.usefixtures("open_to_all")
class TestOursAlone:
    """What is loaded was written by this user: anyone can append a right digest to another library."""

    def test_nobody_else_can_write_what_is_built(self, home: Path, quick: Path) -> None:
        path = build().path
        assert oct(path.stat().st_mode) == oct(stat.S_IFREG | 0o600)
        for folder in (home, home.parent, home.parent.parent):
            assert oct(folder.stat().st_mode) == oct(stat.S_IFDIR | 0o700)

    def test_a_folder_that_was_open_is_closed(self, home: Path, quick: Path) -> None:
        home.mkdir(parents=True)
        assert home.stat().st_mode & 0o777 == 0o777
        assert build().path.parent == home
        assert {folder.stat().st_mode & 0o777 for folder in (home, home.parent)} == {0o700}

    @pytest.mark.parametrize("mode", [0o602, 0o620, 0o777])
    def test_a_file_that_others_may_write_is_built_again(self, home: Path, quick: Path, mode: int) -> None:
        path = build().path
        path.chmod(mode)
        assert build().path == path
        assert count(quick) == 2
        assert path.stat().st_mode & 0o777 == 0o600

    def test_a_link_is_not_followed(self, home: Path, quick: Path, tmp_path: Path) -> None:
        path = build().path
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
        assert build().path == path
        assert count(quick) == 2
        assert not path.is_symlink()

    @pytest.mark.parametrize("linked", ["tda", "kernels"])
    def test_a_folder_that_is_a_link_is_not_used(self, home: Path, quick: Path, tmp_path: Path, linked: str) -> None:
        link = home if linked == "kernels" else home.parent
        link.parent.mkdir(parents=True)
        (tmp_path / "theirs").mkdir()
        link.symlink_to(tmp_path / "theirs")
        assert home not in build().path.parents
        assert not list((tmp_path / "theirs").iterdir())

    def test_a_pipe_does_not_stop_it(self, home: Path, quick: Path) -> None:
        path = build().path
        path.unlink()
        os.mkfifo(path)
        assert build().path == path
        assert path.is_file()

    @as_root
    def test_a_file_of_another_user_is_built_again(self, home: Path, quick: Path) -> None:
        path = build().path
        os.chown(path, OTHER, OTHER)
        assert build().path == path
        assert count(quick) == 2
        assert path.stat().st_uid == os.geteuid()

    @as_root
    @pytest.mark.parametrize("theirs", ["tda", "kernels"])
    def test_a_folder_of_another_user_is_not_used(self, home: Path, quick: Path, theirs: str) -> None:
        first = build().path
        os.chown(home if theirs == "kernels" else home.parent, OTHER, OTHER)
        assert home not in build().path.parents
        assert count(quick) == 2
        assert first.is_file()


class TestBrokenCompilers:
    @pytest.mark.parametrize(
        ("compiler", "reason"),
        [
            ("false", "false: exit status 1"),
            ("/nonexistent/cc", "/nonexistent/cc: No such file or directory"),
            ("true", "true: is no C compiler"),
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
        with pytest.raises(BuildError, match=r"took more than 0\.2 s"):
            build()

    def test_what_a_hanging_compiler_started_is_ended_too(
        self, first_use: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        script, child = tmp_path / "cc", tmp_path / "child"
        script.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {child}.new && mv {child}.new {child}\nwait\n")
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))

        def too_long(process: "subprocess.Popen[str]", timeout: float) -> None:
            while not child.exists():
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(process.args, timeout)

        monkeypatch.setattr(subprocess.Popen, "communicate", too_long)
        with pytest.raises(BuildError, match=r"took more than \d+ s"):
            build()
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(int(child.read_text()))
            while started.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)

    def test_one_that_says_that_it_compiled_and_did_not(
        self, first_use: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        script = tmp_path / "cc"
        script.write_text("#!/bin/sh\necho '#define __GNUC__ 12'\n")
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))
        with pytest.raises(BuildError, match=r"No such file or directory: .*kernels\.so"):
            build()

    @pytest.mark.parametrize("complaint", ["kernels.c:18:10: fatal error: omp.h: No such file", "error: no -fopenmp"])
    def test_one_without_openmp(
        self, first_use: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, complaint: str
    ) -> None:
        script = tmp_path / "cc"
        script.write_text(
            "#!/bin/sh\n"
            f'case "$*" in *-fopenmp*) echo "{complaint}" >&2; exit 1;; *) echo "#define __GNUC__ 12";; esac\n'
        )
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))
        assert library.problem() == f"the compiler has no OpenMP: {script}: {complaint}"

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("", "what was built lacks tda_sizes"),
            (
                "int GOMP_of_nobody(void); int f(void) { return GOMP_of_nobody(); }",
                "torch has loaded no OpenMP library",
            ),
            ("int nobodys(void); int f(void) { return nobodys(); }", "what was built does not load: .*nobodys"),
        ],
        ids=["without symbols", "without OpenMP", "without another library"],
    )
    @works
    def test_what_does_not_load_is_named(
        self, first_use: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, reason: str
    ) -> None:
        (tmp_path / "other.c").write_text(source)
        monkeypatch.setattr(building, "SOURCE", tmp_path / "other.c")
        with pytest.raises(BuildError, match=reason):
            library.library()
        assert tda.kernels.backend().name == "torch"


MACROS = {one.name: "".join(f"#define {macro} 1\n" for macro in sorted(one.macros)) for one in isa.X86}


class TestInstructionSets:
    """``TDA_ISA``; what each computes is in test_native_kernels.py."""

    def test_native_goes_by_the_name_of_the_widest(self) -> None:
        for name, macros in MACROS.items():
            assert isa.choose("native", macros) == isa.choose(name, macros) == isa.Isa(name, ("-march=native",))
        assert isa.choose("native", "#define __aarch64__ 1\n") == isa.Isa("native", ("-march=native",))

    def test_a_narrower_one_is_tuned_for_the_processor(self) -> None:
        assert isa.choose("avx2", MACROS["avx512"]).flags == ("-march=x86-64-v3", "-mtune=native")

    @works
    def test_each_is_a_file_of_its_own(self, home: Path, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(building, "native_macros", lambda command: MACROS["avx512-bf16"])
        for name in MACROS:
            monkeypatch.setenv("TDA_ISA", name)
            path, chosen = build()
            assert chosen == name
            assert path.name.startswith(f"kernels-{name}-")
        assert len(list(home.iterdir())) == len(MACROS)

    def test_a_wrong_name_is_an_error_also_without_a_compiler(
        self, no_compiler: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TDA_ISA", "sse9")
        with pytest.raises(ValueError, match=r"TDA_ISA .*x86-64-v2, avx2, .*, native; got 'sse9'"):
            tda.kernels.backend()
        with pytest.raises(ValueError, match="got 'sse9'"), tda.attach(tiny.model("llama"), tda.Griffin()):
            pass

    def test_one_that_the_processor_lacks_is_an_error(self, first_use: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(building, "native_macros", lambda command: MACROS["avx2"])
        monkeypatch.setenv("TDA_ISA", "avx512")
        with pytest.raises(ValueError, match=r"TDA_ISA=avx512: .*: x86-64-v2, avx2, native$"):
            tda.kernels.backend()


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
    backend = tda.kernels.backend()
    assert (backend.name, backend.reason.endswith(f" for {library.library().isa}")) == ("c", True)
    assert tda.kernels.notice() is None
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
