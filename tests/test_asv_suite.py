"""The asv suite: what it reads out of records, how asv takes it, and the lint that watches over its VERSION."""

import importlib.metadata
import itertools
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import asv.config
import asv.machine
import asv.results
import asv.runner
import pytest
from asv_runner.benchmarks.mark import SkipNotImplemented
from asv_runner.benchmarks.track import TrackBenchmark
from asv_runner.statistics import compute_stats
from conftest import ROOT

from benchmarks.asv import environment, grid, machine, run, suite
from benchmarks.asv.cells import RunTable, tabulate
from tda.bench.plan import unasked
from tda.bench.planning import plan_of
from tda.bench.presets import PRESETS
from tda.cases import Case
from tda.config import BenchConfig
from tda.records import MEASUREMENTS, Commit, Machine, Measurement, Record
from tools import forecast, forecast_asv, version_lint

HOST = Machine(
    cpu="Some CPU (R) @ 2.0", cores=2, threads=2, memory_bytes=1, python="3.11", torch="2.13.0+cpu",
    transformers="5.24.0", tda="0.1.0", system="Linux",
)  # fmt: skip
RAN = {"status": "ok", "commit": Commit(), "machine": HOST, "started": "2026-01-01T00:00:00Z", "seconds": 1.0}
GPU_REASON = "the work ran on a CPU"
SPEED = {
    "prefill_ms": 9.0, "selection_ms": 2.0, "statistic_ms": 1.0, "decode_ms": 4.0, "generation_ms": 50.0,
    "weight_bytes_per_token": 1e6,
}  # fmt: skip
GPU = {"gpu_utilization_percent": 75.0, "energy_j_per_token": 0.5}
QUALITY = {"perplexity": 1.5, "kl_to_dense_nats": 0.1, "top1_disagreement": 0.25}
EVERYTHING = {**SPEED, **GPU, **QUALITY, "peak_memory_bytes": 5e8}
CELL = ("shape:0.1b", "griffin", 0.5)
DENSE = ("shape:0.1b", "dense", 0.0)


def line(
    cell: tuple[str, str, float] = CELL,
    values: dict[str, Any] | None = None,
    *,
    number: int = 1,
    missing: dict[str, str] | None = None,
    achieved: tuple[float, ...] = (),
    **fields: Any,
) -> str:
    """A line of a results file as this package writes it; a value may be one sample, several, or (samples, groups)."""
    model, method, sparsity = cell
    measurements = {name: Measurement.absent(name, reason) for name, reason in (missing or {}).items()}
    for name, value in (values or {}).items():
        samples, groups = value if isinstance(value, tuple) else (value, ())
        measurements[name] = Measurement.of(name, samples if isinstance(samples, list) else [samples], groups)
    told = {"options": fields.pop("options", {}), "control": fields.pop("control", None)}
    case = Case(model=model, method=method, sparsity=sparsity, prompt_tokens=8, new_tokens=4, **told)
    fields = {
        "status": "ok",
        "commit": Commit(),
        "machine": HOST,
        "started": "2026-01-01T00:00:00Z",
        "seconds": 1.0,
    } | fields
    record = Record(case=case, round=number, measurements=measurements, achieved_sparsity=achieved, **fields)
    return record.model_dump_json()


def table(*lines: str, stopped: str | None = None) -> RunTable:
    return tabulate("\n".join(lines), stopped, 12.5)


def tracked() -> list[tuple[type, str]]:
    """Every benchmark of a cell."""
    kinds = (suite.Speed, suite.Memory, suite.Gpu, suite.Quality)
    return [(kind, name) for kind in kinds for name in vars(kind) if name.startswith("track_")]


EACH = pytest.mark.parametrize(("kind", "name"), tracked(), ids=[name for _, name in tracked()])


def ask(found: RunTable, name: str, cell: tuple[str, str, float] = CELL) -> Any:
    (kind,) = (kind for kind, known in tracked() if known == f"track_{name}")
    return getattr(kind(), f"track_{name}")(found, *cell)


def samples(found: RunTable, name: str, cell: tuple[str, str, float] = CELL) -> list[float]:
    answer = ask(found, name, cell)
    assert answer["number"] == 1
    values: list[float] = answer["samples"]
    return values


# What is looked up.


def test_what_is_tracked() -> None:
    assert {name.removeprefix("track_") for _, name in tracked()} == {
        "prefill_ms", "selection_ms", "statistic_ms", "decode_ms", "decode_to_dense", "generation_ms",
        "peak_memory_bytes", "weight_bytes_per_token", "idle_percent", "energy_j_per_token",
        "perplexity", "kl_to_dense_nats", "top1_disagreement", "sparsity_distance",
    }  # fmt: skip


