"""Build the C kernels with the system's compiler on first use, and keep them for this machine and compiler."""

import functools
import hashlib
import os
import platform
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tda.cache import cache_folder
from tda.kernels.native import isa, private

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fopenmp",
    "-fPIC",
    "-Wno-psabi",
)
"""Flags of every instruction set."""
TIMEOUT_S = 60
DIGEST = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """The kernels cannot be built here; the message says why."""


class Built(NamedTuple):
    """A shared library, and the name of the instruction set that it is for."""

    path: Path
    isa: str


def compiler() -> list[str]:
    """The compiler's command: ``CC``, or cc.

    Raises
    ------
    BuildError
        If ``CC`` is no command.
    """
    given = os.environ.get("CC", "")
    try:
        return shlex.split(given) or ["cc"]
    except ValueError as error:
        raise BuildError(f"CC={given}: {error}") from None


def kernels_folder() -> Path:
    """Where what was built is kept."""
    return cache_folder() / "kernels"


def build() -> Built:
    """The shared library, compiled unless it is kept from an earlier run.

    What is kept is named after its instruction set and a hash of source, flags, compiler and processor. It ends with a
    digest of itself, so that a file that was cut short is built again rather than loaded; so is one that another user
    could have written. Where it cannot be kept, a folder of this process serves.

    Raises
    ------
    BuildError
        If there is no compiler, or it fails.
    ValueError
        If ``TDA_ISA`` names no instruction set, or one that this processor does not have.
    """
    name, command = isa.requested(), compiler()
    macros = native_macros(command)
    chosen = isa.choose(name, macros)
    flags = [*chosen.flags, *FLAGS]
    try:
        what = [SOURCE.read_bytes(), flags, command, macros, platform.machine()]
        file = f"kernels-{chosen.name}-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.so"
        path = _kept(_cache, file)
        if path is None:
            content = _compiled(command, flags)
            path = _keep(_cache, file, content) or _keep(_own_folder, file, content)
    except OSError as error:
        raise BuildError(str(error)) from None
    if path is None:
        raise BuildError("there is no folder that can hold what is built")
    return Built(path, chosen.name)


def native_macros(command: list[str]) -> str:
    """What the compiler defines for this processor: it tells both, and the compiler's version."""
    macros = _run([*command, "-march=native", "-dM", "-E", "-x", "c", os.devnull])
    if "#define " not in macros:
        raise BuildError(f"{command[0]}: is no C compiler")
    return macros


def _cache() -> Path:
    private.folder(cache_folder())
    return private.folder(kernels_folder())


@functools.cache
def _own_folder() -> Path:
    """A folder that lasts as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="tda-kernels-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _kept(folder: Callable[[], Path], file: str) -> Path | None:
    """A library that was kept, whole and written by nobody else; None where there is none."""
    try:
        path = folder() / file
        content = private.read(path)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    if content is None or hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        return None
    return path


def _keep(folder: Callable[[], Path], file: str, library: bytes) -> Path | None:
    """Keep a library; None where that cannot be, as in a folder that is full."""
    try:
        path = folder() / file
        private.write(path, library + hashlib.sha256(library).digest())
    except (OSError, RuntimeError):
        return None
    return path


def _compiled(command: list[str], flags: list[str]) -> bytes:
    """The library.

    OpenMP is compiled for and not linked: its symbols are found in the pool that torch has loaded, since two pools
    would fight for the cores.
    """
    with tempfile.TemporaryDirectory(prefix="tda-kernels-") as folder:
        object_file, library = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        try:
            _run([*command, *flags, "-c", str(SOURCE), "-o", str(object_file)])
        except BuildError as error:
            if "omp.h" in str(error) or "-fopenmp" in str(error):
                raise BuildError(f"the compiler has no OpenMP: {error}") from None
            raise
        _run([*command, "-shared", str(object_file), "-o", str(library), "-lm"])
        return library.read_bytes()


def _run(command: list[str]) -> str:
    """What a command prints; it is ended with all that it started if it takes too long."""
    none, pipe = subprocess.DEVNULL, subprocess.PIPE
    streams: dict[str, Any] = {"stdin": none, "stdout": pipe, "stderr": pipe, "text": True, "errors": "replace"}
    try:
        process: subprocess.Popen[str] = subprocess.Popen(command, **streams, start_new_session=True)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from None
    with process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        except BaseException as error:  # an interruption, too
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BuildError(f"{command[0]}: took more than {TIMEOUT_S} s") from None
            raise
    if process.returncode:
        lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
        raise BuildError(f"{command[0]}: {next((line for line in lines if 'error' in line), lines[0])}")
    return output
