"""What measuring itself costs: calibration, records on disk, and the report."""

from pathlib import Path
from typing import Any

import pytest
from parts import PROMPT_TOKENS, SPARSITIES, Clock, MicroModel, each, methods, part

import tda

RECORDS = Path(__file__).resolve().parents[1] / "records" / "reference"
"""Real records of the reference models, read as data."""
CALIBRATED = [method for method in methods() if method.needs_fit and method.sparsity == SPARSITIES[1]]
REPORTED = ("dense", "griffin", "tda", "tt", "cats")


def some_records() -> list[Any]:
    """Records of one model: some methods at one sparsity."""
    loaded = part("tda.results", "load")(RECORDS).records
    asked = [record for record in loaded if record.case.model == "ref:swiglu" and record.case.sparsity in (0.0, 0.5)]
    return [record for record in asked if record.case.method in REPORTED]


@each(CALIBRATED)
@pytest.mark.benchmark(group="calibration")
def test_calibrate(clock: Clock, subject: MicroModel, method: Any) -> None:
    """One batch of eight documents, and the search of the thresholds."""
    batches = [{"input_ids": subject.text(8)}]
    thresholds = clock(lambda: tda.calibrate(subject.model, method, batches, progress=False), rounds=5)
    achieved = sum(thresholds.achieved_sparsity) / len(thresholds.achieved_sparsity)
    assert achieved == pytest.approx(method.sparsity, abs=0.05)
    clock.note("calibrate_ms", subject.case(method), tokens=8 * PROMPT_TOKENS, achieved_sparsity=achieved)


@pytest.mark.benchmark(group="record write")
def test_record_write(clock: Clock, tmp_path: Path) -> None:
    """One record appended and fsynced."""
    append, load = part("tda.results", "append"), part("tda.results", "load")
    record = some_records()[0]
    clock(lambda: append(tmp_path, [record]), rounds=50)
    found = load(tmp_path)
    assert not found.problems
    assert found.records[0] == found.records[-1] == record
    written = (tmp_path / "results.jsonl").stat().st_size
    clock.note("record_write_ms", bytes_moved=written / len(found.records))


@pytest.mark.benchmark(group="report build")
def test_report_build(clock: Clock, tmp_path: Path) -> None:
    """Page, figures and table of one model's quality."""
    build_report = part("tda.web.report.report", "build_report")
    records = some_records()
    part("tda.results", "append")(tmp_path, records)
    report = clock(lambda: build_report([tmp_path], tmp_path / "report"), rounds=5)
    assert not report.problems
    assert all(record.case.method in report.index.read_text() for record in records)
    clock.note("report_build_ms", records=len(records))
