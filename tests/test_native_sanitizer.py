"""The C source under AddressSanitizer and UndefinedBehaviorSanitizer, on buffers of exactly the size it may use."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tda.kernels.native.build import FLAGS, SOURCE, compiler
from tda.kernels.native.isa import X86, Isa

DRIVER = Path(__file__).with_name("native_driver.c")
SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def built(folder: Path, source: Path, *flags: str) -> Path:
    """The program of a source; the test skips where the compiler has no sanitizers, and fails where it warns."""
    program = folder / source.stem
    command = [*compiler(), *FLAGS, *SANITIZE, *flags, f"-I{SOURCE.parent}", str(source), "-o", str(program), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and source != DRIVER:
        pytest.skip(f"no sanitizers here: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")
    return program


def run(program: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, env=environment, timeout=250)


def checked(folder: Path, *flags: str) -> None:
    done = run(built(folder, DRIVER, *flags), "150")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "150 tries\n")


@pytest.fixture(scope="module")
def sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sanitizers that find what is planted."""
    folder = tmp_path_factory.mktemp("planted")
    source = folder / "planted.c"
    source.write_text(
        "#include <stdlib.h>\nint main(int n, char **a) { char *p = malloc(n); return a[0][0] + p[n]; }\n"
    )
    assert "heap-buffer-overflow" in run(built(folder, source)).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("sanitizers")
@pytest.mark.parametrize("reading", ["-DREADS_APART=0", "-DREADS_APART=1"], ids=["one stream", "streams"])
def test_no_step_beyond_a_buffer(tmp_path: Path, reading: str) -> None:
    checked(tmp_path, "-march=native", reading)


@pytest.mark.slow
@pytest.mark.usefixtures("sanitizers", "kernels_in_c")
@pytest.mark.parametrize("isa", X86[:-2], ids=lambda isa: isa.name)
def test_no_step_of_shorter_vectors_beyond_a_buffer(tmp_path: Path, isa: Isa, compiled_for: Callable[..., Any]) -> None:
    compiled_for(isa.name)  # skips where this processor lacks it
    checked(tmp_path, *isa.flags)
