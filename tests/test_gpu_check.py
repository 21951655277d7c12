"""`make gpu-check`: its parts fail one by one, its table says all, and it needs torch, triton and what tda imports."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, pytest_collection_modifyitems

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import benches, packages, peer, suites, tell, tuning
from benchmarks.gpu_check.check import Outcome, run, why_not
from benchmarks.gpu_check.command import CommandResult
from benchmarks.gpu_check.figures import Figure, at_least, at_most
from benchmarks.gpu_check.parts import PARTS, Part
from benchmarks.gpu_check.setting import CheckSetting
from benchmarks.gpu_check.summary import Summary
from experiments.peers.job import PeerPlan, PeerReport, PeerRow, Served
from tda.records import MEASUREMENTS, Measurement, Record
from tda.results import append_lines
from tests import nights

ABSENT = (
    *("asv", "asv_runner", "ruptures", "hypothesis", "pytest_timeout", "pytest_benchmark", "check_jsonschema"),
    *("tensorboard", "torch_tb_profiler"),
)
WAIT_S = 300
"""For what comes at once, on a machine however loaded."""
MOST_FILES, MOST_BYTES = 8, 16 << 20


def played(how: str, name: str | None = None, **options: Any) -> Part:
    return Part(name or how, f"tests.played_parts:{how}", **{"limit_s": 60, **options})


def outcomes(*parts: Part, scratch: Path, **options: Any) -> dict[str, Outcome]:
    quiet: dict[str, Any] = {"dry": False, "say": lambda sentence: None, "after": lambda done: None}
    return {one.part: one for one in run(parts, scratch, **{**quiet, **options})}


class TestParts:
    def test_one_that_crashes_hangs_or_raises_costs_itself_alone(self, tmp_path: Path) -> None:
        found = outcomes(
            played("crashes"), played("hangs", limit_s=2), played("raises"), played("well"), scratch=tmp_path
        )
        assert {name: one.status for name, one in found.items()} == {
            "crashes": "crash",
            "hangs": "timeout",
            "raises": "error",
            "well": "ok",
        }
        assert found["crashes"].reason == "ended by SIGSEGV: launching"
        assert found["hangs"].reason == "no end after 2 s"
        assert found["raises"].reason == "ValueError: no device 'cuda'"
        for name in ("crashes", "raises", "well"):
            assert [figure.name for figure in found[name].figures] == ["step"], "what came before is lost"

    def test_one_that_hangs_takes_with_it_what_it_started(self, tmp_path: Path) -> None:
        outcomes(played("hangs", limit_s=4), scratch=tmp_path)
        begun = tmp_path / "hangs" / "pids"  # not where even an import takes longer
        assert not begun.exists() or all(_gone(int(pid)) for pid in begun.read_text().split())

    def test_one_that_lacks_a_package_is_skipped_by_name(self, tmp_path: Path) -> None:
        found = outcomes(played("well", packages=("no_such_package", "torch")), scratch=tmp_path)
        assert (found["well"].status, found["well"].reason) == ("skipped", "no_such_package is not installed")

    def test_one_that_needs_a_card_is_skipped_without(self, tmp_path: Path) -> None:
        found = outcomes(played("well", dry=False), scratch=tmp_path, dry=True)
        assert (found["well"].status, found["well"].reason) == ("skipped", "it needs a card")

    def test_one_that_no_longer_fits_is_not_begun(self, tmp_path: Path) -> None:
        assert why_not(played("well", limit_s=60), 29.4, dry=False) == "29 s are left, and it may take 60 s"
        assert why_not(played("well", limit_s=60), 30.0, dry=False) is None
        found = outcomes(played("well"), played("well", "later", limit_s=9000), scratch=tmp_path)
        assert [one.status for one in found.values()] == ["ok", "skipped"]

    def test_none_is_begun_without_the_machine(self, tmp_path: Path) -> None:
        found = outcomes(played("raises", gate=True), played("well"), scratch=tmp_path)
        assert (found["well"].status, found["well"].reason) == ("skipped", "the part raises failed")

    def test_are_told_of_after_each(self, tmp_path: Path) -> None:
        seen: list[int] = []
        outcomes(played("well"), played("raises"), scratch=tmp_path, after=lambda done: seen.append(len(done)))
        assert seen == [1, 2]

    def test_that_are_listed_exist_and_fit(self) -> None:
        for part in PARTS:
            module, _, function = part.call.partition(":")
            assert f"\ndef {function}(" in (ROOT / "benchmarks" / "gpu_check" / f"{module[1:]}.py").read_text()
        assert [part.name for part in PARTS if part.gate] == ["machine"] == [PARTS[0].name]
        worth = [part.name for part in PARTS]
        assert worth.index("kernels") < worth.index("methods") < worth.index("tune") < worth.index("bench")


class TestCommand:
    def check(self, tmp_path: Path, *parts: Part, dry: bool = False) -> tuple[int, str, dict[str, Any]]:
        code = command.check(list(parts), tmp_path / "out", dry=dry)
        table = (tmp_path / "out" / "summary.md").read_text()
        assert len(list((tmp_path / "out").iterdir())) <= MOST_FILES
        assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= MOST_BYTES
        return code, table, json.loads((tmp_path / "out" / "summary.json").read_text())

    def test_tells_each_figure_its_goal_and_how_it_came_out(self, tmp_path: Path) -> None:
        code, table, told = self.check(tmp_path, played("well"), played("short"), played("crashes"))
        assert code == 1
        assert "| well | step | 2 ms | at most 3 | holds |  |" in table
        assert "| short | speed-up | 1.24 | at least 1.3 | falls short | 1.24 [1.2, 1.28] / told |" in table
        assert "| short | width | - | at most 0.2 | not measured | 2 rounds |" in table
        assert "| short | bandwidth | 3030 GB/s | - | - |  |" in table
        assert "| crashes | - | - | - | crash | ended by SIGSEGV: launching |" in table
        assert "2 of 4 goals hold." in table
        assert "Short of their goals: short: speed-up; short: width." in table
        assert "Did not end well: crashes." in table
        (speedup, _, _) = told["parts"][1]["figures"]
        assert (speedup["value"], speedup["goal"], speedup["holds"]) == (1.24, "at least 1.3", False)

    def test_ends_well_where_all_holds(self, tmp_path: Path) -> None:
        code, table, _ = self.check(tmp_path, played("well"), played("well", "absent", packages=("no_such_package",)))
        assert code == 0
        assert "1 of 1 goals hold." in table
        assert "| absent | - | - | - | skipped | no_such_package is not installed |" in table

    def test_gives_no_verdict_in_a_dry_run(self, tmp_path: Path) -> None:
        code, table, told = self.check(tmp_path, played("short"), dry=True)
        assert code == 0
        assert {figure["holds"] for figure in told["parts"][0]["figures"]} == {None}
        assert "| short | speed-up | 1.24 | at least 1.3 | dry run |" in table
        assert "goals hold" not in table
        assert "a dry run on the CPU, whose figures say nothing about the goals" in table

    def test_archives_all_but_the_traces_for_which_there_is_no_room(self, tmp_path: Path) -> None:
        _, table, told = self.check(tmp_path, played("traces"), played("well"))
        with tarfile.open(tmp_path / "out" / "records.tar.gz") as archive:
            names = {name.removeprefix("gpu-check/") for name in archive.getnames() if name.startswith("gpu-check/")}
        assert {"traces/one/trace.pt.trace.json.gz", "traces/one/profile.json", "traces/other/profile.json"} < names
        assert {"well/results.jsonl", "well/log.txt", "well/figures.jsonl"} < names
        assert not any("inductor" in name for name in names)
        assert told["not_archived"] == ["traces/other/trace.pt.trace.json.gz"]
        assert "No room in the archive for: traces/other/trace.pt.trace.json.gz." in table

    def test_ctrl_c_ends_the_part_and_tells_of_what_there_is(self, tmp_path: Path) -> None:
        with self.started(tmp_path) as parent:
            part = _hanging(tmp_path)
            parent.send_signal(signal.SIGINT)
            assert parent.wait(WAIT_S) == 130
        table = (tmp_path / "out" / "summary.md").read_text()
        assert "| hangs | step | 2 ms | at most 3 | holds |  |" in table
        assert "| hangs | - | - | - | interrupted | Ctrl-C or SIGTERM |" in table
        assert "| well | - | - | - | skipped | the check was interrupted before |" in table
        assert all(_gone(pid) for pid in part)
        assert (tmp_path / "out" / "records.tar.gz").is_file()

    def test_a_part_dies_with_its_parent(self, tmp_path: Path) -> None:
        with self.started(tmp_path) as parent:
            part = _hanging(tmp_path)
            parent.send_signal(signal.SIGKILL)
        assert all(_gone(pid) for pid in part)

    def started(self, tmp_path: Path) -> subprocess.Popen[bytes]:
        """A check whose first part hangs, in a process that takes Ctrl-C though it is in the background."""
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from pathlib import Path; from benchmarks.gpu_check.__main__ import check\n"
            "from tests.test_gpu_check import played\n"
            "sys.exit(check([played('hangs', limit_s=600), played('well')], Path(sys.argv[1]), dry=False))"
        )
        (tmp_path / "scratch").mkdir()
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TMPDIR": str(tmp_path / "scratch")}
        return subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], cwd=tmp_path, env=environment)

    def test_says_at_once_what_tda_lacks(self, tmp_path: Path) -> None:
        done = self.without("pydantic", "pynvml", out=tmp_path)
        assert done.returncode == 2
        assert "tda imports what is not installed: pydantic, nvidia-ml-py" in done.stderr
        assert not (tmp_path / "out").exists()

    def test_loses_no_earlier_check(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "summary.json").write_text("{}")
        for out, reason in (("out", "holds an earlier check"), ("out/summary.json", "is a file")):
            words = [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--out", str(tmp_path / out)]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 2
            assert reason in done.stderr
        assert (tmp_path / "out" / "summary.json").read_text() == "{}"

    def test_needs_no_torch_itself(self) -> None:
        """A driver that takes the process with it must not take the table."""
        code = (
            "import sys; from benchmarks.gpu_check import __main__, archive, check, summary; import tda.cli.signals\n"
            "assert 'torch' not in sys.modules"
        )
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

    def without(self, *absent: str, out: Path) -> subprocess.CompletedProcess[str]:
        (out / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({absent}))")
        environment = {**os.environ, "PYTHONPATH": f"{out}:{ROOT}"}
        words = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out / "out")]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


def _hanging(folder: Path) -> list[int]:
    """The processes of the part that hangs, once it does."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        for place in folder.rglob("pids"):
            return [int(pid) for pid in place.read_text().split()]
        time.sleep(0.05)
    raise AssertionError("the part was not begun")


