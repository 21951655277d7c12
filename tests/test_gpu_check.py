"""`make gpu-check` on a machine that has torch and pytest, and none of the packages that only other tests need."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, pytest_collection_modifyitems

ABSENT = (
    *("asv", "asv_runner", "ruptures", "hypothesis", "pytest_timeout", "pytest_benchmark", "check_jsonschema"),
    *("tensorboard", "torch_tb_profiler"),
)


def test_its_tests_are_found(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))")
    python = f"env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH={tmp_path}:. {sys.executable}"
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "gpu-check", f"GPU_PYTHON={python}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    command = told.stdout.splitlines()[0]
    found = subprocess.run(f"{command} --collect-only", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    marked = [path.name for path in (ROOT / "tests").glob("test_*.py") if "pytest." + "mark.gpu" in path.read_text()]
    assert [name for name in marked if f"/{name}::" not in found.stdout] == []


def test_a_folder_called_gpu_skips_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keywords of a test hold the names of the folders that it lies in."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    request.node.keywords["gpu"] = True
    pytest_collection_modifyitems([request.node])
    assert request.node.get_closest_marker("skip") is None
