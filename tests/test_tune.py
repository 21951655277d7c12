"""`tda tune`: what it measures and keeps, by Triton's interpreter and a played clock; on a card by `make gpu-check`."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_state
import pytest
import tiny
from torch import nn

pytest.importorskip("triton", reason="the kernels need the package triton")

import triton

from tda.bench.tune import tune
from tda.kernels.triton import rows, tuning
from tda.kernels.triton import tune as triton_tune
from tda.view import Linear


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where blocks are kept; launches of the clock are left out, and the block that was tried last wins."""
    path = tmp_path / "blocks.json"
    times = iter(range(10_000, 0, -1))
    monkeypatch.setattr(tuning, "path_of", lambda device=None: path)
    monkeypatch.setattr(triton.testing, "do_bench", lambda work, **options: float(next(times)))
    return path


def test_every_shape_of_a_model_is_measured_and_kept(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tda")
    found = tune(tiny.build("llama"), 60)
    kinds = [row["kernel"] for row in found]
    assert set(kinds) == {
        *("rows linear", "rows listed_gate_up", "rows rule_gate_up", "rows rule_up", "rows listed_times", "down split")
    }
    linears = {row["shape"] for row in found if row["kernel"] == "rows linear"}
    model = tiny.model("llama")
    weights = {" x ".join(map(str, each.shape)) for name, each in model.named_parameters() if each.dim() == 2}
    assert linears == weights, "every linear, the head among them (here as large as the embedding)"
    for row in found:
        assert row["chosen"] == row["candidates"][-1]["block"]
        assert len(row["gb_per_s"]) == len(row["kept_fractions"]) == len(row["default_gb_per_s"])
    data = json.loads(kept.read_text())
    assert len(data["shapes"]) == len(found)
    assert all(len(one["tried"]) >= len(rows.BLOCKS) for one in data["shapes"].values()), "losers are kept too"
    assert caplog.messages == [f"blocks of {len(found)} shapes are kept in {kept}"]


def test_linears_that_are_stored_transposed_are_measured_as_attaching_lays_them(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block is chosen for aligned launches only, and others have no choice."""
    asked: list[tuple[int, ...]] = []
    run = triton_tune.rows

    def noting(x: Any, first: Any, *args: Any, **options: Any) -> None:
        asked.append(first.weight.stride())
        run(x, first, *args, **options)

    monkeypatch.setattr(triton_tune, "rows", noting)
    monkeypatch.setattr(triton.testing, "do_bench", lambda work, **options: (work(), 1.0)[1])
    model = tiny.build("gpt2")
    before = model_state.state(model)
    tune(model, 600)
    assert asked
    assert all(stride[1] == 1 for stride in asked)
    model_state.same(before, model_state.state(model))
    monkeypatch.setattr(triton_tune, "interpreted", lambda: False)
    odd = Linear(nn.Linear(24, 53))
    even = Linear(nn.Linear(32, 53))
    assert [task.key for task in triton_tune.tasks([], [odd, even])] == ["rows linear float32 53 x 32"]


def test_what_there_is_no_time_for_is_named_and_keeps_what_it_had(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tda")
    tuning.keep(kept, {"rows linear float32 1 x 1": {"block": [1, 512, 8, 3, 1]}})
    assert tune(tiny.build("opt"), 0) == []
    assert "no time for" in caplog.messages[1]
    assert "down split" in caplog.messages[1]
    assert list(tuning.read(kept)) == ["rows linear float32 1 x 1"]


def test_wrong_uses_are_a_sentence(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "got the device 'cpu'" in command("tune", "-m", "ref:swiglu", "--device", "cpu")[2]
    assert command("tune", "-m", "ref:swiglu", "--device", "cuda:9")[0] == 2
    assert "a budget is a duration" in command("tune", "-m", "ref:swiglu", "--budget", "soon")[2]
    monkeypatch.setattr("tda.kernels.triton.interpreted", lambda: False)
    model: Any = tiny.build("llama")
    with pytest.raises(ValueError, match="weights are float32 on cpu"):
        tune(model, 1)
