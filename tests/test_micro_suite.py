"""The pytest-benchmark suite runs, every benchmark once, and its file is read by the loader."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from tda.engine.phases import prefill
from tda.history.table import from_micro
from tda.methods import METHODS
from tda.records import Machine

ROOT = Path(__file__).resolve().parent.parent
TIMED_METHODS = ("dense", "tt", "griffin", "tda")
GROUPS = {
    "test_prefill", "test_decode", "test_ffn", "test_gather", "test_statistic", "test_selection", "test_threshold",
    "test_calibrate", "test_record_write", "test_report_build",
}  # fmt: skip


def run_suite(*options: str) -> str:
    """What the suite prints; it must pass, warnings being errors."""
    command = [sys.executable, "-m", "pytest", "benchmarks/micro", "-p", "no:cacheprovider", "-q", *options]
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**outer, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_a_prefill_without_some_neurons_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 pass, in whatever order they are summed; a layer that lost some neurons does not."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "micro")
    parts = importlib.import_module("parts")
    model = tiny.build("llama").bfloat16()
    subject = parts.MicroModel(model, tiny.text(1, 32))
    with torch.no_grad():
        parts.check_close(prefill(model, subject.prompt).logits, subject.exact_logits)
        subject.ffns[0].down.weight[:, :10] = 0
        with pytest.raises(AssertionError, match="% off"):
            parts.check_close(prefill(model, subject.prompt).logits, subject.exact_logits)


@pytest.mark.slow
def test_every_benchmark_is_right() -> None:
    """The pieces that were asked for are there, nothing is skipped, and each gives what it should."""
    output = run_suite("--benchmark-disable", "-rA")
    passed = [line.split("::")[1] for line in output.splitlines() if line.startswith("PASSED")]
    assert {name.partition("[")[0] for name in passed} == GROUPS
    for method in TIMED_METHODS:
        for benchmark in ("test_prefill", "test_decode", "test_ffn"):
            sparsities = 1 if method == "dense" else 3
            executions = 1 if method == "dense" or benchmark != "test_ffn" else len(METHODS[method]().executions)
            found = [name for name in passed if name.startswith(f"{benchmark}[{method}")]
            assert len(found) == sparsities * executions, found
    assert "skipped" not in output


@pytest.mark.slow
def test_a_real_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    run_suite("--benchmark-json", str(path), "-k", "griffin-0.5-compact or griffin-0.5-masked or record_write")
    content = json.loads(path.read_text())
    assert "node" not in content["machine_info"]
    table = from_micro([path], ROOT if (ROOT / ".git").exists() else None)
    assert table.problems == ()
    rows = table.frame.set_index(table.frame["execution"].fillna("none"))
    assert sorted(rows.index) == ["compact", "masked", "none"]
    assert set(rows.machine) == {Machine(**content["machine_info"]["tda"]).fingerprint}
    assert set(rows.source) == {"micro"}
    compact, write = rows.loc["compact"], rows.loc["none"]
    assert compact["case"] == "griffin 0.5 (execution compact) on shape:25m"
    assert (compact["metric"], compact["unit"]) == ("ffn_ms", "ms")
    assert (write["case"], write["metric"]) == ("record_write", "record_write_ms")

    benchmarks = {benchmark["name"]: benchmark for benchmark in content["benchmarks"]}
    benchmark = benchmarks["test_ffn[griffin-0.5-compact]"]
    facts, median = benchmark["extra_info"], benchmark["stats"]["median"]
    assert len(compact["samples"]) == benchmark["stats"]["rounds"]
    batches = pd.Series(compact["samples"]).groupby(list(compact["groups"])).median()
    assert len(batches) == 10
    assert compact["value"] == pytest.approx(np.exp(np.log(batches).mean()))
    assert batches.min() <= 1000 * median <= batches.max()
    assert facts["gb_per_s"] == pytest.approx(facts["bytes_moved"] / median / 1e9)
    assert facts["bytes_moved"] == 3 * 512 * 1536 * 2 // 2
    assert facts["roofline_speedup"] == 2.0
    assert facts["achieved_sparsity"] == 0.5
