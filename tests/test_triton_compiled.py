"""The launches of the Triton kernels through Triton's compiler, which needs no GPU; its interpreter forgives more."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("triton", reason="the kernels need the package triton")

PROGRAM = Path(__file__).with_name("compile_triton.py")
SMALLEST_SHARED = 99 << 10
"""Bytes of shared memory that a program may have on every GPU since sm_80."""
REGISTERS = 65536
"""Of a multiprocessor."""
OLDEST = Path(sys.prefix) / "triton-3.6"
"""The Triton that torch 2.11 brings, where the Makefile has put it."""


def compile_for(architecture: int, folder: Path, package: Path | None = None, step: int = 1) -> dict[str, Any]:
    """What came of all launches, or of each step-th, with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
    path = os.pathsep.join(str(part) for part in (package, ROOT) if part is not None)
    environment |= {"TRITON_CACHE_DIR": str(folder), "HOME": "/nonexistent", "PYTHONPATH": path}
    command = [sys.executable, str(PROGRAM), str(architecture), str(step)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture(autouse=True)
def _assembler() -> None:
    from triton import knobs

    try:
        assert knobs.nvidia.ptxas.path
        assert knobs.nvidia.cuobjdump.path
    except RuntimeError as error:
        pytest.skip(f"this build of Triton brings no assembler for NVIDIA: {error}")


def check(told: dict[str, Any], least: int = 100) -> None:
    assert told["failed"] == {}
    assert told["forgotten"] == [], "they are on no list of launches"
    assert told["unlisted"] == [], "the engine launches what Triton compiles otherwise than the list says"
    assert least < len(told["compiled"]) <= 300
    for entry, found in told["compiled"].items():
        assert (found["STACK"], found["LOCAL"]) == (0, 0), f"{entry} spills"
        assert found["shared"] <= SMALLEST_SHARED, entry
        assert found["REG"] * 32 * found["warps"] <= REGISTERS, f"{entry} does not fit a multiprocessor"


def check_loads(told: dict[str, Any]) -> None:
    """Weights come 16 bytes at a time: what alignment is for. A block with fewer bytes a thread loads those at once."""
    for entry, found in told["compiled"].items():
        if ", aligned, " in entry and " x 512, 8 warps" not in entry:
            assert "v4.b32" in found["loads"], entry


def test_each_tenth_launch_compiles_without_spills(tmp_path: Path) -> None:
    told = compile_for(90, tmp_path, step=10)
    check(told, least=10)
    check_loads(told)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_every_launch_compiles_without_spills(architecture: int, tmp_path: Path) -> None:
    told = compile_for(architecture, tmp_path)
    check(told)
    check_loads(told)


@pytest.mark.slow
def test_every_launch_compiles_with_the_oldest_triton(tmp_path: Path) -> None:
    if not OLDEST.is_dir():
        pytest.skip(f"the older Triton is not in {OLDEST.name}: `make {OLDEST.parent.name}/.ready` puts it there")
    told = compile_for(90, tmp_path, OLDEST)
    assert told["triton"].startswith("3.6.")
    check(told)