@pytest.mark.parametrize("measurement", [name for name in EVERYTHING if name != "gpu_utilization_percent"])
def test_each_reads_the_measurement_of_its_name(measurement: str) -> None:
    assert len(set(EVERYTHING.values())) == len(EVERYTHING)
    assert samples(table(line(values=EVERYTHING)), measurement) == [EVERYTHING[measurement]]
    (kind,) = (kind for kind, name in tracked() if name == f"track_{measurement}")
    unit = MEASUREMENTS[measurement].unit
    assert getattr(kind, f"track_{measurement}").unit == {"B": "bytes"}.get(unit, unit)


def test_a_sample_is_a_round_or_a_document() -> None:
    found = table(
        line(values={"decode_ms": [3.0, 5.0, 4.0]}),
        line(number=2, values={"decode_ms": [10.0, 10.0, 13.0]}),
        line(number=0, values={"perplexity": ([1.5, 2.5, 2.0, 4.0], [7, 8, 9, 9])}),
    )
    assert samples(found, "decode_ms") == [4.0, 10.0]
    assert samples(found, "perplexity") == [1.5, 2.5, 3.0]


def test_the_ratio_is_paired_by_round() -> None:
    found = table(
        line(DENSE, {"decode_ms": [10.0, 10.0]}, number=1),
        line(DENSE, {"decode_ms": [20.0]}, number=2),
        line(values={"decode_ms": [5.0, 5.0, 6.0]}, number=1),
        line(values={"decode_ms": [30.0]}, number=2),
        line(values={"decode_ms": [7.0]}, number=3),
    )
    assert samples(found, "decode_to_dense") == [0.5, 1.5]


def test_the_ratio_of_dense_is_that_of_its_control() -> None:
    found = table(
        line(DENSE, {"decode_ms": [10.0]}),
        line(DENSE, {"decode_ms": [11.0]}, control="a_a"),
    )
    assert samples(found, "decode_ms", DENSE) == [10.0]
    assert samples(found, "decode_to_dense", DENSE) == [1.1]


def test_a_ratio_without_a_common_round_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    found = table(line(DENSE, {"decode_ms": [10.0]}, number=1), line(values={"decode_ms": [5.0]}, number=2))
    assert ask(found, "decode_to_dense") is None
    assert "no round in which both" in capsys.readouterr().err


def test_idleness_and_distance() -> None:
    found = table(
        line(values={"gpu_utilization_percent": [70.0, 90.0, 80.0]}, achieved=(0.4, 0.5)),
        line(number=2, achieved=(0.6, 0.7)),
    )
    assert samples(found, "idle_percent") == [20.0]
    assert samples(found, "sparsity_distance") == pytest.approx([0.05, 0.15])


def test_dense_selects_nothing() -> None:
    with pytest.raises(SkipNotImplemented):
        ask(table(line(DENSE, EVERYTHING)), "selection_ms", DENSE)


@EACH
def test_lower_is_better(kind: type, name: str) -> None:
    def worse(measurement: str, value: float) -> float:
        better = MEASUREMENTS[measurement].better
        return value * 2 if better == "lower" else value / 2

    metric = name.removeprefix("track_")
    dense = line(DENSE, EVERYTHING)
    good = table(dense, line(values=EVERYTHING, achieved=(0.5, 0.4)))
    bad = table(dense, line(values={n: worse(n, v) for n, v in EVERYTHING.items()}, achieved=(0.3, 0.2)))
    if metric == "idle_percent":  # the one that turns a measurement round: an idle GPU is the worse one
        assert MEASUREMENTS["gpu_utilization_percent"].better == "higher"
    assert samples(bad, metric) > samples(good, metric)


@EACH
def test_a_failed_cell_is_null_alone(kind: type, name: str) -> None:
    metric = name.removeprefix("track_")
    other = ("shape:0.1b", "tda", 0.5)
    found = table(
        line(DENSE, EVERYTHING),
        line(status="oom", reason="out of memory"),
        line(other, EVERYTHING, achieved=(0.5,)),
    )
    with pytest.raises(RuntimeError, match="oom: out of memory"):
        ask(found, metric)
    assert samples(found, metric, other)


def test_one_failed_round_leaves_the_others() -> None:
    found = table(line(values={"decode_ms": 4.0}), line(number=2, status="error", reason="ValueError: no"))
    assert samples(found, "decode_ms") == [4.0]


@EACH
def test_what_a_commit_lacks_is_skipped(kind: type, name: str) -> None:
    found = table(line(DENSE, EVERYTHING, achieved=(0.0,)))
    for cell in (CELL, ("ref:new", "griffin", 0.5), ("shape:0.1b", "griffin", 0.25)):
        with pytest.raises(SkipNotImplemented):
            ask(found, name.removeprefix("track_"), cell)