def _gone(pid: int) -> bool:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


TESTS = """
import os
import pytest

def test_good(): pass
def test_bad(): assert False
def test_left(): pytest.skip("no")
@pytest.fixture
def broken(): raise OSError("boom")
def test_broken(broken): pass
def test_crashes(): os.kill(os.getpid(), 9)
def test_never(): pass
"""


class TestSuites:
    def figures(self, folder: Path, code: str) -> dict[str, Figure]:
        (folder / "test_played.py").write_text(code)
        setting = CheckSetting(folder=folder, scratch=folder, dry=False, limit_s=WAIT_S)
        return {figure.name: figure for figure in suites.run_tests(setting, [str(folder / "test_played.py")])}

    def test_tell_what_failed_and_where_it_crashed(self, tmp_path: Path) -> None:
        passed, failed = self.figures(tmp_path, TESTS).values()
        assert (passed.value, passed.note) == (1, "1 skipped")
        assert (failed.value, failed.verdict) == (3, "falls short")
        assert failed.note.endswith(" -9; test_bad failed; test_broken failed; test_crashes crashed")

    def test_of_which_all_pass_hold(self, tmp_path: Path) -> None:
        passed, failed = self.figures(tmp_path, "def test_one(): pass\ndef test_two(): pass\n").values()
        assert [(one.value, one.verdict) for one in (passed, failed)] == [(2, "holds"), (0, "holds")]

    def test_that_cannot_be_collected_fall_short(self, tmp_path: Path) -> None:
        passed, failed = self.figures(tmp_path, "import no_such_package\n").values()
        assert (passed.verdict, failed.value, failed.verdict) == ("falls short", 1, "falls short")

    def test_cut_short_fall_short(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = [tell.StepLine(test="a.py::one", step=step, outcome="passed") for step in ("setup", "call", "teardown")]

        def slow(words: Sequence[str], **options: Any) -> None:
            append_lines(tmp_path / suites.LINES, [line.model_dump_json() for line in lines])
            raise subprocess.TimeoutExpired(words, options["timeout"])

        monkeypatch.setattr(subprocess, "run", slow)
        setting = CheckSetting(folder=tmp_path, scratch=tmp_path, dry=False, limit_s=75)
        passed, failed = suites.run_tests(setting, [])
        assert (passed.value, failed.value, failed.verdict) == (1, 1, "falls short")
        assert re.search(r"\b(69|70) s", failed.note)

    def test_a_test_that_passed_its_setup_alone_crashed(self) -> None:
        lines = [tell.StepLine(test="one", step="start"), tell.StepLine(test="one", step="setup", outcome="passed")]
        assert tell.outcomes(lines) == {"one": "crashed"}

    @pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kernels", "all"])
    def test_are_found_where_no_extra_is_installed(self, tmp_path: Path, more: bool) -> None:
        if shutil.which("make") is None:
            pytest.skip("there is no make here")
        (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))")
        python = f"env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH={tmp_path}:. {sys.executable}"
        words = ["DRY_RUN=1", f"GPU_PYTHON={python}", f"GPU_OUT={tmp_path / 'out'}"]
        told = subprocess.run(
            ["make", "--no-print-directory", "-n", "gpu-check", *words], cwd=ROOT, capture_output=True, text=True
        )
        parts = " --part kernels" + " --part methods" * more
        done = subprocess.run(told.stdout.strip() + parts, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found = {part["part"]: part for part in json.loads((tmp_path / "out" / "summary.json").read_text())["parts"]}
        assert found["kernels"]["figures"][0]["value"] > 100
        if not more:
            return
        with tarfile.open(tmp_path / "out" / "records.tar.gz") as archive:
            log = archive.extractfile("gpu-check/methods/log.txt")
            assert log is not None
            collected = log.read().decode()
        marked = [
            path.name for path in (ROOT / "tests").glob("test_*.py") if "pytest." + "mark.gpu" in path.read_text()
        ]
        assert [name for name in marked if f"{name}::" not in collected] == ["test_triton.py"]


def test_what_tda_imports_is_what_it_depends_on() -> None:
    needed = packages.imported_by_tda()
    assert {"torch", "transformers", "pydantic", "nvidia-ml-py"} <= set(needed)
    assert packages.lacking(needed) == []


def ms(name: str, *rounds: float) -> Measurement:
    kind = MEASUREMENTS[name]
    return Measurement(unit=kind.unit, better=kind.better, samples=rounds, groups=tuple(range(1, len(rounds) + 1)))


WIDEST = "widest interval of prefill, half of it over its value"


class TestBenches:
    def test_a_step_is_told_with_its_bandwidth_and_a_speed_up_with_its_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dense, griffin = (
            nights.record(method).model_copy(update={"measurements": measured})
            for method, measured in (
                ("dense", self.measured(9.0, 15e9)),
                ("griffin", self.measured(6.0, 9e9)),
            )
        )
        found = self.figures(tmp_path, monkeypatch, [dense, griffin])
        step = found["griffin 0.5: decode step"]
        assert (step.value, step.unit) == (pytest.approx(6.0), "ms")
        assert step.note.startswith("1500 GB/s; 0.5 [0.5, 0.5] ")
        faster = found["griffin 0.5: over our dense"]
        assert (faster.value, faster.verdict) == (pytest.approx(1.5), "holds")
        assert " 1.67" in faster.note
        assert [name for name in found if " over our " in name] == [faster.name]
        assert (found[WIDEST].verdict, found[WIDEST].value) == ("holds", pytest.approx(0.0))

    def figures(self, folder: Path, monkeypatch: pytest.MonkeyPatch, records: list[Record]) -> dict[str, Figure]:
        """What the preset tells of these records."""
        monkeypatch.setattr(benches, "run_tda", lambda *words: SimpleNamespace(seconds=1.0))
        monkeypatch.setattr(benches, "load", lambda out: SimpleNamespace(records=records, left_out=[]))
        monkeypatch.setattr(benches, "merge", lambda lines: lines)
        setting = CheckSetting(folder=folder, scratch=folder, dry=False, limit_s=WAIT_S)
        return {figure.name: figure for figure in benches.preset(setting)}

    def measured(self, step_ms: float, weights: float) -> dict[str, Measurement]:
        values = {"decode_ms": step_ms, "weight_bytes_per_token": weights, "bytes_per_token": weights}
        values |= {"stream_gb_per_s": 3000.0, "prefill_ms": 20.0}
        return {name: ms(name, *[value] * 5) for name, value in values.items()}

    def test_without_rounds_enough_a_width_is_not_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured = {**self.measured(9.0, 15e9), "prefill_ms": ms("prefill_ms", 20.0, 21.0)}
        record = nights.record("dense").model_copy(update={"measurements": measured})
        wide = self.figures(tmp_path, monkeypatch, [record])[WIDEST]
        assert (wide.value, wide.verdict) == (None, "not measured")


class TestPeers:
    def figures(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: dict[str, float | None]
    ) -> dict[str, Figure]:
        """What is told of contestants that take so long a step, or fail."""
        monkeypatch.setattr(peer, "machine", lambda device: nights.MACHINE)

        def serve(out: Path, plan: PeerPlan, contestants: Any, blocks: int, *, timeout_s: float) -> list[PeerRow]:
            (name,) = plan.contestants
            step = steps[name]
            fields: dict[str, Any] = {"status": "crash", "reason": "exit code -11"}
            if step is not None:
                served = Served(prefill_ms=30, decode_ms=step, generation_ms=900, tokens=(1, 2))
                report = PeerReport(served=(served,), settings={}, versions={}, load_s=5, warm_up_s=40)
                fields = {"status": "ok", "report": report}
            row = PeerRow(contestant=name, block=1, order=0, stream_gb_per_s=3000, started="now", seconds=60, **fields)
            return [row]

        monkeypatch.setattr(peer, "run", serve)
        monkeypatch.setattr(peer, "on_device", lambda contestants, device: (dict.fromkeys(steps), ["vllm is left out"]))
        setting = CheckSetting(folder=folder, scratch=folder, dry=False, limit_s=WAIT_S)
        return {figure.name: figure for figure in peer.peer(setting)}

    def test_our_dense_is_held_against_the_compiled_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        steps: dict[str, float | None] = {"tda dense": 8.0, "hf compiled": 10.0, "tda griffin .5": 6.0}
        found = self.figures(tmp_path, monkeypatch, steps)
        ratio = found["tda dense over hf compiled"]
        assert (ratio.value, ratio.verdict) == (pytest.approx(1.25), "holds")
        assert found["vllm"].note == "vllm is left out"
        assert [name for name in found if " over " in name] == ["tda dense over hf compiled"]

    def test_one_that_fails_is_told_and_the_goal_not_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.figures(tmp_path, monkeypatch, {"tda dense": 8.0, "hf compiled": None, "vllm": 7.0})
        assert found["hf compiled: decode step"].note == "crash: exit code -11"
        assert found["tda dense over hf compiled"].verdict == "not measured"
        assert found["tda dense over vllm"].value == pytest.approx(7 / 8)

    def test_one_for_which_no_time_is_left_is_not_begun(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peer, "LEAST_S", 2 * WAIT_S)
        found = self.figures(tmp_path, monkeypatch, {"tda dense": 8.0})
        assert found["tda dense: decode step"].note.startswith("not begun")


def test_what_was_tuned_is_a_row_a_kernel_and_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "kernel": "rows dense",
            "shape": "4096x4096",
            "kept_fractions": [],
            "chosen": "1 row",
            "gb_per_s": 1651.0,
            "default_gb_per_s": 1522.0,
            "candidates": [{"block": "1 row", "ms": 0.02, "gb_per_s": 1651.0}],
        },
        {"kernel": "down", "shape": [14336, 4096], "kept_fractions": [0.5, 0.25], "gb_per_s": [1463.0, 1155.0]},
    ]
    monkeypatch.setattr(tuning, "run_tda", lambda *words: CommandResult(0, json.dumps(rows), 55.0))
    setting = CheckSetting(folder=tmp_path, scratch=tmp_path, dry=False, limit_s=80)
    whole, dense, half, quarter = tuning.tune(setting)
    assert (whole.value, dense.name, dense.value) == (55.0, "rows dense 4096x4096", 1651.0)
    assert dense.note == "chosen: 1 row, of 1 candidates; untuned: 1522 GB/s"
    assert (half.name, half.value) == ("down 14336×4096, 0.5 kept", 1463.0)
    assert (quarter.name, quarter.value) == ("down 14336×4096, 0.25 kept", 1155.0)


