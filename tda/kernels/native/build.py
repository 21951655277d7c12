"""Build the C kernels with the system's compiler on first use, and keep them for this machine and compiler."""

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fopenmp",
    "-fPIC",
    "-Wno-psabi",
)
TIMEOUT_S = 60
DIGEST = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """The kernels cannot be built here; the message says why."""


def compiler() -> list[str]:
    """The compiler's command: ``CC``, or cc."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def cache_folder() -> Path:
    """Where what was built is kept: tda below ``XDG_CACHE_HOME``, or below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tda" / "kernels"


def build() -> Path:
    """Path of the shared library, compiled unless it is kept from an earlier run.

    What is kept is named after a hash of source, flags, compiler and processor. It is written under another name and
    renamed, so that processes that build at once do not meet, and ends with a digest of itself, so that a file that was
    cut short is built again rather than loaded. Where the folder cannot be written, a folder of this process serves.

    Raises
    ------
    BuildError
        If there is no compiler, or it fails.
    """
    try:
        command = compiler()
        version = _run([*command, "--version"])
        what = [SOURCE.read_text(), *FLAGS, *command, version, platform.machine(), _processor()]
        path = _folder() / f"kernels-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.so"
        if not _whole(path):
            _compile(command, path)
    except (OSError, ValueError) as error:
        raise BuildError(str(error)) from None
    return path


def _folder() -> Path:
    try:
        return _writable(cache_folder())
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return _own_folder()


def _writable(folder: Path) -> Path:
    """A folder that this user, and no other, may write to; made where it is missing.

    Raises
    ------
    OSError
        If there is no such folder.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(f"{folder} may be written by others")
    with tempfile.TemporaryFile(dir=folder):
        return folder


@functools.cache
def _own_folder() -> Path:
    """A folder that lasts as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="tda-kernels-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _compile(command: list[str], path: Path) -> None:
    """Compile to `path`.

    OpenMP is compiled for and not linked: its symbols are found in the pool that torch has loaded, since two pools
    would fight for the cores.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        work = Path(folder)
        _run([*command, *FLAGS, "-c", str(SOURCE), "-o", str(work / "kernels.o")])
        _run([*command, "-shared", str(work / "kernels.o"), "-o", str(work / path.name), "-lm"])
        with (work / path.name).open("r+b") as library:
            library.write(hashlib.sha256(library.read()).digest())
        os.replace(work / path.name, path)


def _whole(path: Path) -> bool:
    """Whether a file is there and ends with the digest of what comes before."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {getattr(error, 'strerror', None) or 'took too long'}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BuildError(f"{command[0]}: {next((line for line in lines if 'error' in line), lines[0])}")
    return done.stdout


def _processor() -> str:
    """What `-march=native` looks at: the processor's name and abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