def test_a_quantity_that_a_commit_lacks_is_skipped() -> None:
    with pytest.raises(SkipNotImplemented):
        ask(table(line(values={"decode_ms": 4.0})), "generation_ms")


def test_what_a_broken_run_did_not_reach_is_null() -> None:
    found = table(line(values={"decode_ms": 4.0}), stopped="ImportError: gone")
    assert samples(found, "decode_ms") == [4.0]
    with pytest.raises(RuntimeError, match="before this cell: ImportError: gone"):
        ask(found, "decode_ms", ("ref:swiglu", "tda", 0.5))


def test_what_a_machine_cannot_give_is_null_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    found = table(line(values=SPEED, missing=dict.fromkeys(GPU, GPU_REASON)))
    assert ask(found, "energy_j_per_token") is None
    assert ask(found, "idle_percent") is None
    assert capsys.readouterr().err.splitlines() == [
        f"energy_j_per_token: {GPU_REASON}",
        f"gpu_utilization_percent: {GPU_REASON}",
    ]


def test_a_selection_from_another_prompt_is_no_cell() -> None:
    control = line(number=0, values={"perplexity": 9.0}, control="cross_domain")
    own = line(number=0, values={"perplexity": 2.0}, options={"rows": "per_row"})
    assert samples(table(own, control), "perplexity") == [2.0]


def test_controls_of_older_commits_are_told_too() -> None:
    """Until version 2 of a record they stood beside the case and among the method's options."""

    def older(text: str, control: bool, **options: str) -> str:
        read = json.loads(text)
        del read["case"]["control"], read["case"]["layer_sparsity_from"], read["inputs"]
        return json.dumps(read | {"version": 2, "control": control, "case": read["case"] | {"options": options}})

    own, other = (line(DENSE, {"decode_ms": [ms], "prefill_ms": [ms]}) for ms in (10.0, 11.0))
    quality = line(values={"perplexity": 9.0})
    found = table(older(own, False), older(other, True), older(quality, False, selection_from="another kind"))
    assert {(method, control) for _, method, _, control in found["cells"]} == {("dense", False), ("dense", True)}
    assert samples(found, "decode_ms", DENSE) == [10.0]


def test_an_unfinished_line_is_skipped() -> None:
    whole = line(values={"decode_ms": 4.0})
    assert samples(table(whole[:80], whole, ""), "decode_ms") == [4.0]


def test_the_whole_grid() -> None:
    assert suite.Grid().track_seconds(table()) == 12.5
    with pytest.raises(RuntimeError, match="gone"):
        suite.Grid().track_seconds(table(stopped="gone"))


# The grid.


@pytest.mark.parametrize("preset", list(PRESETS), ids=lambda name: f"preset {name}")  # an id "gpu" is a mark
def test_the_grid_is_the_presets(preset: str) -> None:
    plan, cells = plan_of(BenchConfig.of({"preset": preset, "budget": "none"})), grid.planned(preset)
    assert {tuple(cell[:2]) for cell in cells["scored"]} == {
        (subject.model, method)
        for subject in plan.subjects
        if subject.quality and plan.documents
        for method in unasked()
    }
    assert {tuple(cell[:2]) for cell in cells["timed"]} == {
        (subject.model, method) for subject in plan.subjects if subject.speed for method in plan.speed_methods
    }
    for _, method, sparsity in cells["scored"] + cells["timed"]:
        one = {"dense": [0], "int8": [None]}
        assert sparsity in one.get(method, plan.sparsities)


@pytest.mark.parametrize("preset", ["smoke", "default", "nightly"])
def test_one_model_of_the_grid_has_both_axes(preset: str) -> None:
    cells = grid.planned(preset)
    both = {model for model, *_ in cells["timed"]} & {model for model, *_ in cells["scored"]}
    assert {model.partition(":")[2].partition(":")[0] for model in both} == {"wide"}


def test_a_grid_is_made_anew_where_the_cache_is_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []

    def child(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        made.append(words[-1])
        return subprocess.CompletedProcess(words, 0, "{}", "")

    monkeypatch.setattr(grid, "KEPT", tmp_path / "grids")
    monkeypatch.setattr(subprocess, "run", child)
    assert grid.grid("smoke") == grid.grid("smoke") == {}
    assert made == ["smoke"]
    cores = tmp_path / "cores.py"
    cores.write_text("last_level_cache = allowed_cores = lambda *cores: None")
    monkeypatch.setattr(grid, "CORES", cores)
    grid.grid("smoke")
    assert made == ["smoke", "smoke"]


def test_the_suite_asks_for_its_grid() -> None:
    for kind, cells in ((suite.Speed, "timed"), (suite.Quality, "scored")):
        every = set(itertools.product(*kind.params))
        assert every - set(kind.skip_params) == {tuple(cell) for cell in suite.GRID[cells]}


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"TDA_PRESET: .*'smoke', 'default'.*'smoky'"):
        grid.planned("smoky")


