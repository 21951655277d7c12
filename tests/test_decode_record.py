"""The record of what decode reaches: which rounds count, its figures, goals and tables."""

import sys
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path
from statistics import geometric_mean as gmean
from statistics import mean
from typing import Any

import pandas as pd
import pytest

from experiments import decode
from experiments.decode import DecodeGoal, TimedCase, figure, gap_markdown, gaps, markdown, pairs, rows
from tda.device import machine
from tda.kernels import backend
from tda.profiler.split import COMPONENTS
from tda.records import Measurement, Record
from tda.statistics import Estimate
from tests import profiles as made_profiles
from tests.test_reporting import a_case, a_line

ROUNDS = range(1, 7)
FIGURES = ("speedup_efficiency", "break_even_tokens", "prefill_ratio", "mbu", "promise_kept")


def measured(name: str, samples: Iterable[float], groups: Iterable[int] = ROUNDS) -> Measurement:
    return Measurement.of(name, samples, groups)


def record(
    method: str, sparsity: float, step_ms: float, streams: Sequence[float] = (40.0,) * 6, **others: Any
) -> Record:
    """A case of six rounds."""
    values = {
        "decode_ms": measured("decode_ms", [step_ms] * 6),
        "ttft_ms": measured("ttft_ms", [100.0] * 6),
        "bytes_per_token": measured("bytes_per_token", [1.6e9 if method == "dense" else 0.8e9] * 6),
        "weight_bytes_per_token": measured("weight_bytes_per_token", [step_ms * 0.8 * 40e6] * 6),
        "prefill_ms": measured("prefill_ms", [100.0 if method == "dense" else 103.0] * 6),
        **({} if method == "dense" else {"selection_ms": measured("selection_ms", [7.0] * 6)}),
        "generation_ms": measured("generation_ms", [100.0 + 15 * step_ms] * 6),
        "stream_gb_per_s": measured(
            "stream_gb_per_s", [value for value in streams for _ in "ab"], sorted([*ROUNDS] * 2)
        ),
        "peak_memory_bytes": measured("peak_memory_bytes", [1000.0 if method == "dense" else 990.0], [1]),
        **others,
    }
    return a_line(a_case("shape:1b", method, sparsity), 1, values, execution="indexed", backend="c")


def numbers(found: list[tuple[TimedCase, TimedCase]]) -> list[tuple[int, int]]:
    return [(own.number, dense.number) for own, dense in found]


def test_a_run_is_paired_with_the_nearest_dense_that_met_its_bandwidth() -> None:
    dense = record("dense", 0.0, 60.0, streams=(40, 40, 55, 40, 40, 55))
    griffin = record("griffin", 0.5, 40.0, streams=(42, 45, 55, 54, 70, 36))
    assert numbers(pairs(griffin, [dense])) == [(1, 1), (2, 2), (3, 3), (4, 3), (6, 5)]


def test_the_control_is_a_run_of_dense_too() -> None:
    dense, control = (record("dense", 0.0, 60.0, streams=streams) for streams in ((40,) * 6, (50,) * 6))
    found = pairs(record("griffin", 0.5, 40.0, streams=(50,) * 6), [dense, control])
    assert [base.record for _, base in found] == [control] * 6


def test_a_run_whose_own_readings_differ_says_nothing() -> None:
    both = measured("stream_gb_per_s", [40, 40, 40, 55], [1, 1, 2, 2])
    one = {"decode_ms": measured("decode_ms", [1.0, 1.0], [1, 2])}
    assert numbers(pairs(record("griffin", 0.5, 1.0, stream_gb_per_s=both, **one), [record("dense", 0.0, 1.0)])) == [
        (1, 1)
    ]


def test_figures_are_those_of_the_runs_that_are_paired() -> None:
    """The fourth run of griffin met another bandwidth; were it paired with dense of its number, all would differ."""
    far = (40, 40, 40, 90, 40, 40)
    dense = record("dense", 0.0, 60.0)
    steps = measured("decode_ms", [40.0, 41.0, 39.0, 9.0, 40.0, 42.0])
    chosen = measured("selection_ms", [7.0, 7.1, 6.9, 99.0, 7.0, 7.2])
    griffin = record("griffin", 0.5, 40.0, streams=far, decode_ms=steps, selection_ms=chosen)
    value = {name: found.value for name in FIGURES if isinstance(found := figure(name, griffin, [dense]), Estimate)}
    paired = [40.0, 41.0, 39.0, 40.0, 42.0]
    assert value["speedup_efficiency"] == pytest.approx(60 / gmean(paired) - 1)
    assert value["break_even_tokens"] == pytest.approx((3 + 7.04) / (60 - mean(paired)))
    assert value["prefill_ratio"] == pytest.approx(1.03)
    assert value["mbu"] == pytest.approx(0.8 * 40 / gmean(paired))
    n = griffin.case.new_tokens - 1
    ready = [100 + chosen + n * step for chosen, step in zip([7.0, 7.1, 6.9, 7.0, 7.2], paired, strict=True)]
    promised = mean((100 + n * 60) / one - 1 for one in ready)
    assert value["promise_kept"] == pytest.approx(((100 + 15 * 60) / (100 + 15 * 40) - 1) / promised)


def test_memory_is_taken_once() -> None:
    found = figure("memory_ratio", record("griffin", 0.5, 1.0), [record("dense", 0.0, 1.0)])
    assert found == Estimate(0.99, None, None, 1)


