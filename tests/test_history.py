"""One table from four sources: every source comes back as it was written, and nothing unreadable stops it."""

import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.results import Results
from asv.runner import BenchmarkResult
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tda.cases import Case, Inputs
from tda.derived import derive
from tda.history.nights import History, Night, NightCommit, Unit
from tda.history.table import COLUMNS, HistoryTable, from_asv, from_micro, from_records, from_units, load_history
from tda.records import Commit, Failure, Machine, Measurement, Record, merge
from tda.results import append
from tda.statistics import Estimate

MACHINE = Machine(
    cpu="A CPU", cores=4, threads=4, memory_bytes=1 << 30, python="3.11.7", torch="2.13.0", transformers="5.24.0",
    tda="0.1.0", system="Linux",
)  # fmt: skip
OTHER = MACHINE.model_copy(update={"gpu": "A GPU", "driver": "1.2"})
HASH = "a" * 40
NEXT = "b" * 40
DAY = "2026-03-01T04:00:00+02:00"


def a_case(method: str = "griffin", sparsity: float | None = 0.5, **changes: Any) -> Case:
    given = {"model": "shape:25m", "method": method, "sparsity": sparsity, "prompt_tokens": 64, "new_tokens": 16}
    return Case(**{**given, "dtype": "bfloat16", **changes})


def a_record(number: int = 1, case: Case | None = None, **changes: Any) -> Record:
    decode = [10.0 + number + step / 8 for step in range(3)]
    fields = {
        "case": case or a_case(),
        "round": number,
        "commit": Commit(hash=HASH, dirty=False),
        "machine": MACHINE,
        "status": "ok",
        "execution": "compact",
        "measurements": {"decode_ms": Measurement.of("decode_ms", decode)},
        "started": "2026-05-05T05:05:05+00:00",
        "seconds": 1.0,
        **changes,
    }
    return Record(**fields)


def a_unit(block: int = 1, **changes: Any) -> Unit:
    fields = {"night": "2026-03-02", "commit": HASH, "grid": "speed", "block": block, "order": 0, "status": "ok"}
    return Unit(
        **{**fields, "records": (a_record(),), "started": "2026-05-05T05:05:05+00:00", "seconds": 1.0, **changes}
    )


def written(folder: Path, *records: Record) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    append(folder, records)
    return folder


def only(table: HistoryTable, **wanted: Any) -> Any:
    """The one row that has the wanted values."""
    frame = table.frame
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, frame.T
    return frame.iloc[0]