def test_a_grid_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    monkeypatch.setattr(grid, "KEPT", tmp_path)
    with pytest.raises(ValueError, match=r"'smoke': .*No module named 'benchmarks"):
        grid.grid("smoke")
    assert not list(tmp_path.iterdir())


METHOD = '''
from dataclasses import dataclass
from typing import ClassVar
from tda.methods import METHODS
from tda.methods.magnitude import Magnitude

@METHODS.register("{name}")
@dataclass(frozen=True, kw_only=True)
class New(Magnitude):
    """A copy."""

    name: ClassVar[str] = "{name}"

    def keep(self, ffn, importance, thresholds):
        raise RuntimeError("planted")
'''


def copied(folder: Path) -> Path:
    """The tree's own files, as they are now."""
    for name, large in (("tda", ()), ("benchmarks", ("records",))):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", *large))
    for name in ("asv.conf.json", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_a_grid_is_made_once_for_a_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = copied(tmp_path) / "tda/methods/new.py"
    new.write_text(METHOD.format(name="new"))
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    monkeypatch.setattr(grid, "KEPT", tmp_path / ".asv/grids")
    made = grid.grid("smoke")
    assert [method for _, method, _ in made["scored"]].count("new") == 1
    monkeypatch.setattr(subprocess, "run", None)
    assert grid.grid("smoke") == made
    new.write_text(new.read_text() + "\n")
    with pytest.raises(TypeError, match="not callable"):
        grid.grid("smoke")


def test_reading_a_value_loads_nothing_heavy() -> None:
    """Each value is read in a process of its own."""
    script = (
        "import pkgutil, importlib, sys, benchmarks.asv as suite\n"
        "for found in pkgutil.iter_modules(suite.__path__, 'benchmarks.asv.'): importlib.import_module(found.name)\n"
        "print(*sys.modules)"
    )
    assert suite.GRID  # made by now
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "benchmarks.asv.machine" in done.stdout.split()
    assert not {"torch", "transformers", "pydantic", "pandas"} & set(done.stdout.split())


# The run in a child.

KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def ran(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> tuple[str | None, list[str]]:
    """Run with a package of the same name whose bench is this body; what stopped it, and the lines it left."""
    lines = ["from pathlib import Path", "def run_bench(folder, preset):", "    file = Path(folder) / 'results.jsonl'"]
    lines += ["    file.parent.mkdir(exist_ok=True)", "    done = file.read_text().split() if file.is_file() else []"]
    (folder / "tda.py").write_text("\n".join([*lines, *(f"    {part}" for part in body.splitlines())]))
    monkeypatch.chdir(folder)
    stopped = run.run(Path("records"), "smoke")
    results = folder / "records/results.jsonl"
    return stopped, results.read_text().split() if results.is_file() else []


def test_a_run_that_ends_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ran(monkeypatch, tmp_path, "file.write_text(preset)") == (None, ["smoke"])


def test_a_run_that_is_killed_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = f"file.write_text('x ' * (len(done) + 1))\nif len(done) < 3: {KILLED}"
    assert ran(monkeypatch, tmp_path, body) == (None, ["x"] * 4)


def test_a_run_that_is_killed_for_ever_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = f"if len(done) < 2: file.write_text('x ' * (len(done) + 1))\n{KILLED}"
    stopped, lines = ran(monkeypatch, tmp_path, body)
    assert "signal 9" in (stopped or "")
    assert lines == ["x"] * 2


def test_a_run_that_fails_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stopped, lines = ran(monkeypatch, tmp_path, "file.write_text('x ' * (len(done) + 1))\nraise ValueError('no model')")
    assert stopped is not None
    assert stopped.endswith("ValueError: no model")
    assert lines == ["x"]


def test_the_cache_is_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(folder: Path, preset: str) -> str:
        folder.mkdir()
        (folder / run.RESULTS).write_text(line(values={"decode_ms": 4.0}))
        return "ended early"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "run", measure)
    found = pickle.loads(pickle.dumps(suite.setup_cache()))
    assert samples(found, "decode_ms") == [4.0]
    assert found["stopped"] == "ended early"
    assert found["seconds"] >= 0


def test_a_run_that_measured_nothing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "run", lambda folder, preset: "no module named tda")
    with pytest.raises(RuntimeError, match="no module named tda"):
        suite.setup_cache()


# How asv takes it.


def as_asv(kind: type, name: str) -> TrackBenchmark:
    instance = kind()
    return TrackBenchmark(name, getattr(instance, name), [getattr(instance, name), instance, suite])


