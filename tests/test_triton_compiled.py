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


def compile_for(architecture: int, blocks: str, folder: Path) -> dict[str, Any]:
    """What came of all launches, with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
    environment |= {"TRITON_CACHE_DIR": str(folder), "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), str(architecture), blocks]
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


@pytest.mark.parametrize("architecture", [90, *(pytest.param(other, marks=pytest.mark.slow) for other in (80, 100))])
def test_every_launch_compiles_without_spills(architecture: int, tmp_path: Path) -> None:
    told = compile_for(architecture, "smallest", tmp_path)
    assert told["failed"] == {}
    assert told["forgotten"] == [], "compile_triton.py does not launch them"
    spilled = [kernel for kernel in told["compiled"] if kernel["STACK"] or kernel["LOCAL"]]
    assert spilled == []


@pytest.mark.slow
def test_every_block_that_may_be_chosen_compiles(tmp_path: Path) -> None:
    assert compile_for(90, "every", tmp_path)["failed"] == {}