def test_goals_are_bounds() -> None:
    assert at_least(1.3).holds(1.3)
    assert not at_least(1.3).holds(1.29)
    assert at_most(0.2).holds(0.2)
    assert not at_most(0.2).holds(0.21)
    assert str(at_most(0.02)) == "at most 0.02"


def test_a_machine_that_told_nothing_is_told_so() -> None:
    words = Summary("2026-01-01T00:00:00+00:00", False, [], {}).conditions()
    assert words.startswith("unknown machine, python ")
    assert "commit unknown" in words


@pytest.mark.slow
def test_a_dry_run_goes_through_every_part_that_needs_no_card(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    words = ["DRY_RUN=1", f"GPU_PYTHON={sys.executable}", f"GPU_OUT={tmp_path / 'out'}"]
    done = subprocess.run(
        ["make", "--no-print-directory", "gpu-check", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = list((tmp_path / "out").iterdir())
    assert len(files) <= MOST_FILES
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["dry_run"]
    parts = {part["part"]: part for part in told["parts"]}
    assert list(parts) == [part.name for part in PARTS]
    for part in PARTS:
        assert parts[part.name]["status"] == ("ok" if part.dry else "skipped"), parts[part.name]["reason"]
    figures = {(name, one["name"]): one for name, part in parts.items() for one in part["figures"]}
    for name in (
        ("bench", "griffin 0.5: over our dense"),
        ("prefill", "griffin: attached prefill over unattached"),
        ("peer", "tda dense over hf eager"),
        ("profile", "tda 0.5: share of the timed step by which its parts miss it"),
        ("batch", "batch 4, dense: decode step"),
        ("context", "context 128, griffin 0.5: over our dense"),
        ("telemetry", "counters read"),
    ):
        assert figures[name]["value"] is not None, name
    table = (tmp_path / "out" / "summary.md").read_text()
    assert done.stdout.strip().endswith(table.strip().splitlines()[-1])
    assert "| falls short |" not in table, "a CPU's figures are held against the goals of a card"


def test_a_folder_called_gpu_skips_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keywords of a test hold the names of the folders that it lies in."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    request.node.keywords["gpu"] = True
    pytest_collection_modifyitems([request.node])
    assert request.node.get_closest_marker("skip") is None
