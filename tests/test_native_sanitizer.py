"""The C source under AddressSanitizer and UndefinedBehaviorSanitizer, on buffers of exactly the size it may use."""

import os
import subprocess
from pathlib import Path

import pytest

from tda.kernels.native.build import FLAGS, SOURCE, compiler

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
@pytest.mark.parametrize(
    "flags",
    [("-DREADS_APART=0",), ("-DREADS_APART=1",), ("-march=x86-64",), ("-march=x86-64-v3",)],
    ids=["one stream", "streams", "sse", "avx2"],
)
def test_no_step_beyond_a_buffer(tmp_path: Path, flags: tuple[str, ...]) -> None:
    if "-march" in flags[0] and os.uname().machine != "x86_64":
        pytest.skip("other vectors of x86")
    done = run(built(tmp_path, DRIVER, *flags), "150")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "150 tries\n")
