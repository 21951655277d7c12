"""`tda.load_results`: one row per case, metric and sample, with the numbers that follow from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tda
from tda.cases import Case
from tda.derived import DERIVED
from tda.records import Commit, Machine, Measurement, Record
from tda.results import RESULTS, append
from tests import nights

DENSE_MS, GRIFFIN_MS = 20.0, 12.5


def a_case(method: str = "griffin", sparsity: float = 0.5, **changes: Any) -> Case:
    return Case(model="shape:25m", method=method, sparsity=sparsity, prompt_tokens=64, new_tokens=16, **changes)


def a_record(case: Case, number: int = 1, decode_ms: float = GRIFFIN_MS, **changes: Any) -> Record:
    share = 1 - (case.sparsity or 0.0)
    values = {
        "prefill_ms": [100.0 if case.method == "dense" else 101.0],
        "selection_ms": [2.0],
        "decode_ms": [decode_ms, decode_ms],
        "stream_gb_per_s": [10.0],
        "weight_bytes_per_token": [1e8 * share],
        "bytes_per_token": [1e8 * share],
    }
    fields = {
        "case": case,
        "round": number,
        "commit": Commit(hash="a" * 40, dirty=False),
        "machine": nights.MACHINE,
        "status": "ok",
        "achieved_sparsity": (0.25, 0.75) if case.sparsity else (0.0, 0.0),
        "execution": "compact",
        "backend": "c",
        "measurements": {name: Measurement.of(name, samples) for name, samples in values.items()},
        "started": "2026-05-05T05:05:05+00:00",
        "seconds": 1.0,
    }
    return Record(**{**fields, **changes})


def written(folder: Path, *records: Record) -> Path:
    folder.mkdir(parents=True)
    append(folder, records)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    griffin = a_case(options={"rows": "per_row"}, seed=3)
    dense = a_case("dense", 0.0, seed=3)
    rounds = [record for n in (1, 2) for record in (a_record(dense, n, DENSE_MS), a_record(griffin, n))]
    return written(tmp_path / "one", *rounds)


def test_every_sample_has_a_row(folder: Path) -> None:
    frame = tda.load_results(folder)
    griffin = frame[(frame.method == "griffin") & (frame.metric == "decode_ms")]
    assert list(griffin["value"]) == [GRIFFIN_MS] * 4
    assert list(griffin["sample"]) == [0, 1, 2, 3]
    assert list(griffin["group"]) == [1, 1, 2, 2]
    assert griffin[["low", "high", "missing"]].isna().all(axis=None)
    row = griffin.iloc[0]
    assert (row.unit, row.better) == ("ms", "lower")
    assert (row["case"], row.model, row.sparsity) == ("griffin 0.5 on shape:25m", "shape:25m", 0.5)
    assert (row.achieved_sparsity, row.options, row.seed) == (0.5, '{"rows": "per_row"}', 3)
    assert (row.execution, row.backend, row.status, row.warnings) == ("compact", "c", "ok", "")
    assert (row.machine, row.commit, row.dirty) == (nights.MACHINE.fingerprint, "a" * 40, False)


def test_derived_numbers_have_their_intervals(folder: Path) -> None:
    """One row each, or where a number does not follow, why."""
    frame = tda.load_results(folder)
    griffin = frame[(frame.method == "griffin") & frame["sample"].isna()].set_index("metric")
    assert set(griffin.index) == {*DERIVED, "delta_nll_nats"}
    expected = {
        "speedup": DENSE_MS / GRIFFIN_MS,
        "roofline_speedup": 2.0,
        "speedup_efficiency": 0.6,
        "mbu": 5e7 / GRIFFIN_MS / 1e6 / 10.0,
        "prefill_overhead_ms": 1.0,
        "break_even_tokens": 3.0 / (DENSE_MS - GRIFFIN_MS),
    }
    assert {name: griffin["value"][name] for name in expected} == pytest.approx(expected)
    assert np.isnan(griffin["value"]["delta_nll_nats"])
    assert griffin["missing"]["delta_nll_nats"]
    dense = frame[(frame.method == "dense") & (frame.metric == "break_even_tokens")]
    assert dense["missing"].notna().all()


def test_an_interval_needs_rounds(tmp_path: Path) -> None:
    rounds = [
        record
        for n in range(1, 8)
        for record in (a_record(a_case("dense", 0.0), n, DENSE_MS + n % 2), a_record(a_case(), n))
    ]
    frame = tda.load_results(written(tmp_path / "one", *rounds))
    speedup = frame[(frame.method == "griffin") & (frame.metric == "speedup")].iloc[0]
    assert speedup.low < speedup.value < speedup.high


def test_what_failed_or_is_missing_has_a_row_that_says_why(tmp_path: Path) -> None:
    absent = {"energy_j_per_token": Measurement.absent("energy_j_per_token", "no NVIDIA driver")}
    failed = a_record(a_case("tt"), status="oom", reason="too big", measurements={}, achieved_sparsity=())
    frame = tda.load_results(written(tmp_path / "one", a_record(a_case(), measurements=absent), failed))
    energy = frame[frame.metric == "energy_j_per_token"].iloc[0]
    assert (energy.missing, np.isnan(energy.value)) == ("no NVIDIA driver", True)
    tt = frame[frame.method == "tt"]
    assert len(tt) == 1
    assert (tt.iloc[0].status, tt.iloc[0].reason) == ("oom", "too big")
    assert tt[["metric", "value"]].isna().all(axis=None)
    assert "too big" in tt.iloc[0].missing


def test_folders_are_read_together_and_machines_kept_apart(folder: Path, tmp_path: Path) -> None:
    """A case is compared with dense of its own machine."""
    other: Machine = nights.MACHINE.model_copy(update={"cpu": "Another CPU"})
    second = written(tmp_path / "two", a_record(a_case(seed=3, options={"rows": "per_row"}), machine=other))
    frame = tda.load_results(str(folder), second / RESULTS)
    speedup = frame[(frame.method == "griffin") & (frame.metric == "speedup")].set_index("machine")
    assert speedup["value"][nights.MACHINE.fingerprint] == pytest.approx(DENSE_MS / GRIFFIN_MS)
    assert np.isnan(speedup["value"][other.fingerprint])
    assert set(frame.cpu) == {nights.MACHINE.cpu, "Another CPU"}


def test_a_damaged_line_is_named_and_left_out(folder: Path) -> None:
    whole = tda.load_results(folder)
    with open(folder / RESULTS, "a") as file:
        file.write('{"case": \n')
    with pytest.warns(UserWarning, match="line 5 skipped"):
        frame = tda.load_results(folder)
    assert len(frame) == len(whole)


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results folder given"):
        tda.load_results()
    with pytest.raises(FileNotFoundError, match="no results at"):
        tda.load_results(tmp_path / "missing")
    (tmp_path / RESULTS).write_text("")
    with pytest.raises(ValueError, match="no readable record"):
        tda.load_results(tmp_path)