def test_asv_runner_is_the_pinned_one() -> None:
    """Samples from a track benchmark are undocumented: what follows holds of this version."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for name in ("asv", "asv_runner"):
        assert f"{name}=={importlib.metadata.version(name)}" in pins


@EACH
def test_asv_reads_the_benchmark(kind: type, name: str) -> None:
    benchmark = as_asv(kind, name)
    assert benchmark.version == suite.VERSION
    assert benchmark.unit != "unit"
    assert benchmark.timeout
    assert benchmark.setup_cache_timeout
    assert benchmark.benchmark_name == f"{suite.PRESET}.{kind.__name__}.{name}"
    assert benchmark.param_names == ["model", "method", "sparsity"]
    assert benchmark.check(str(ROOT / "benchmarks/asv"))


def test_all_benchmarks_share_one_run() -> None:
    assert len({as_asv(kind, name).setup_cache_key for kind, name in tracked()}) == 1


def test_asv_runner_takes_samples_nulls_and_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    ((model, *_), *_) = suite.Speed.params
    found = table(line((model, "dense", 0.0), SPEED, missing=dict.fromkeys(GPU, GPU_REASON)))
    answers = {}
    for kind, name in ((suite.Speed, "track_decode_ms"), (suite.Gpu, "track_idle_percent")):
        benchmark = as_asv(kind, name)
        benchmark.set_cache(found)
        for place, combination in enumerate(itertools.product(*kind.params)):
            benchmark.set_param_idx(place)
            if not benchmark.do_setup():
                try:
                    answers[name, *combination] = benchmark.do_run()
                except SkipNotImplemented:
                    answers[name, *combination] = math.nan
    dense = answers.pop(("track_decode_ms", model, "dense", 0.0))
    assert json.loads(json.dumps(dense)) == {"samples": [4.0], "number": 1}
    assert answers.pop(("track_idle_percent", model, "dense", 0.0)) is None
    assert answers
    assert all(math.isnan(answer) for answer in answers.values())


def test_asv_makes_median_and_interval_of_samples(tmp_path: Path) -> None:
    """Through asv's own runner script, as asv calls it, and into a results file and out of it again."""
    first = tuple(suite.GRID["timed"][0])
    found = table(
        *(line(first, {"decode_ms": value}, number=number) for number, value in enumerate((4.0, 5.0, 9.0), 1))
    )
    (tmp_path / "cache.pickle").write_bytes(pickle.dumps(found))
    script, answer = Path(asv.runner.BENCHMARK_RUN_SCRIPT), tmp_path / "answer.json"
    suite_dir, name = str(ROOT / "benchmarks/asv"), "smoke.Speed.track_decode_ms"
    command = [sys.executable, str(script), "run", suite_dir, f"{name}-0", "{}", "None", str(answer)]
    environ = {**os.environ, "TDA_PRESET": "smoke"}
    subprocess.run(command, cwd=tmp_path, check=True, env=environ)
    taken = json.loads(answer.read_text())
    assert taken == {"samples": [4.0, 5.0, 9.0], "number": 1}

    result = stored(tmp_path, name, [taken["samples"]])
    assert result.get_result_value(name, []) == [5.0]
    assert result.get_result_samples(name, []) == [[4.0, 5.0, 9.0]]
    (stats,) = result.get_result_stats(name, [])
    assert stats["ci_99_a"] < 5 < stats["ci_99_b"]


def stored(folder: Path, name: str, taken: list[Any], *, commit: str = "a" * 40, date: int = 0) -> Any:
    """A result as asv saves it and loads it again: samples, or a bare value, of one benchmark."""
    results = asv.results.Results({"machine": "m", "python": "3.11"}, {}, commit, date, "3.11", "env", {})
    lists = isinstance(taken[0], list)
    measured = asv.runner.BenchmarkResult(
        result=[True] if lists else taken, samples=taken if lists else [None], number=[1 if lists else None],
        errcode=0, stderr="", profile=None,
    )  # fmt: skip
    results.add_result({"name": name, "version": "1", "params": []}, measured, record_samples=True, duration=3.0)
    results.save(str(folder))
    return asv.results.Results.load(str(folder / "m" / f"{commit[:8]}-env.json"))


