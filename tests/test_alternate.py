"""Children of a measurement: what they give, how they fail, and that they never outlive or repeat what they should."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tda.bench.planning import only, plan_of
from tda.changes import alternate
from tda.changes.alternate import BenchmarkGrid, Runner, Task, block, design, measure
from tda.changes.builds import Build
from tda.config import BenchConfig
from tda.history.nights import Role, Unit
from tda.process import alone
from tests import nights

RECORDS = "".join(one.model_dump_json() + "\n" for one in (nights.record(), nights.record("griffin", decode_ms=6.0)))
WRITE = f"""
from pathlib import Path
def run_bench(out, **options):
    Path(out, "seen.txt").write_text(repr(sorted(options.items())))
    Path(out, "results.jsonl").write_text({RECORDS!r})
"""


def build(folder: Path, code: str, commit: str = "a" * 40) -> Build:
    """An installed package of this code."""
    site = folder / f"{commit[:4]}-site"
    (site / "tda").mkdir(parents=True)
    (site / "tda" / "__init__.py").write_text(code)
    return Build(commit, "commit", site)


def task(made: Build, number: int = 1, **options: object) -> Task:
    return Task(made, "commit", BenchmarkGrid("speed", BenchConfig.of(options)), "first", number, 0)


def run(folder: Path, code: str, timeout_s: float = 60.0, **options: object) -> Unit:
    return Runner("n1", folder / "work", timeout_s).run(task(build(folder, code), **options))


def test_a_good_process_gives_its_records(tmp_path: Path) -> None:
    unit = run(tmp_path, WRITE, models=["shape:25m"], rounds=3)
    assert (unit.status, unit.reason) == ("ok", None)
    assert [record.case.method for record in unit.records] == ["dense", "griffin"]
    assert (unit.night, unit.commit, unit.grid, unit.stage, unit.block, unit.order) == (
        *("n1", "a" * 40, "speed", "first"),
        *(1, 0),
    )
    assert seen(tmp_path) == {"models": ["shape:25m"], "rounds": 3}


def seen(folder: Path) -> dict[str, object]:
    """Options with which the build was called."""
    return dict(ast.literal_eval(next((folder / "work").rglob("seen.txt")).read_text()))


OLDER = WRITE.replace("(out, **options)", "(out, model=None, method=None, **options)").replace(
    "sorted(options.items())", "sorted({'model': model, 'method': method, **options}.items())"
)
"""A build of before version 0.2."""


def test_a_build_of_before_methods_had_options_is_asked_in_its_own_words(tmp_path: Path) -> None:
    unit = run(tmp_path, OLDER, models=["shape:25m"], methods=["griffin", "tda"], sparsities=[0.5], rounds=3)
    assert unit.status == "ok", unit.reason
    assert seen(tmp_path) == {"model": ["shape:25m"], "method": ["griffin", "tda"], "sparsity": [0.5], "rounds": 3}


def test_one_case_of_such_a_build_is_measured_too(tmp_path: Path) -> None:
    """As a bisection does: what every method does by itself is no option that somebody asked for."""
    config = BenchConfig(models=("shape:25m",), methods=("griffin", "tda"), sparsities=(0.5,))
    for case in plan_of(config).cases():
        unit = run(tmp_path / case.method, OLDER, **only(config, [case]).options())
        assert unit.status == "ok", unit.reason
        assert seen(tmp_path / case.method)["method"] == [case.method]
    assert seen(tmp_path / "tda")["sparsity"] == [0.5]


def test_an_option_that_such_a_build_does_not_know_is_named(tmp_path: Path) -> None:
    unit = run(tmp_path, OLDER, methods=["griffin:sparsity=0.5,rows=shared"])
    assert unit.status == "error"
    assert "this commit is older than options of methods: griffin:sparsity=0.5,rows=shared" in (unit.reason or "")


FAILURES = {
    "raises": (WRITE + "\nimport sys\nraise OSError('boom')", "error", "exit code 1: OSError: boom"),
    "is killed": ("import os\nos.kill(os.getpid(), 9)", "crash", "exit code -9: it said nothing"),
    "is too old": ("", "error", "older than the suite"),
    "measures nothing": ("def run_bench(out, **options): pass", "error", "it measured nothing"),
    "writes nothing sensible": (
        "from pathlib import Path\ndef run_bench(out, **o): Path(out, 'results.jsonl').write_text('{}')",
        "error",
        "line 1 skipped",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_process_is_a_unit_that_says_why(tmp_path: Path, failure: str) -> None:
    code, status, reason = FAILURES[failure]
    unit = run(tmp_path, code)
    assert unit.status == status
    assert reason in (unit.reason or "")


def test_a_process_of_another_build_is_refused(tmp_path: Path) -> None:
    empty = Build("a" * 40, "commit", tmp_path / "empty")
    empty.site.mkdir()
    unit = Runner("n1", tmp_path / "work").run(task(empty))
    assert unit.status == "error"
    assert "measured the wrong build" in (unit.reason or "") or "No module named" in (unit.reason or "")


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    unit = run(tmp_path, HANGS, timeout_s=1.5)
    assert (unit.status, unit.reason) == ("timeout", "no end after 2 s")
    begun = list((tmp_path / "work").rglob("pid"))  # none where even an import takes longer
    assert all(_ended(int(path.read_text())) for path in begun)


def test_what_a_killed_process_left_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    made = build(tmp_path, "def run_bench(out, **options): pass")
    out = tmp_path / "work" / f"{made.site.name}-speed"
    out.mkdir(parents=True)
    (out / "results.jsonl").write_text(RECORDS)
    (out / "running.json").write_text("{}")
    assert Runner("n1", tmp_path / "work").run(task(made)).reason == "it measured nothing"
    assert not (out / "running.json").exists()


WAIT_S = 300
"""For what comes at once, on a machine however loaded."""
PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from pathlib import Path
from tda.config import BenchConfig
from tda.changes.alternate import BenchmarkGrid, Runner, Task
from tda.changes.builds import Build
build = Build("a", "commit", Path(sys.argv[1]))
Runner("n1", Path(sys.argv[2])).run(Task(build, "commit", BenchmarkGrid("speed", BenchConfig()), "first", 1, 0))
"""
HANGS = """
import os, pathlib, time
def run_bench(out, **options):
    pathlib.Path("pid.part").write_text(str(os.getpid()))
    os.rename("pid.part", "pid")
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_child_ends_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    made = build(tmp_path, HANGS)
    words = [sys.executable, "-c", PARENT, str(made.site), str(tmp_path / "work")]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True) as parent:
        try:
            child = int(_appears(tmp_path / "work", "pid").read_text())
            os.kill(parent.pid, how)
            assert parent.wait(WAIT_S) != 0
        finally:
            parent.kill()
    assert _ended(child)


def _appears(folder: Path, name: str) -> Path:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = next(folder.rglob(name), None) if folder.is_dir() else None
        if found is not None:
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {name} in {folder}")


def _ended(process: int) -> bool:
    """Whether a process is gone, or a zombie that nobody waits for."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


