"""What a suite will take, told before it runs: a pilot's pieces, each as often as the whole runs it."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import forecast


def test_each_piece_counts_as_often_as_the_whole_runs_it() -> None:
    assert forecast.whole(30.0, [(2.0, 5), (1.0, 1), (4.0, 0)]) == 30 + 2 * 4 - 4
    assert forecast.whole(30.0, []) == 30


def test_a_pilot_says_what_it_ran_and_why_it_failed() -> None:
    code = "import sys; open(sys.argv[1], 'w').write('[[0.5, 100], [2.0, 3]]')"
    wall, pieces = forecast.pilot([sys.executable, "-c", code])
    assert wall > 0
    assert pieces == [(0.5, 100), (2.0, 3)]
    with pytest.raises(SystemExit, match="the pilot failed: no such model"):
        forecast.pilot([sys.executable, "-c", "import sys; sys.exit('no such model')"])


def test_dense_stands_for_all_cases_of_its_model() -> None:
    stamps = [
        ("a: loading", 1.0), ("a: timing, round 1 of 5", 3.0), ("a: timing, round 2 of 5", 4.0),
        ("a: profiling dense", 5.0), ("b: loading", 9.0), ("b: timing, round 1 of 5", 10.0),
    ]  # fmt: skip
    assert forecast.cases(stamps, 15.0, times=3) == [(6.0, 3), (5.0, 3)]


def test_the_pilot_of_the_profiles_is_dense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tda

    asked: dict[str, Any] = {}

    def run_profile(out: str, **options: Any) -> None:
        asked.update(options)
        for sentence in ("ref:a: loading", "ref:a: timing, round 1 of 5", "ref:a: profiling dense"):
            logging.getLogger("tda.bench.profile").info(sentence)

    monkeypatch.setattr(tda, "run_profile", run_profile)
    options = {"model": ["ref:a"], "method": ["griffin", "tt"], "sparsity": [0.5, 0.75], "prompt_tokens": 8}
    forecast.main(["pilot", json.dumps(options), str(tmp_path / "pieces")])
    ((seconds, times),) = json.loads((tmp_path / "pieces").read_text())
    assert seconds >= 0
    assert times == 5
    assert asked == {**options, "method": ["dense"]}


def test_it_is_said_in_minutes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(forecast, "pilot", lambda command: (30.0, [(1.0, 61)]))
    forecast.main(["micro"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("make micro: ")
    assert re.match(r"make micro: .*1\.5 min, ", second)