@pytest.mark.parametrize("values", [[0.0] * 8, [1e8] * 5, [5.0], [-3.0, 2.0, 0.0]])
def test_asv_takes_equal_single_and_negative_samples(values: list[float]) -> None:
    result, stats = compute_stats(values, 1)
    assert result == sorted(values)[len(values) // 2]
    assert stats["ci_99_a"] <= result <= stats["ci_99_b"]


# The configuration.


def test_the_configuration() -> None:
    assert json.loads((ROOT / "asv.conf.json").read_text()), "plain JSON, though asv would take comments"
    config = asv.config.Config.load(str(ROOT / "asv.conf.json"))
    assert config.branches == ["main"]
    assert config.environment_type == "virtualenv"
    assert config.results_dir == "results/history/asv"
    assert (ROOT / config.benchmark_dir / "__init__.py").is_file()
    commands = [*config.build_command, *config.install_command]
    assert not re.search(r"[=<>~]=", " ".join(commands)), "versions stand in constraints.txt alone"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert config.project == project["name"]


def venv(folder: Path) -> Path:
    found = environment.packages(folder)
    (found / "torch").mkdir(parents=True)
    return found


def test_the_lender_is_an_active_environment_that_has_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "other"))
    own = venv(tmp_path / ".venv")
    assert environment.lender(tmp_path) == own
    active = venv(tmp_path / "other")
    assert environment.lender(tmp_path) == active


def test_the_lender_is_named_where_it_lacks_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    with pytest.raises(SystemExit, match=r"torch .*Python 3\.\d+ .*\.venv; `make asv`"):
        environment.lender(tmp_path)


def test_where_packages_lie() -> None:
    assert environment.packages(Path(sys.prefix)) == Path(sysconfig.get_path("purelib"))


# The machine's name.


def test_a_name_tells_what_makes_numbers_incomparable() -> None:
    assert machine.name_of(HOST) == "some-cpu-r-2.0-2-cores-2-threads-torch-2.13.0-cpu-transformers-5.24.0"
    with_gpu = HOST.model_copy(update={"gpu": "NVIDIA H100 80GB HBM3", "driver": "550.54.15"})
    assert "-nvidia-h100-80gb-hbm3-driver-550.54.15-" in machine.name_of(with_gpu)
    changes = [{"torch": "2.14.0"}, {"driver": "560.1"}, {"threads": 1}, {"cpu": "Other"}, {"transformers": "6.0"}]
    names = {machine.name_of(with_gpu.model_copy(update=change)) for change in changes}
    assert len(names | {machine.name_of(with_gpu)}) == len(changes) + 1


def test_asv_knows_the_machine_without_questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    name = machine.name_of(HOST)
    machine.register(name)
    known = asv.machine.Machine.load(machine_name=name, interactive=True)
    assert known.machine == name
    assert known.cpu
    assert known.os


# The estimate.


def test_a_grid_costs_what_it_cost_here(tmp_path: Path) -> None:
    name = "nightly.Grid.track_seconds"
    results = [
        stored(tmp_path, name, [600.0], commit="b" * 40, date=2),
        stored(tmp_path, name, [60.0], commit="c" * 40, date=1),
        stored(tmp_path, name, [None], commit="d" * 40, date=3),
        stored(tmp_path, "smoke.Grid.track_seconds", [6.0], commit="e" * 40, date=4),
    ]
    assert forecast_asv.past("nightly", results) == (603.0, "b" * 40)
    assert forecast_asv.past("paper", results) is None


def test_a_pilot_stands_for_all_cells() -> None:
    methods = [("dense", 0.0), *(("griffin", sparsity) for sparsity in (0.25, 0.5, 0.75))]
    timed = [["s", *cell] for cell in methods]
    cells = {"rounds": 7, "timed": timed, "scored": [["r", *cell] for cell in [*methods, ("random", 0.5)]]}

    def ran(model: str, method: str, number: int, seconds: float) -> dict[str, Any]:
        return {"case": {"model": model, "method": method}, "round": number, "seconds": seconds}

    quality = [ran("r", "dense", 0, 2.0), ran("r", "griffin", 0, 4.0), ran("r", "random", 0, 1.0)]
    memory = [ran("s", "dense", 0, 0.5), ran("s", "griffin", 0, 0.25)]
    control = ran("s", "dense", 1, 11.0)
    rounds = [ran("s", "dense", 1, 10.0), ran("s", "griffin", 1, 12.0), control]
    lines = [*quality, *memory, *rounds]
    wall = 8.0 + sum(line["seconds"] for line in lines)
    expected = 8.0 + (2 + 3 * 4 + 1) + (0.5 + 3 * 0.25) + 7 * (10 + 3 * 12 + 11)
    assert forecast.whole(wall, forecast_asv.pieces(cells, lines)) == expected


def test_every_value_that_asv_reads_is_counted() -> None:
    cells = {"timed": suite.GRID["timed"], "scored": suite.GRID["scored"]}
    found = [kind for kind in vars(suite).values() if isinstance(kind, type) and hasattr(kind, "params")]
    names = [(kind, name) for kind in found for name in vars(kind) if name.startswith("track_")]
    asked = sum(len(list(itertools.product(*kind.params))) for kind, _ in names)  # asv starts those it skips too
    assert forecast_asv.values(cells) == asked > 50


