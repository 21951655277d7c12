"""The trial of change-point libraries runs, and is the same each time."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
from conftest import ROOT


def trial(out: Path) -> pd.DataFrame:
    """A few short series; otava is left out, as it is not installed beside this package."""
    script = ROOT / "benchmarks" / "nightly" / "changepoints.py"
    sizes = ["--commits", "12", "--noise", ".01", "--series", "5", "--calibration", "20"]
    subprocess.run([sys.executable, str(script), *sizes, "--out", str(out)], check=True, capture_output=True)
    return pd.read_csv(out)


def test_trial(tmp_path: Path) -> None:
    table = trial(tmp_path / "first.csv")
    chosen = table[(table["library"] == "ruptures l2, trimmed means") & (table["rule"] == "9 + ln n")]
    step = chosen[chosen["case"] == "step 10%"].iloc[0]
    assert step["exact"] == 1
    assert step["series"] == 5
    pd.testing.assert_frame_equal(table, trial(tmp_path / "second.csv"))

    record = pd.read_csv(ROOT / "benchmarks" / "records" / "changepoints.csv")
    assert list(record.columns) == list(table.columns)
    assert set(record["case"]) == set(table["case"])
    assert set(record["library"]) == set(table["library"]) | {"otava, means"}