def micro_file(path: Path, *, dirty: bool = False, commit: str = HASH, **changes: Any) -> Path:
    """What pytest-benchmark writes, as far as it matters."""
    request = {"metric": "decode_ms", "case": a_case().model_dump(mode="json"), "execution": "compact", "bytes": 5}
    content: dict[str, Any] = {
        "machine_info": {"system": "Linux", "tda": MACHINE.model_dump(mode="json")},
        "commit_info": {"id": commit, "dirty": dirty, "time": None, "branch": "main"},
        "datetime": "2026-05-05T05:05:05.5+00:00",
        "version": "5.3.1",
        "benchmarks": [
            {"name": "test_decode[griffin-0.5]", "extra_info": request, "stats": {"data": [0.002, 0.001, 0.004]}},
            {"name": "test_record_write", "extra_info": {"metric": "record_write_ms"}, "stats": {"data": [0.5] * 6}},
        ],
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


ASV_PARAMS = [["'ref:swiglu'"], ["'dense'", "'griffin'"], ["0.0", "0.5"]]
ASV_FACTS = {
    "machine": "a-cpu-torch-2.13.0",
    "cpu": "",
    "num_cpu": "4",
    "ram": "1",
    "os": "Linux",
    "arch": "x",
    "python": "3.11",
}


def asv_benchmark(name: str, unit: str, version: str = "1", params: list[list[str]] = ASV_PARAMS) -> dict[str, Any]:
    names = ["model", "method", "sparsity"] if params else []
    kept = {"name": name, "unit": unit, "version": version, "type": "track", "params": params, "param_names": names}
    return {**kept, "code": "", "setup_cache_key": None}


def asv_folder(folder: Path, *, facts: dict[str, str] = ASV_FACTS, env: str = "virtualenv-py3.11") -> Path:
    """Results of one commit, written by asv itself: two cells of four, one that failed, and a benchmark on its own."""
    benchmarks = [
        asv_benchmark("smoke.Speed.track_decode_ms", "ms"),
        asv_benchmark("smoke.Quality.track_kl_to_dense_nats", "nats/token"),
        asv_benchmark("smoke.Grid.track_seconds", "seconds", params=[]),
    ]
    config = Config()
    config.results_dir = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    Benchmarks(config, benchmarks).save()
    results = Results(facts, {}, HASH, 1_772_330_400_000, "3.11", env, {})
    nan = float("nan")
    decode = [[3.0, 1.0, 2.0, 9.0, 5.0], None, None, [6.0, 7.0]]
    keep(results, benchmarks[0], [1.0, nan, nan, 1.0], decode)
    keep(results, benchmarks[1], [nan, nan, nan, None], [None] * 4)
    keep(results, benchmarks[2], [81.5], [None])
    keep(results, asv_benchmark("smoke.Gone.track_it", "ms", params=[]), [1.0], [None])
    results.save(str(folder))
    return folder


def keep(results: Results, benchmark: dict[str, Any], values: list[Any], samples: list[Any]) -> None:
    counts = [1 if given else None for given in samples]
    found = BenchmarkResult(values, samples, counts, 0, "", None)
    results.add_result(benchmark, found, datetime.now(UTC), 1.0, record_samples=True)


def plain_interval(values: list[float]) -> tuple[float, float, float]:
    """Geometric mean, with t on logarithms."""
    logs = np.log(values)
    reach = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return tuple(float(np.exp(logs.mean() + by)) for by in (0, -reach, reach))  # type: ignore[return-value]


def plain_bootstrap(values: list[float]) -> tuple[float, float, float]:
    """Percentile bootstrap of the mean, one resample after the other."""
    drawn = np.random.default_rng(0).integers(0, len(values), size=(2000, len(values)))
    estimates = sorted(float(np.mean([values[place] for place in row])) for row in drawn)
    return float(np.mean(values)), *np.quantile(estimates, [0.025, 0.975])


class TestRecords:
    def test_round_trip(self, tmp_path: Path) -> None:
        """Rounds are joined; the value is the geometric mean over rounds of their medians, with its interval."""
        case = a_case(batch=2, options={"rows": "per_row"})
        table = from_records([written(tmp_path, *(a_record(number, case) for number in range(1, 8)))])
        assert table.problems == ()
        assert list(table.frame.columns) == list(COLUMNS)
        assert {column: str(kind) for column, kind in table.frame.dtypes.items()} == dict(COLUMNS)
        row = only(table)
        expected = plain_interval([11.125 + number for number in range(7)])
        assert (row.value, row.low, row.high) == pytest.approx(expected)
        assert row.low < row.value < row.high
        assert len(row.samples) == 21
        assert row.groups == tuple(number for number in range(1, 8) for _ in range(3))
        named = row[["source", "machine", "commit", "dirty", "case", "model", "method", "sparsity", "execution"]]
        values = ["bench", MACHINE.fingerprint, HASH, False, "griffin 0.5 on shape:25m", "shape:25m", "griffin", 0.5]
        assert list(named) == [*values, "compact"]
        assert row.machine_label == "A CPU, 4 cores, torch 2.13.0"
        assert (row.batch, row.prompt_tokens, row.new_tokens, row["dtype"], row.device) == (
            2,
            64,
            16,
            "bfloat16",
            "cpu",
        )
        assert (row.metric, row.unit, row.better, row.control) == ("decode_ms", "ms", "lower", False)
        assert row.date == pd.Timestamp("2026-05-05T05:05:05", tz="UTC")
        unknown = ["change", "night", "role", "stage", "grid", "subject", "missing"]
        assert all(row[column] is None for column in unknown)
        assert row.block is pd.NA

    def test_quality_is_a_mean(self, tmp_path: Path) -> None:
        nll = [1.0, 1.5, 4.0, 2.0, 1.0, 0.5]
        measurements = {
            "nll_nats": Measurement.of("nll_nats", nll, range(6)),
            "perplexity": Measurement.of("perplexity", np.exp(nll), range(6)),
            "selection_digest": Measurement.of("selection_digest", [7.0, 9.0]),
        }
        table = from_records([written(tmp_path, a_record(0, measurements=measurements))])
        row = only(table, metric="nll_nats")
        assert (row.value, row.low, row.high) == pytest.approx(plain_bootstrap(nll))
        perplexity = only(table, metric="perplexity")
        assert np.log([perplexity.value, perplexity.low, perplexity.high]) == pytest.approx(
            [row.value, row.low, row.high]
        )
        digest = only(table, metric="selection_digest")
        assert digest.samples == (7.0, 9.0)
        assert np.isnan(digest.value)
        assert digest.missing is None

    def test_few_rounds_have_no_interval(self, tmp_path: Path) -> None:
        row = only(from_records([written(tmp_path, a_record(1), a_record(2))]))
        assert row.value == pytest.approx(np.sqrt(11.125 * 12.125))
        assert np.isnan(row.low)
        assert np.isnan(row.high)

    def test_what_failed_or_is_missing_says_why(self, tmp_path: Path) -> None:
        absent = {"energy_j_per_token": Measurement.absent("energy_j_per_token", "no NVIDIA driver")}
        failed = a_record(case=a_case("tt"), status="oom", reason="too big", measurements={})
        table = from_records([written(tmp_path, a_record(measurements=absent), failed)])
        assert len(table.frame) == 2
        energy, tt = only(table, method="griffin"), only(table, method="tt")
        assert (energy.missing, energy.metric, energy.samples) == ("no NVIDIA driver", "energy_j_per_token", ())
        assert (tt.missing, tt.metric, tt.samples, tt.groups) == ("oom: too big", None, (), ())
        assert np.isnan(energy.value)
        assert np.isnan(tt.value)

    def test_what_is_known_of_a_failure_is_told_in_words(self, tmp_path: Path) -> None:
        failure = Failure(kind="gpu_memory")
        failed = a_record(case=a_case("tt"), status="oom", reason="too big", failure=failure, measurements={})
        row = only(from_records([written(tmp_path, failed)]))
        assert row.missing == "did not fit into GPU memory: too big"

    def test_what_follows_from_a_case_and_dense_has_a_row(self, tmp_path: Path) -> None:
        """Of the same machine and commit, however many rounds; without samples of its own."""

        def with_bytes(number: int, case: Case, bytes_per_token: float, step: float) -> Record:
            values = {"decode_ms": [step + number / 100], "bytes_per_token": [bytes_per_token]}
            return a_record(number, case, measurements={n: Measurement.of(n, v) for n, v in values.items()})

        lines = [
            record
            for number in range(1, 7)
            for record in (with_bytes(number, a_case(), 1e6, 6.0), with_bytes(number, a_case("dense", 0.0), 2e6, 9.0))
        ]
        table = from_records([written(tmp_path, *lines)])
        griffin, dense = (one for one in merge(lines))
        for name in ("roofline_speedup", "speedup_efficiency"):
            row, found = only(table, metric=name, method="griffin"), derive(name, griffin, dense)
            assert isinstance(found, Estimate)
            assert (row.value, row.low, row.high, row.samples) == (found.value, found.low, found.high, ())
        assert set(table.frame[table.frame.method == "dense"].metric) == {
            "decode_ms",
            "speedup",
            "bytes_per_token",
            "roofline_speedup",
        }
        alone = from_records([written(tmp_path / "alone", *lines[::2])]).frame
        assert set(alone.metric) == {"decode_ms", "bytes_per_token"}

    def test_samples_that_are_no_numbers(self, tmp_path: Path) -> None:
        """A line with one is named and left out; the others are there."""
        odd = {"perplexity": Measurement.of("perplexity", [1.0, float("inf")])}
        table = from_records([written(tmp_path, a_record(1), a_record(2).model_copy(update={"measurements": odd}))])
        assert only(table).groups == (1, 1, 1)
        (problem,) = table.problems
        assert "line 2 skipped: perplexity is inf" in problem

    def test_the_same_file_twice_counts_once(self, tmp_path: Path) -> None:
        one = written(tmp_path / "one", a_record(1), a_record(2))
        two = written(tmp_path / "two", a_record(1), a_record(2))
        table = from_records([one, one, two])
        assert only(table).samples == only(from_records([one])).samples
        assert table.problems == ()

    def test_contradicting_lines_are_told(self, tmp_path: Path) -> None:
        later = a_record(1, measurements={"decode_ms": Measurement.of("decode_ms", [99.0])})
        again = from_records([written(tmp_path / "torn", a_record(1), later)])
        assert (only(again).samples, again.problems) == ((99.0,), ())  # a torn round that was measured again
        table = from_records([written(tmp_path / "one", a_record(1)), written(tmp_path / "two", later)])
        assert only(table).samples == (99.0,)
        (problem,) = table.problems
        assert problem.startswith("1 records repeat a case and round")
        failed = a_record(1, status="crash", reason="killed", measurements={})
        assert len(only(from_records([written(tmp_path / "crash", a_record(1), failed)])).samples) == 3

    def test_unlike_machines_commits_and_trees_are_not_joined(self, tmp_path: Path) -> None:
        lines = [
            a_record(1),
            a_record(2, machine=OTHER),
            a_record(3, commit=Commit(hash=NEXT, dirty=False)),
            a_record(4, commit=Commit(hash=HASH, dirty=True)),
            a_record(5, commit=Commit()),
            a_record(6, a_case(control="a_a")),
        ]
        frame = from_records([written(tmp_path, *lines)]).frame
        frame = frame.sort_values("groups")
        assert list(frame["groups"]) == [(number,) * 3 for number in range(1, 7)]
        assert list(frame["machine"]) == [MACHINE.fingerprint, OTHER.fingerprint, *[MACHINE.fingerprint] * 4]
        assert list(frame["dirty"]) == [False, False, False, True, None, False]
        assert list(frame["commit"]) == [HASH, HASH, NEXT, HASH, None, HASH]
        assert list(frame["control"]) == [False] * 5 + [True]
        assert only(HistoryTable(frame), machine=OTHER.fingerprint).machine_label == "A GPU, 4 cores, torch 2.13.0"

    def test_a_control_is_no_repeat_of_its_dense_run(self, tmp_path: Path) -> None:
        dense, again = a_case("dense", 0.0), a_case("dense", 0.0, control="a_a")
        table = from_records([written(tmp_path, a_record(1, dense), a_record(1, again))])
        assert list(dict.fromkeys(table.frame.control)) == [False, True]
        assert table.problems == ()

    def test_dates_and_subjects_from_git(self, tmp_path: Path) -> None:
        repo = tmp_path / "repo"
        git = ["git", "-C", str(repo), "-c", "user.name=N", "-c", "user.email=n@example.org"]
        subprocess.run(["git", "init", "-q", str(repo)], check=True)
        words = ["commit", "-q", "--allow-empty", "-m", "Faster\tby\u2028far", "--date", DAY]
        environment = {"GIT_COMMITTER_DATE": DAY, "PATH": "/usr/bin:/bin"}
        subprocess.run([*git, *words], check=True, env=environment)
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        known = a_record(commit=Commit(hash=head, dirty=False))
        table = from_records([written(tmp_path / "out", known, a_record())], repo)
        row = only(table, commit=head)
        assert (row.date, row.subject) == (pd.Timestamp("2026-03-01T02:00", tz="UTC"), "Faster\tby\u2028far")
        assert only(table, commit=HASH).subject is None
        with pytest.raises(ValueError, match="no git checkout"):
            from_records([], tmp_path / "out")

    def test_labels_tell_cases_apart(self, tmp_path: Path) -> None:
        cases = {
            "griffin 0.5 (rows=per_row)": a_case(options={"rows": "per_row"}),
            "griffin 0.5 (rows=shared)": a_case(options={"rows": "shared"}),
            "griffin 0.5 (another kind's prompt, rows=per_row)": a_case(
                options={"rows": "per_row"}, control="cross_domain"
            ),
            "griffin 0.5 (rows=per_row, layers as ref:swiglu)": a_case(
                options={"rows": "per_row"}, layer_sparsity_from="ref:swiglu"
            ),
            "griffin 0.5": a_case(batch=2, options={"rows": "per_row"}),  # its setting is another one
            "random 0.5": a_case("random", options={"seed": 3}, seed=3),
            "tt (cett=0.2)": a_case("tt", None, options={"cett": 0.2}),
            "dense": a_case("dense", 0.0),
        }
        frame = from_records([written(tmp_path, *(a_record(case=case) for case in cases.values()))]).frame
        frame = frame[frame.metric == "decode_ms"]
        assert list(frame["name"]) == list(cases)
        assert list(frame["case"]) == [f"{name} on shape:25m" for name in cases]
        assert list(frame["case_key"]) == [case.key for case in cases.values()]
        assert frame.series.nunique() == len(cases)
        assert frame.sparsity.isna().tolist() == [case.sparsity is None for case in cases.values()]

    def test_thresholds_of_other_texts_are_told_in_the_case(self, tmp_path: Path) -> None:
        """They are the method's own affair: it is held against the one dense run."""
        texts = [Inputs(text="t", calibration=name * 64) for name in ("a", "b")]
        folders = [written(tmp_path / one.calibration[0], a_record(case=a_case("tda"), inputs=one)) for one in texts]
        dense = written(tmp_path / "dense", a_record(case=a_case("dense", 0.0), inputs=Inputs(text="t")))
        frame = from_records([*folders, dense]).frame
        assert list(dict.fromkeys(frame.name)) == [
            "tda 0.5 [calibration aaaaaaaa]",
            "tda 0.5 [calibration bbbbbbbb]",
            "dense",
        ]
        assert set(frame.setting) == {""}
        assert frame.series.nunique() == 3

    def test_sources_are_not_told_from_one_another(self, tmp_path: Path) -> None:
        """asv knows no sizes: what stands for them there is nobody's size."""
        written(tmp_path / "bench", a_record(case=a_case(model="ref:swiglu", options={"rows": "per_row"})))
        asv_folder(tmp_path / "asv")
        frame = load_history(tmp_path).frame
        assert set(frame[frame.method == "griffin"].case) == {"griffin 0.5 on ref:swiglu"}

    def test_a_stand_in_of_a_gpu_is_refused(self, tmp_path: Path) -> None:
        fake = MACHINE.model_copy(update={"gpu": "FAKE GPU"})
        folder = written(tmp_path, a_record(machine=fake), a_record())
        table = from_records([folder])
        assert len(table.frame) == 1
        (problem,) = table.problems
        assert re.fullmatch(rf"{folder}/results\.jsonl: 1 records .*GPU .*simulated.*", problem)
        file = micro_file(tmp_path / "micro.json", machine_info={"tda": fake.model_dump(mode="json")})
        (problem,) = from_micro([file]).problems
        assert re.fullmatch(rf"{file} .*GPU .*simulated.*", problem)
        table = from_asv(asv_folder(tmp_path / "asv", facts={**ASV_FACTS, "machine": "a-cpu-fake-gpu"}))
        assert table.frame.empty
        assert re.search("json .*GPU .*simulated", table.problems[0])


class TestNights:
    def test_the_baseline_commit_keeps_its_stored_key(self, tmp_path: Path) -> None:
        history = History(tmp_path)
        history.write(Night(id="1", started=DAY, baseline_commit=HASH))
        (path,) = (tmp_path / "nights").iterdir()
        told = json.loads(path.read_bytes())
        assert told["anchor"] == HASH
        assert "baseline_commit" not in told
        assert history.nights()[0][0].baseline_commit == HASH

    def test_round_trip(self, tmp_path: Path) -> None:
        history = History(tmp_path)
        commit = NightCommit(hash=HASH, date=DAY, subject="Faster", status="measured")
        history.write(Night(id="2026-03-02", started=DAY, machine=MACHINE, baseline_commit=HASH, commits=(commit,)))
        history.keep(a_unit(1))
        history.keep(a_unit(2, role="control", order=3))
        history.keep(a_unit(2, stage="confirm", records=(a_record(), a_record(case=a_case("dense", 0.0)))))
        table = from_units(history)
        assert table.problems == ()
        assert len(table.frame) == 6
        row = only(table, role="control")
        told = row[["source", "night", "block", "role", "stage", "grid", "commit", "subject", "dirty"]]
        assert list(told) == ["nightly", "2026-03-02", 2, "control", "first", "speed", HASH, "Faster", False]
        assert row.date == pd.Timestamp("2026-03-01T02:00", tz="UTC")
        assert row.value == pytest.approx(11.125, rel=1e-3)
        assert list(dict.fromkeys(table.frame[table.frame.stage == "confirm"]["method"])) == ["griffin", "dense"]

    def test_a_place_measured_again_counts_once(self, tmp_path: Path) -> None:
        history = History(tmp_path)
        history.keep(a_unit(1, status="crash", reason="killed", records=()))
        history.keep(a_unit(1))
        assert only(from_units(history)).missing is None

    def test_a_process_that_failed_has_one_row(self, tmp_path: Path) -> None:
        history = History(tmp_path)
        history.write(Night(id="2026-03-02", started=DAY, machine=MACHINE, baseline_commit=HASH))
        history.keep(a_unit(1, status="crash", reason="killed by signal 9", records=()))
        row = only(from_units(history))
        assert (row.missing, row.case, row.metric) == ("crash: killed by signal 9", None, None)
        assert (row.machine, row.commit, row.block) == (MACHINE.fingerprint, HASH, 1)

    def test_a_dirty_tree_and_a_foreign_commit(self, tmp_path: Path) -> None:
        """An unstamped build is its unit's commit; a record that names another one belongs to neither."""
        history = History(tmp_path)
        history.keep(
            a_unit(1, records=(a_record(commit=Commit(hash=HASH, dirty=True)), a_record(commit=Commit(hash=NEXT))))
        )
        history.keep(a_unit(2, records=(a_record(commit=Commit()),)))
        table = from_units(history)
        assert list(table.frame["commit"]) == [HASH, HASH]
        assert list(table.frame["dirty"]) == [True, None]
        assert len(table.problems) == 1
        assert "1 records of another commit skipped" in table.problems[0]


class TestAsv:
    def test_round_trip(self, tmp_path: Path) -> None:
        table = from_asv(asv_folder(tmp_path / "asv"))
        rows = table.frame.set_index(["metric", "case"])
        assert list(rows.index) == [
            ("seconds", "smoke.Grid"),
            ("kl_to_dense_nats", "griffin 0.5 on ref:swiglu"),
            ("decode_ms", "dense on ref:swiglu"),
            ("decode_ms", "griffin 0.5 on ref:swiglu"),
        ]
        dense = only(table, metric="decode_ms", method="dense")
        assert dense.samples == (3.0, 1.0, 2.0, 9.0, 5.0)
        assert dense.groups == (0, 1, 2, 3, 4)
        assert (dense.value, dense.low, dense.high) == pytest.approx(plain_interval([3.0, 1.0, 2.0, 9.0, 5.0]))
        assert (dense.source, dense.grid, dense.unit, dense.better) == ("asv", "smoke", "ms", "lower")
        assert (dense.commit, dense.dirty, dense.model, dense.sparsity) == (HASH, False, "ref:swiglu", 0.0)
        assert dense.date == pd.Timestamp(1_772_330_400, unit="s", tz="UTC")
        assert (dense["prompt_tokens"] is pd.NA, dense["dtype"]) == (True, None)
        assert only(table, metric="decode_ms", method="griffin").value == pytest.approx(np.sqrt(6 * 7))
        failed = only(table, metric="kl_to_dense_nats")
        assert failed.samples == ()
        assert failed.missing.startswith("failed, or this machine cannot give it")
        alone = only(table, metric="seconds")
        assert (alone.samples, alone.unit, alone.method) == ((81.5,), "s", None)
        assert len(table.problems) == 1
        assert table.problems[0].endswith("1 results skipped, whose benchmark is gone or has another version")

    def test_unlike_machines_have_unlike_fingerprints(self, tmp_path: Path) -> None:
        asv_folder(tmp_path)
        asv_folder(tmp_path, facts={**ASV_FACTS, "machine": "b-gpu"}, env="existing-py_usr_bin_python")
        asv_folder(tmp_path, facts={**ASV_FACTS, "ram": "2"}, env="virtualenv-py3.12")
        frame = from_asv(tmp_path).frame
        found = frame[frame.metric == "seconds"].sort_values("machine_label")
        assert list(found.machine_label) == ["a-cpu-torch-2.13.0", "a-cpu-torch-2.13.0", "b-gpu"]
        assert found.machine.nunique() == 3
        assert found.machine.str.startswith("asv:").all()
        assert list(found["dirty"]) == [False, False, None]

    def test_another_version_is_another_benchmark(self, tmp_path: Path) -> None:
        asv_folder(tmp_path)
        config = Config()
        config.results_dir = str(tmp_path)
        Benchmarks(config, [asv_benchmark("smoke.Speed.track_decode_ms", "ms", version="2")]).save()
        table = from_asv(tmp_path)
        assert table.frame.empty
        assert table.problems[0].endswith("4 results skipped, whose benchmark is gone or has another version")

    def test_without_asv(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asv_folder(tmp_path)
        monkeypatch.setitem(__import__("sys").modules, "asv.benchmarks", None)
        table = from_asv(tmp_path)
        assert table.frame.empty
        (problem,) = table.problems
        assert re.fullmatch(rf"{tmp_path} .*pip install 'tda-bench\[nightly\]'", problem)


class TestMicro:
    def test_round_trip(self, tmp_path: Path) -> None:
        table = from_micro([micro_file(tmp_path / "a.json", dirty=True)])
        assert table.problems == ()
        row = only(table, metric="decode_ms")
        assert row.samples == pytest.approx((2.0, 1.0, 4.0))
        assert row.groups == (0, 1, 2)
        assert row.value == pytest.approx(2.0)
        told = row[["source", "case", "execution", "machine", "commit", "dirty", "unit", "prompt_tokens", "dtype"]]
        case = "griffin 0.5 on shape:25m"
        assert list(told) == ["micro", case, "compact", MACHINE.fingerprint, HASH, True, "ms", 64, "bfloat16"]
        assert row.date == pd.Timestamp("2026-05-05T05:05:05.5", tz="UTC")
        write = only(table, metric="record_write_ms")
        assert (write.case, write.method, write.value, write.low) == ("record_write", None, 500.0, 500.0)

    def test_slow_rounds_do_not_move_the_value(self, tmp_path: Path) -> None:
        """Many rounds are batches: a few that were interrupted count for little, a drift makes the interval wide."""
        drift, level = np.repeat(np.linspace(1, 2, 10), 20), np.ones(200)
        level[::20] = 50
        rows = []
        for name, seconds in (("level", level), ("drift", drift)):
            timed = {"name": "test_record_write", "extra_info": {"metric": "record_write_ms"}}
            file = micro_file(tmp_path / f"{name}.json", benchmarks=[timed | {"stats": {"data": list(seconds)}}])
            rows.append(from_micro([file]).frame.iloc[0])
        assert rows[0].groups == tuple(np.repeat(range(10), 20))
        assert (rows[0].value, rows[0].low, rows[0].high) == (1000, 1000, 1000)
        medians = np.log(1000 * np.linspace(1, 2, 10))
        reach = 2.262 * medians.std(ddof=1) / np.sqrt(10)  # Student's t of 9 degrees of freedom
        bounds = np.exp([medians.mean() - reach, medians.mean() + reach])
        assert [rows[1].low, rows[1].high] == pytest.approx(bounds, rel=1e-3)

    def test_the_later_file_of_a_commit_counts(self, tmp_path: Path) -> None:
        late = micro_file(tmp_path / "a.json", benchmarks=[
            {"name": "test_record_write", "extra_info": {"metric": "record_write_ms"}, "stats": {"data": [0.25]}},
        ], datetime="2026-06-01T00:00:00+00:00")  # fmt: skip
        early = micro_file(tmp_path / "b.json")
        other = micro_file(tmp_path / "c.json", commit=NEXT)
        table = from_micro([late, early, other])
        assert len(table.frame) == 4
        assert only(table, metric="record_write_ms", commit=HASH).samples == (250.0,)


def whole(folder: Path) -> Path:
    """A history with something from every source."""
    history = History(folder)
    history.write(
        Night(
            id="2026-03-02",
            started=DAY,
            machine=MACHINE,
            baseline_commit=HASH,
            commits=(NightCommit(hash=HASH, date=DAY, subject="Faster", status="measured"),),
        )
    )
    history.keep(a_unit())
    written(folder / "bench" / "deep" / "er", a_record())
    asv_folder(folder / "asv")
    micro_file(folder / "micro" / f"{HASH}.json")
    return folder


def test_whole_history(tmp_path: Path) -> None:
    table = load_history(whole(tmp_path))
    assert table.frame.source.value_counts().to_dict() == {"asv": 4, "micro": 2, "nightly": 1, "bench": 1}
    assert set(table.frame.date) == {pd.Timestamp("2026-03-01T02:00", tz="UTC")}, "one date for one commit"
    assert set(table.frame.subject) == {"Faster"}
    assert len(table.problems) == 1
    row = ["source", "machine", "commit", "night", "block", "case", "execution", "metric"]
    assert not table.frame.duplicated(row).any()


def test_asv_tells_dates_that_no_night_tells(tmp_path: Path) -> None:
    asv_folder(tmp_path / "asv")
    written(tmp_path / "bench", a_record())
    assert set(load_history(tmp_path).frame.date) == {pd.Timestamp(1_772_330_400, unit="s", tz="UTC")}


def test_no_history(tmp_path: Path) -> None:
    table = load_history(tmp_path / "none")
    assert table.problems == (f"no history at {tmp_path / 'none'}",)
    assert table.frame.empty
    assert {column: str(kind) for column, kind in table.frame.dtypes.items()} == dict(COLUMNS)
    assert load_history(tmp_path).problems == ()


PLACES = {
    "nights/x.jsonl": "nights/2026-03-02.jsonl",
    "nights/x.json": "nights/2026-03-02.json",
    "bench/x/results.jsonl": "bench/deep/er/results.jsonl",
    "asv/a-cpu-torch-2.13.0/x.json": f"asv/a-cpu-torch-2.13.0/{HASH[:8]}-virtualenv-py3.11.json",
    "micro/x.json": f"micro/{HASH}.json",
}
"""Where a bad file may lie, and a good one of its kind."""
BAD: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda good: good[: len(good) // 2],
    "empty": lambda good: b"",
    "binary": lambda good: bytes(range(256)) * 9,
    "another tool's": lambda good: (
        b'{"version": 2, "results": [], "benchmarks": [{"id": 1}], "context": {"host": "x"}}'
    ),
    "no object": lambda good: b"[1, 2]",
    "a number": lambda good: b"7",
    "deep": lambda good: b"[" * 100_000,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_named_and_skipped(tmp_path: Path, place: str, bad: str) -> None:
    good = load_history(whole(tmp_path))
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BAD[bad]((tmp_path / PLACES[place]).read_bytes()))
    table = load_history(tmp_path)
    named = [problem for problem in table.problems if str(path) in problem]
    assert named
    assert len(table.problems) == len(good.problems) + len(named)
    pd.testing.assert_frame_equal(table.frame, good.frame)


@pytest.mark.parametrize("place", PLACES)
def test_an_unreadable_file_is_named_and_skipped(tmp_path: Path, place: str) -> None:
    good = load_history(whole(tmp_path))
    (tmp_path / place).mkdir(parents=True)  # a folder in a file's place: not even root reads it
    table = load_history(tmp_path)
    assert [problem for problem in table.problems if str(tmp_path / place) in problem]
    pd.testing.assert_frame_equal(table.frame, good.frame)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b'{"version": 2, "x": {"name": 1}}', b'{"version": 2, "x": 5}']
)
def test_a_bad_list_of_asv_benchmarks(tmp_path: Path, content: bytes) -> None:
    (asv_folder(tmp_path / "asv") / "benchmarks.json").write_bytes(content)
    table = load_history(tmp_path)
    assert table.frame.empty
    assert len(table.problems) == 1
    assert str(tmp_path / "asv") in table.problems[0]