def test_the_estimate_says_what_it_rests_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forecast_asv, "RESULTS", tmp_path)
    monkeypatch.setattr(forecast_asv, "this", lambda: "m")
    monkeypatch.setattr(forecast_asv, "pilot", lambda preset, cells: 120.0)
    forecast_asv.main("smoke")
    first, second = capsys.readouterr().out.splitlines()
    assert re.search("smoke .*never measured.* pilot", first)
    assert re.search(r"smoke, .*2\.0 min, .*pilot", second)
    asv.results.util.write_json(str(tmp_path / "m" / "machine.json"), {"machine": "m"}, 1)
    stored(tmp_path, "smoke.Grid.track_seconds", [87.0])
    forecast_asv.main("smoke")
    assert re.fullmatch(r"smoke: .*1\.5 min, .* aaaaaaaaaa .*\n", capsys.readouterr().out)


# The lint of VERSION.


@pytest.fixture
def measuring(tmp_path: Path) -> Path:
    """A copy of the measuring code whose state is recorded."""
    for pattern in version_lint.MEASURING:
        for path in ROOT.glob(pattern):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    version_lint.record(tmp_path, None)
    assert version_lint.problem(tmp_path) is None
    return tmp_path


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    assert change(before) != before
    path.write_text(change(before))


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def raise_version(root: Path) -> None:
    edit(root / version_lint.SUITE, replaced(f'VERSION = "{suite.VERSION}"', 'VERSION = "next"'))


def test_what_measures_is_all_there() -> None:
    for pattern in version_lint.MEASURING:
        assert list(ROOT.glob(pattern)), f"{pattern} names nothing: did a file move?"


COSMETIC: Iterable[tuple[str, Callable[[str], str]]] = [
    ("tda/bench/measure.py", lambda text: "# A comment.\n" + text.replace("\n\n\n", "\n\n\n\n# Another.\n")),
    ("tda/bench/measure.py", replaced('"""Raw numbers of one case in one round.', '"""Other words.')),
    ("tda/bench/measure.py", replaced("WARM_UP_TOKENS = 3", "WARM_UP_TOKENS = (\n    3\n)")),
    ("tda/limits.py", replaced("STREAM_BYTES = 1 << 28", 'STREAM_BYTES = 1 << 28\n"""What it is."""')),
    ("benchmarks/asv/suite.py", replaced('"""The prompt\'s pass, statistic included."""', '"""Prefill."""')),
]


@pytest.mark.parametrize(("name", "change"), COSMETIC)
def test_a_cosmetic_edit_passes(measuring: Path, name: str, change: Callable[[str], str]) -> None:
    edit(measuring / name, change)
    assert version_lint.problem(measuring) is None


REAL: Iterable[tuple[str, str, str]] = [
    ("tda/bench/measure.py", "WARM_UP_TOKENS = 3", "WARM_UP_TOKENS = 4"),
    ("tda/bench/measure.py", "gc.collect()", "pass"),
    ("tda/device.py", "time.perf_counter_ns()", "time.monotonic_ns()"),
    ("tda/metrics/top1.py", "!=", "=="),
    ("tda/bench/presets.py", "prompt_tokens=64", "prompt_tokens=65"),
    ("benchmarks/asv/cells.py", "median(samples)", "fmean(samples)"),
    ("benchmarks/asv/suite.py", "100 - percent", "101 - percent"),
]


@pytest.mark.parametrize(("name", "old", "new"), REAL)
def test_a_real_edit_fails(measuring: Path, name: str, old: str, new: str) -> None:
    edit(measuring / name, replaced(old, new))
    assert "measuring code changed, and VERSION is still" in (version_lint.problem(measuring) or "")


def test_a_new_file_that_measures_fails(measuring: Path) -> None:
    (measuring / "tda/metrics/new.py").write_text("")
    assert version_lint.problem(measuring)


def test_raising_passes_once_recorded(measuring: Path) -> None:
    edit(measuring / "tda/bench/measure.py", replaced("WARM_UP_TOKENS = 3", "WARM_UP_TOKENS = 4"))
    raise_version(measuring)
    assert "VERSION 'next' of benchmarks/asv/suite.py is new" in (version_lint.problem(measuring) or "")
    version_lint.record(measuring, None)
    assert version_lint.problem(measuring) is None
    recorded = json.loads((measuring / version_lint.VERSIONS).read_text())
    assert [entry["reason"] for entries in recorded.values() for entry in entries] == ["first of its version"] * 2