# The design.

A, B, C = (Build(name * 40, "commit", Path(name)) for name in "abc")
BUILDS: list[tuple[Build, Role]] = [(A, "control"), (B, "commit"), (C, "commit")]


def names(tasks: Sequence[Task]) -> str:
    return "".join(one.build.commit[0] for one in tasks)


def test_blocks_go_forward_and_back() -> None:
    grid = BenchmarkGrid("speed", BenchConfig())
    tasks = list(design(BUILDS, grid, "first", 4))
    assert names(tasks) == "abccbaabccba"
    assert [one.order for one in tasks] == [0, 1, 2] * 4
    assert [one.block for one in tasks] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert {one.role for one in tasks if one.build is A} == {"control"}
    assert names(block(BUILDS, grid, "confirm", 2)) == "cba"


def test_a_grid_that_repeats_exactly_runs_once() -> None:
    assert names(list(design(BUILDS, BenchmarkGrid("quality", BenchConfig(), repeated=False), "first", 4))) == "abc"


# The loop.


class Played(Runner):
    """A runner without processes: some builds fail, some units are never reached."""

    def __init__(self, fails: str = "", stop_after: int = 99) -> None:
        super().__init__("n1", Path("work"))
        object.__setattr__(self, "fails", fails)
        object.__setattr__(self, "left", stop_after)
        object.__setattr__(self, "ran", [])

    def run(self, task: Task) -> Unit:
        if self.left == len(self.ran):
            raise KeyboardInterrupt
        self.ran.append(task)
        status = "crash" if task.build.commit[0] in self.fails else "ok"
        told = {"status": status, "role": task.role, "stage": task.stage, "block": task.block, "order": task.order}
        return nights.unit(task.build.commit, [], grid=task.grid.name, **told)


TASKS = list(design(BUILDS, BenchmarkGrid("speed", BenchConfig()), "first", 3))


def test_units_are_kept_as_they_end_and_an_interrupted_run_goes_on() -> None:
    kept: list[Unit] = []
    first, second = Played(stop_after=4), Played()
    with pytest.raises(KeyboardInterrupt):
        measure(TASKS, first, [], kept.append)
    assert names(first.ran) == "abcc"
    assert len(kept) == 4
    units = measure(TASKS, second, kept, kept.append)
    assert names(first.ran) + names(second.ran) == names(TASKS)
    assert [unit.place for unit in units] == [one.place for one in TASKS]
    third = Played()
    assert measure(TASKS, third, kept, kept.append) == units
    assert third.ran == []


def test_a_commit_that_fails_again_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    kept: list[Unit] = []
    runner = Played(fails="b")
    units = measure(TASKS, runner, [], kept.append)
    assert names(runner.ran) == "abccbaac"
    assert alternate.GIVE_UP == 2
    assert sum(unit.status == "crash" for unit in units) == 2
    assert len(units) == 8
    assert sum("crash" in sentence for sentence in caplog.messages) == 2
    again = Played(fails="b")
    measure(TASKS, again, kept, kept.append)  # failures of an earlier run count
    assert again.ran == []


def test_two_measurements_at_once_are_refused(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "work"),
        pytest.raises(ValueError, match="another measurement is running"),
        alone(tmp_path / "work"),
    ):
        pass
    with alone(tmp_path / "work"):
        pass