def garbage(good: bytes) -> st.SearchStrategy[bytes]:
    """Lines that are no records: noise, JSON of other things, and good lines with a piece cut out or changed."""
    cut = st.builds(
        lambda start, length: good[:start] + good[start + length :],
        st.integers(0, len(good) - 2),
        st.integers(1, len(good)),
    )
    other = st.recursive(
        st.none() | st.integers() | st.text(max_size=8), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
    return st.binary(max_size=80) | other.map(lambda value: json.dumps(value).encode()) | cut


@given(
    lines=st.lists(garbage(a_record(8, a_case("tt")).model_dump_json().encode()), max_size=6), place=st.integers(0, 6)
)
def test_garbage_lines_never_hide_good_ones(lines: list[bytes], place: int) -> None:
    good = a_record(1).model_dump_json().encode()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "results.jsonl"
        path.write_bytes(b"\n".join([*lines[:place], good, *lines[place:]]))
        table = from_records([path])
    griffin = table.frame[table.frame.method == "griffin"]
    assert only(HistoryTable(griffin)).samples == a_record(1).samples("decode_ms")
    assert all(str(path) in problem for problem in table.problems)


ODD = (None, 5, [[1]], "selection_from", {"layer_profile": [1]})


@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize("place", ["case", "options", "model", "control", "inputs", "measurements", "version"])
def test_a_record_with_an_odd_part_hides_no_good_one(place: str, value: object, tmp_path: Path) -> None:
    odd = a_record(8, a_case("tt")).model_dump(mode="json")
    (odd["case"] if place in odd["case"] else odd)[place] = value
    (tmp_path / "results.jsonl").write_text(f"{json.dumps(odd)}\n{a_record(1).model_dump_json()}\n")
    table = from_records([tmp_path])
    assert only(HistoryTable(table.frame[table.frame.method == "griffin"])).samples == a_record(1).samples("decode_ms")
    assert len(table.problems) + (table.frame.method == "tt").any() == 1


@pytest.mark.parametrize("value", [*ODD, [{"cases": 5}], [{"cases": [None]}], [{"cases": ["x"]}]], ids=str)
def test_a_night_with_odd_findings_hides_no_good_one(value: object, tmp_path: Path) -> None:
    history = History(tmp_path)
    history.write(Night(id="1", started=DAY, baseline_commit=HASH))
    history.write(Night(id="2", started=DAY, baseline_commit=HASH))
    path = tmp_path / "nights" / "1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "findings": value}))
    nights, problems = history.nights()
    assert [night.id for night in nights] == ["2"]
    assert len(problems) == 1


MICRO: dict[str, Any] = {
    "machine_info": {"tda": MACHINE.model_dump(mode="json")},
    "commit_info": {"id": None, "dirty": None},
    "datetime": "x",
    "benchmarks": [{"name": "n", "extra_info": {"metric": "m"}, "stats": {"data": [1]}}],
}


@given(content=garbage(json.dumps(MICRO).encode()), source=st.sampled_from(["micro", "asv", "nights"]))
def test_garbage_files_never_raise(content: bytes, source: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {
            "micro": folder / "micro" / "x.json",
            "asv": folder / "asv" / "m" / "x.json",
            "nights": folder / "nights" / "x.json",
        }
        paths[source].parent.mkdir(parents=True)
        paths[source].write_bytes(content)
        table = load_history(folder)
        assert table.frame.empty == bool(table.problems) or source == "nights"


def asv_content() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        path = next((asv_folder(Path(name)) / ASV_FACTS["machine"]).glob("*-*.json"))
        content: dict[str, Any] = json.loads(path.read_text())
        return content


ASV_CONTENT = asv_content()
odd = (
    st.none()
    | st.integers()
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
    | st.just({"x": [1]})
    | st.just(1e300)
)


@given(key=st.sampled_from(sorted(ASV_CONTENT)), value=odd, place=st.integers(0, 12))
def test_odd_asv_files_never_raise(key: str, value: Any, place: int) -> None:
    content = json.loads(json.dumps(ASV_CONTENT))
    if key == "results":
        columns = content["results"]["smoke.Speed.track_decode_ms"]
        columns[place % len(columns)] = value
    else:
        content[key] = value
    with tempfile.TemporaryDirectory() as name:
        folder = asv_folder(Path(name))
        next((folder / ASV_FACTS["machine"]).glob("*-*.json")).write_text(json.dumps(content))
        from_asv(folder)