def test_the_same_version_needs_a_reason(measuring: Path) -> None:
    edit(measuring / "tda/bench/measure.py", replaced("WARM_UP_TOKENS", "WARM_UP"))
    for reason in (None, ""):
        with pytest.raises(ValueError, match=r"raise it, or say with --reason"):
            version_lint.record(measuring, reason)
    version_lint.record(measuring, "a name")
    assert version_lint.problem(measuring) is None
    (entries,) = json.loads((measuring / version_lint.VERSIONS).read_text()).values()
    assert [entry["reason"] for entry in entries] == ["first of its version", "a name"]
    version_lint.record(measuring, "again")
    assert len(json.loads((measuring / version_lint.VERSIONS).read_text())[suite.VERSION]) == 2


def test_the_command(measuring: Path) -> None:
    (measuring / "tools").mkdir()
    shutil.copy(ROOT / "tools/version_lint.py", measuring / "tools")

    def lint(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools.version_lint", *words]
        return subprocess.run(command, cwd=measuring, capture_output=True, text=True)

    assert lint().returncode == 0
    edit(measuring / "tda/bench/measure.py", replaced("WARM_UP_TOKENS", "WARM_UP"))
    failed = lint()
    assert failed.returncode == 1
    assert "measuring code changed" in failed.stderr
    assert lint("--record").returncode == 1
    assert lint("--reason", "a name").returncode == 2
    assert lint("--record", "--reason", "a name").returncode == 0
    assert lint().returncode == 0


# The whole of it.

TINY = """

PRESETS["smoke"] = Plan(
    (_reference("swiglu", prompt_tokens=32, new_tokens=4, speed=True),),
    methods=("dense", "griffin", {methods}),
    sparsities=(0.5,),
    speed_methods=("dense", "griffin"),
    rounds=5,
    documents=5,
    calibration_documents=1,
)
"""


@pytest.mark.slow
def test_asv_measures_a_commit(tmp_path: Path) -> None:
    """The suite lies in the tree, the package in the commit: here the tree has one method more.

    One method of the commit fails, and one of the tree is unknown to it.
    """
    home, tree = tmp_path / "home", tmp_path / "tree"
    home.mkdir()
    tree.mkdir()
    copied(tree)
    presets = (tree / "tda/bench/presets.py").read_text()
    (tree / "tda/methods/failing.py").write_text(METHOD.format(name="failing"))
    (tree / "tda/bench/presets.py").write_text(presets + TINY.format(methods='"failing"'))
    environ = {**os.environ, "HOME": str(home), "VIRTUAL_ENV": sys.prefix, "TDA_PRESET": "smoke"}

    def call(*words: str, code: int = 0) -> str:
        done = subprocess.run(words, cwd=tree, env=environ, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    call("git", "init", "-q", "-b", "main")
    call("git", "add", ".")
    call("git", *identity, "commit", "-qm", "one")
    (tree / "tda/methods/later.py").write_text(METHOD.format(name="later"))
    (tree / "tda/bench/presets.py").write_text(presets + TINY.format(methods='"failing", "later"'))

    checked = call(sys.executable, "-m", "asv", "check")
    assert "No problems found." in checked
    assert "warning" not in checked.lower()
    name = call(sys.executable, "-m", "benchmarks.asv.machine").strip()
    asked = ("--bench", "decode|idle|perplexity|Grid", "--record-samples", "--machine", name, "HEAD")
    told = call(sys.executable, "-m", "asv", "run", *asked, code=2)  # a cell failed
    assert GPU_REASON in told

    (result,) = asv.results.iter_results(str(tree / "results/history/asv"))
    assert result.commit_hash == call("git", "rev-parse", "HEAD").strip()
    assert result.params["machine"] == name

    def cells(name: str, read: Callable[[str, Any], list[Any]]) -> dict[tuple[str, ...], Any]:
        params = result.get_result_params(name)
        combinations = itertools.product(*([value.strip("'") for value in axis] for axis in params))
        return dict(zip((where[1:] for where in combinations), read(name, params), strict=True))

    decode = cells("smoke.Speed.track_decode_ms", result.get_result_value)
    assert decode["griffin", "0.5"] > 0
    assert math.isnan(decode["griffin", "0.0"])
    assert len(cells("smoke.Speed.track_decode_to_dense", result.get_result_samples)["griffin", "0.5"]) == 5
    interval = cells("smoke.Speed.track_decode_ms", result.get_result_stats)["griffin", "0.5"]
    assert interval["ci_99_a"] < decode["griffin", "0.5"] < interval["ci_99_b"]

    perplexity = cells("smoke.Quality.track_perplexity", result.get_result_value)
    assert perplexity["griffin", "0.5"] > 1
    assert perplexity["failing", "0.5"] is None
    assert math.isnan(perplexity["later", "0.5"])
    assert cells("smoke.Gpu.track_idle_percent", result.get_result_value)["griffin", "0.5"] is None
    assert result.get_result_value("smoke.Grid.track_seconds", [])[0] > 0