def test_a_gain_that_is_none_says_so_and_not_that_rounds_lack() -> None:
    slow = record("griffin", 0.5, 61.0)
    found = {row["figure"]: row for row in rows("griffin", [record("dense", 0.0, 60.0), slow])}
    assert found["break_even_tokens"]["verdict"] == "decode is not faster than dense here"


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.95, "strive"), (0.85, "must"), (0.7, "missed"), (float("nan"), "missed")]
)
def test_more_is_better(value: float, verdict: str) -> None:
    assert DecodeGoal("griffin", "speedup_efficiency", "griffin", 0.5, 0.8, 0.9).verdict(value) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(0.9, "strive"), (1.03, "must"), (1.1, "missed")])
def test_less_is_better(value: float, verdict: str) -> None:
    assert DecodeGoal("griffin", "prefill_ratio", "griffin", 0.5, 1.05, 1.01, most=True).verdict(value) == verdict


def test_rows_of_a_bench_use_the_runs_that_have_a_pair() -> None:
    griffin = record("griffin", 0.5, 40.0, streams=(40, 40, 90, 40, 40, 40))
    found = {row["figure"]: row for row in rows("griffin", [record("dense", 0.0, 72.0), griffin])}
    gain = found["speedup_efficiency"]
    assert (gain["value"], gain["low"], gain["high"]) == pytest.approx((0.8, 0.8, 0.8))
    assert (gain["rounds"], gain["rounds_measured"]) == (5, 6)
    assert (gain["decode_ms"], gain["dense_ms"], gain["ran"]) == (40.0, 72.0, "indexed · c")
    assert found["memory_ratio"]["verdict"] == "strive"
    text = markdown(pd.DataFrame(found.values()))
    assert "| griffin | speedup_efficiency | griffin 0.5 | shape:1b, " in text
    assert "same within 15%" in text
    assert gain["commit"][:10] in text
    assert " | 0.8 [0.8, 0.8] | 5 of 6 | 0.8 | 0.95 | " in text


def test_a_figure_that_no_round_gives_has_no_verdict() -> None:
    apart = record("griffin", 0.5, 40.0, streams=(80,) * 6)
    found = {row["figure"]: row for row in rows("griffin", [record("dense", 0.0, 60.0), apart])}
    assert isnan(found["speedup_efficiency"]["value"])
    assert (found["speedup_efficiency"]["rounds"], found["speedup_efficiency"]["verdict"]) == (0, "fewer than 5 rounds")


def test_gaps_add_up_to_what_the_limit_leaves() -> None:
    table = pd.DataFrame(gaps([made_profiles.profile("dense"), made_profiles.profile("griffin")]))
    for row in table.to_dict("records"):
        assert sum(row[name] for name in COMPONENTS) == pytest.approx(row["step_ms"] - row["limit_ms"])
    assert gap_markdown(table).count("\n| griffin 0.5 | ") == 1


def test_other_benches_stay_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_bench(out: Path, **options: Any) -> list[Record]:
        return [record("dense", 0.0, 60.0), record(options["methods"][0], 0.5, 40.0)]

    monkeypatch.setattr(decode.tda, "run_bench", run_bench, raising=False)
    own = record("dense", 0.0, 60.0).machine
    monkeypatch.setattr(decode, "machine", lambda device: own)
    for name in ("griffin", "opt", "griffin"):
        words = ["--out", str(tmp_path), "--record", str(tmp_path / "decode"), "--run", name]
        monkeypatch.setattr(sys, "argv", ["decode.py", *words])
        decode.main()
    table = pd.read_csv(tmp_path / "decode.csv")
    assert dict(table["run"].value_counts())["opt"] == 1
    assert len(table[table["run"] == "griffin"]) == len(set(table[table["run"] == "griffin"]["figure"])) + 1
    assert "speedup_efficiency" in (tmp_path / "decode.md").read_text()


def test_a_record_of_another_machine_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = "run,cpu\ngriffin,Another CPU\n"
    (tmp_path / "decode.csv").write_text(held)
    monkeypatch.setattr(sys, "argv", ["decode.py", "--out", str(tmp_path), "--record", str(tmp_path / "decode")])
    with pytest.raises(SystemExit):
        decode.main()
    assert "holds figures of Another CPU; give --record a place" in capsys.readouterr().err
    assert (tmp_path / "decode.csv").read_text() == held


def test_each_method_has_short_rounds_in_place_and_over_copies() -> None:
    found = {name: options.get("execution", "auto") for name, options in decode.SHORT.items()}
    assert found == {
        "griffin-steps": "auto",
        "tda-steps": "auto",
        "cats-steps": "auto",
        "griffin-compact-steps": "compact",
        "tda-compact-steps": "compact",
    }


@pytest.mark.parametrize("other", ["cpu", "kernels"])
def test_a_record_holds_one_processor_and_one_build_of_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    record = tmp_path / "decode"
    monkeypatch.setattr("sys.argv", ["decode", "--record", str(record), "--run", "griffin"])
    held = {"cpu": machine("cpu").cpu, "kernels": str(backend())} | {other: "of another"}
    pd.DataFrame([held]).to_csv(record.with_suffix(".csv"))
    with pytest.raises(SystemExit):
        decode.main()
    assert "holds figures of of another; give --record a place" in capsys.readouterr().err
