"""A night from end to end over real commits of a fake package; killed anywhere, it ends with the same record."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tda.bench.planning import plan_for
from tda.changes.builds import Builds
from tda.history.findings import Alarms, Finding
from tda.history.nights import History, Night
from tda.history.profiles import PROFILES_FOLDER, ProfileStore
from tda.history.repository import Repository
from tda.logs import handled
from tda.nightly.alarms import raised_in, replay
from tda.nightly.config import Decision, load_config, load_decisions, write_settings
from tda.nightly.night import NightRun
from tda.nightly.publish import write_account
from tda.nightly.report import nightly_report
from tda.nightly.spare import SpareTime
from tda.profiler.records import KernelRow
from tda.records import Record
from tests import nights, planted, profiles

CONFIG = """
blocks = 4
confirm_blocks = 4
[[grids]]
name = "speed"
options = { preset = "smoke" }
[[grids]]
name = "quality"
repeated = false
options = { preset = "nightly" }
"""


def test_a_night_on_a_gpu_is_asked_for_what_runs_there() -> None:
    settings = load_config(Path(__file__).parents[1] / "benchmarks" / "nightly-gpu.toml")
    asked = {grid.name: {"budget": "none", **grid.options.options()} for grid in settings.grids}  # as `run_bench` does
    plans = {name: plan_for(one.pop("models"), one.pop("methods"), one) for name, one in asked.items()}
    assert {plan.device for plan in plans.values()} == {"cuda"}
    assert {plan.budget_s for plan in plans.values()} == {None}, "a slow process is not cut short"
    (speed,), (quality,) = plans["speed"].subjects, plans["quality"].subjects
    assert (speed.model, speed.quality, quality.quality) == ("shape:llama-3-8b", False, True)
    assert {method.name for method in plans["speed"].build()} == {"dense", "griffin", "tda", "cats", "tt"}


def records(griffin_ms: float = 6.0, nll: float = 3.0, digest: float = 1.0) -> list:
    return [nights.record("dense", nll=3.0), nights.record("griffin", decode_ms=griffin_ms, nll=nll, digest=digest)]


class Scene:
    """A repository, its settings, and nights over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = nights.FakeRepository(folder / "repository")
        self.config = folder / "nightly.toml"
        self.config.write_text(CONFIG)
        self.history = History(folder / "history")

    def night(self, since: str | None = None, **config) -> Night | None:  # type: ignore[no-untyped-def]
        settings = load_config(self.config).model_copy(update=config)
        run = NightRun(Repository(self.repository.folder), self.history, settings, self.folder / "work", since=since)
        return run.run()

    def ran(self) -> Counter[str]:
        """How often each build ran each grid."""
        return Counter((self.folder / "work" / "builds" / "ran.log").read_text().splitlines())


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(Builds, "build", nights.copy_build)
    return Scene(tmp_path)


def regression(scene: Scene) -> list[str]:
    """Five commits; the third makes Griffin 10% slower, the fourth changes its sets."""
    return [
        scene.repository.commit("Begin", records()),
        scene.repository.commit("Nothing"),
        scene.repository.commit("Slower", records(6.6)),
        scene.repository.commit("Other sets", records(6.6, 3.1, 2.0)),
        scene.repository.commit("Nothing again"),
    ]


def test_a_night_finds_what_changed(scene: Scene) -> None:
    made = regression(scene)
    night = scene.night(since=made[0])
    assert night is not None
    assert [commit.status for commit in night.commits] == ["measured"] * 5
    found = {(finding.verdict, finding.split, finding.commit, finding.good) for finding in night.findings}
    assert found == {("alarm", "decode", made[2], made[1]), ("alarm", "quality", made[3], made[2])}
    assert night.finished
    assert scene.night() is None  # nothing new


def test_commits_that_do_not_build_or_run_are_shown_as_such(scene: Scene) -> None:
    made = [
        scene.repository.commit("Begin", records()),
        scene.repository.commit("Does not build", files={"pyproject.toml": "[project\n"}),
        scene.repository.commit(
            "Crashes", files={"pyproject.toml": nights.PROJECT, "tda/__init__.py": "raise OSError('boom')"}
        ),
        scene.repository.commit("Runs again, slower", records(6.9), files={"tda/__init__.py": nights.FAKE}),
    ]
    night = scene.night(since=made[0])
    assert night is not None
    assert [commit.status for commit in night.commits] == ["measured", "build failed", "crashed", "measured"]
    assert [commit.parent for commit in night.commits] == [None, made[0], made[0], made[0]]
    assert "boom" in (night.commits[2].reason or "")
    assert night.commits[1].reason
    alarms = {(f.split, f.good, f.commit) for f in night.findings if f.verdict == "alarm"}
    assert alarms == {("decode", made[0], made[3]), ("failure", made[0], made[2])}
    assert [f.commit for f in night.findings if f.verdict == "improvement"] == [made[3]]  # it runs again
    told = nightly_report(night, Alarms(), [])
    assert "| build failed |" in told
    assert "| crashed |" in told


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["quality, block 1", "speed, block 2", "confirm speed, block 3"])
def test_killed_and_restarted_it_ends_the_same(tmp_path: Path, moment: str) -> None:
    """SIGKILL at three moments: the record is that of an undisturbed night, and no finished unit is paid twice."""
    calm, killed = Scene(tmp_path / "calm"), Scene(tmp_path / "killed")
    made = regression(calm)
    undisturbed = calm.night(since=made[0])
    again = regression(killed)
    command = [sys.executable, "-m", "tda.cli.main", "nightly", "--since", again[0], "--commit", again[-1]]
    command += ["--history", str(killed.history.folder), "--config", str(killed.config), "--out", str(tmp_path / "out")]
    command += ["--repo", str(killed.repository.folder), "--work", str(killed.folder / "work")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if moment in line:
                os.kill(first.pid, signal.SIGKILL)
                break
    before = killed.history.units(killed.history.nights()[0][0].id)[0]
    time.sleep(0.2)
    second = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert second.returncode == 1, second.stderr  # alarms
    night = killed.history.nights()[0][0]
    assert undisturbed is not None
    assert _told(night, again) == _told(undisturbed, made)
    assert len(killed.history.nights()[0]) == 1
    units = killed.history.units(night.id)[0]
    lines = (killed.history.folder / "nights" / f"{night.id}.jsonl").read_text().splitlines()
    assert len(lines) == len(units)
    assert {unit.place for unit in before} <= {unit.place for unit in units}
    extra = sum(killed.ran().values()) - sum(calm.ran().values())
    assert extra <= 1  # the one that was killed


def _told(night: Night, made: list[str]) -> list[tuple[object, ...]]:
    names = {commit: number for number, commit in enumerate(made)}
    statuses = [(names[commit.hash], commit.status) for commit in night.commits]
    return [
        *statuses,
        *((f.verdict, f.split, f.scope, f.cases, names[f.good], names[f.commit], f.size) for f in night.findings),
    ]


def test_interrupted_by_hand_it_goes_on(scene: Scene) -> None:
    made = regression(scene)

    def stop(record: logging.LogRecord) -> None:
        if "speed, block 2" in record.getMessage():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), handled("tda", stop):
        scene.night(since=made[0])
    held = len(scene.history.units(scene.history.nights()[0][0].id)[0])
    assert held
    scene.repository.commit("Merged meanwhile")
    night = scene.night()
    assert night is not None
    assert [commit.hash for commit in night.commits] == made  # the night that was begun
    after = scene.night()
    assert after is not None
    assert [commit.subject for commit in after.commits] == ["Nothing again", "Merged meanwhile"]


def test_a_time_cap_thins_and_later_nights_fill_in(scene: Scene) -> None:
    made = [scene.repository.commit("Begin", records())]
    assert scene.night(since=made[0])
    made += [scene.repository.commit(f"Nothing {number}") for number in range(3)]
    made += [scene.repository.commit("Slower", records(6.6))]
    made += [scene.repository.commit(f"Nothing more {number}") for number in range(3)]
    units = scene.history.units(scene.history.nights()[0][0].id)[0]
    each = sum(unit.seconds for unit in units) / len(units)
    cap = {
        "cap_minutes": each * 5 * 5 / 0.8 / 60 * 1.05
    }  # room for two commits beside control, baseline commit and base
    night = scene.night(**cap)
    assert night is not None
    measured = [commit.hash for commit in night.commits if commit.status == "measured"]
    assert measured[-1] == made[-1]
    assert any(commit.status == "skipped" for commit in night.commits)
    assert len(measured) < len(made)
    wide = next(finding for finding in night.findings if finding.verdict == "alarm")
    for _ in range(8):
        if scene.night() is None:
            break
    alarms, problems = replay(scene.history.nights()[0], [])
    assert not problems
    assert [(alarm.finding.good, alarm.finding.commit) for alarm in alarms.alarms] == [(made[3], made[4])], wide
    statuses = {
        commit.hash for night in scene.history.nights()[0] for commit in night.commits if commit.status == "measured"
    }
    assert statuses == set(made)


def test_extras_run_newest_first_and_once(scene: Scene) -> None:
    made = [scene.repository.commit("Begin", records()), scene.repository.commit("Nothing")]
    log = scene.folder / "extra.log"
    code = f"import sys, pathlib; open({str(log)!r}, 'a').write(sys.argv[1] + ' '); p = pathlib.Path(sys.argv[2]);"
    code += " p.parent.mkdir(exist_ok=True); p.touch()"
    scene.config.write_text(
        CONFIG + f'[[extras]]\nname = "mark"\nminutes = 1\nproduces = "{{history}}/extra/{{commit}}"\n'
        f'command = ["{{python}}", "-c", """{code}""", "{{commit}}", "{{history}}/extra/{{commit}}"]\n'
    )
    scene.night(since=made[0])
    assert log.read_text().split() == [made[1], made[0]]
    newer = scene.repository.commit("Nothing again")
    scene.night()
    assert log.read_text().split() == [made[1], made[0], newer]


PROFILES = """
import json
from tda.made import LINES

def run_profile(out, **options):
    folder = Path(__file__).parent
    with open(folder.parent.parent / "ran.log", "a") as log:
        log.write(folder.parent.name + " profile " + json.dumps(options, sort_keys=True) + "\\n")
    for number, line in enumerate(LINES):
        (Path(out) / str(number)).mkdir()
        (Path(out) / str(number) / "profile.json").write_text(line)
"""


def profiled(*extra: KernelRow) -> dict[str, str]:
    """Files of a commit whose Griffin does this beside what it always does."""
    made = [profiles.profile(machine=nights.MACHINE, dtype="float32")]
    made.append(profiles.profile("griffin", machine=nights.MACHINE, dtype="float32", extra=extra))
    lines = [one.model_dump_json() for one in made]
    return {"tda/__init__.py": nights.FAKE + PROFILES, "tda/made.py": f"LINES = {lines!r}\n"}


def slower_product(scene: Scene) -> list[str]:
    """Three commits; the second makes Griffin slower by a product more."""
    product = profiles.row("decode", "ffn", "aten::mm", "aten::mm", 0.9)
    return [
        scene.repository.commit("Begin", records(), files=profiled()),
        scene.repository.commit("Slower", records(6.6), files=profiled(product)),
        scene.repository.commit("Other sets", records(6.6, 3.1, 2.0)),
    ]


def test_an_alarm_is_explained_by_profiles(scene: Scene) -> None:
    made = slower_product(scene)
    night = scene.night(since=made[0], alarm_processes=2)
    assert night is not None
    assert {finding.split for finding in night.findings} == {"decode", "quality"}
    options = {"batch": 1, "device": "cpu", "dtype": "float32", "execution": "auto", "new_tokens": 16, "seed": 0,
               "methods": ["griffin:sparsity=0.5"], "models": ["shape:25m"], "prompt_tokens": 64}  # fmt: skip
    asked = {line for line in scene.ran() if " profile " in line}
    words = json.dumps(options, sort_keys=True)
    assert asked == {f"{commit}-commit profile {words}" for commit in made[:2]}, (
        "the alarm about quality is not profiled"
    )
    store = ProfileStore(scene.history.folder / PROFILES_FOLDER)
    units = store.units()[0]
    assert [(unit.commit, unit.block) for unit in units] == [(made[0], 1), (made[1], 1), (made[1], 2), (made[0], 2)]
    text = write_account(scene.history, scene.folder / "none.toml", scene.folder / "out").path.read_text()
    assert "Profiled, griffin 0.5 on shape:25m, 2 and 2 processes in turn:" in text
    assert "aten::mm in ffn appeared, which is 100% of it." in text
    assert "| decode | ffn | aten::mm | appeared | 0 → 0.9 | 100% |" in text


def test_a_night_that_is_stopped_while_it_profiles_goes_on(scene: Scene) -> None:
    made = slower_product(scene)

    def stop(record: logging.LogRecord) -> None:
        if "alarm, block 2" in record.getMessage():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), handled("tda", stop):
        scene.night(since=made[0], alarm_processes=2)
    assert scene.history.nights()[0][0].finished is None
    night = scene.night(alarm_processes=2)
    assert night is not None
    assert night.finished
    assert sum(count for line, count in scene.ran().items() if " profile " in line) == 4


def test_profiles_of_an_alarm_are_a_matter_of_settings_and_time(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tda.nightly")
    made = slower_product(scene)
    scene.night(since=made[0])
    assert not (scene.history.folder / PROFILES_FOLDER).exists()
    scene.repository.commit("Slower still", records(8.0, 3.1, 2.0))
    later = SpareTime.explain

    def at_the_cap(spare: SpareTime, night: Night) -> None:
        later(replace(spare, deadline=time.monotonic()), night)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpareTime, "explain", at_the_cap)
        scene.night(alarm_processes=2)
    assert any("no time left to profile what changed at" in sentence for sentence in caplog.messages)
    assert not (scene.history.folder / PROFILES_FOLDER).exists()


def test_commits_without_profiles_leave_an_alarm_as_it_is(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    made = regression(scene)
    night = scene.night(since=made[0], alarm_processes=1)
    assert night is not None
    assert night.finished
    assert any(f"{made[2][:10]}: it has no tda.run_profile" in sentence for sentence in caplog.messages)
    told = write_account(scene.history, scene.folder / "none.toml", scene.folder / "out")
    assert "Profiled" not in told.path.read_text()


def test_an_extra_knows_what_its_commit_is_compared_with(scene: Scene) -> None:
    made = [scene.repository.commit("Begin", records()), scene.repository.commit("Nothing")]
    scene.config.write_text(
        CONFIG + '[[extras]]\nname = "mark"\nminutes = 1\nproduces = "{history}/{parent}-{commit}"\n'
        'command = ["touch", "{history}/{parent}-{commit}"]\n'
    )
    scene.night(since=made[0])
    assert {path.name for path in scene.history.folder.glob("*-*")} == {f"{made[0]}-{made[0]}", f"{made[0]}-{made[1]}"}


def test_extras_wait_for_a_later_night_when_the_cap_is_near(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tda.nightly")
    first = scene.repository.commit("Begin", records())
    scene.config.write_text(
        CONFIG + '[[extras]]\nname = "long"\nminutes = 999\nproduces = "{history}/x"\ncommand = ["false"]\n'
    )
    scene.night(since=first)
    assert any("no time left for long" in sentence for sentence in caplog.messages)


def test_two_nights_at_once_are_refused(scene: Scene) -> None:
    first = scene.repository.commit("Begin", records())

    def again(record: logging.LogRecord) -> None:
        with pytest.raises(ValueError, match="another measurement is running"):
            scene.night(since=first)

    with handled("tda", again):
        scene.night(since=first)


def test_a_night_in_which_nothing_builds_ends(scene: Scene) -> None:
    first = scene.repository.commit("Begin", records(), files={"pyproject.toml": "[project\n"})
    night = scene.night(since=first)
    assert night is not None
    assert night.finished
    assert [commit.status for commit in night.commits] == ["build failed"]
    assert f"{first[:10]} no longer builds" in night.notes[0]
    assert not night.measured


def test_a_night_that_measures_nothing_fails_and_may_begin_elsewhere(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    """The settings, the history and the report are in the checkout, from wherever in it the command runs."""
    checkout = scene.repository.folder
    (checkout / "sub").mkdir()
    ignored = {".gitignore": "/results/\n/reports/\n/.cache/\n"}
    first = scene.repository.commit("Begin", records(), files={"pyproject.toml": "[project\n", **ignored})
    monkeypatch.chdir(checkout / "sub")
    code, _, err = command("nightly")
    assert code == 2
    assert "--init" in err
    (checkout / "benchmarks").mkdir()
    (checkout / "benchmarks" / "nightly.toml").write_text(CONFIG)
    assert command("nightly")[0] == 1
    assert command("nightly", "--check")[0] == 1
    assert f"{first[:10]}" in (checkout / "reports" / "out" / "nightly.md").read_text()
    second = scene.repository.commit("Mended", records(), files={"pyproject.toml": ""})
    assert command("nightly", "--since", "nonsense")[0] == 2
    assert command("nightly", "--since", second)[0] == 0
    assert command("nightly", "--check")[0] == 0
    night = History(checkout / "results" / "history").nights()[0][-1]
    assert (night.baseline_commit, night.measured) == (second, [second])
    scene.repository.commit("Nothing")
    code, _, err = command("nightly", "--since", first)
    assert code == 0
    assert "--since" in err


@pytest.mark.parametrize("folder", ["benchmarks", "profiles"])
def test_settings_to_begin_with_are_written_whole_or_not_at_all(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).write_text("a file")
    paths = tmp_path / "benchmarks" / "nightly.toml", tmp_path / "profiles" / "cases.toml"
    with pytest.raises(ValueError, match=folder):
        write_settings(*paths)
    assert not any(path.exists() for path in paths)
    (tmp_path / folder).unlink()
    (tmp_path / "profiles").mkdir(exist_ok=True)
    paths[1].symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"cases\.toml"):
        write_settings(*paths)


def test_old_units_are_thinned_and_accounts_stay(scene: Scene) -> None:
    made = regression(scene)
    scene.night(since=made[0])
    scene.repository.commit("Later")
    scene.night(keep_nights=1)
    old, new = scene.history.nights()[0]
    assert not scene.history.units(old.id)[0]
    assert scene.history.units(new.id)[0]
    assert old.findings


def test_damaged_files_are_named_and_skipped(scene: Scene) -> None:
    made = regression(scene)
    night = scene.night(since=made[0])
    assert night is not None
    folder = scene.history.folder / "nights"
    with open(folder / f"{night.id}.jsonl", "a") as file:
        file.write('{"night": "half a li\n')
    (folder / "2020-foreign.json").write_text("[]")
    told = write_account(scene.history, scene.folder / "none.toml", scene.folder / "out")
    assert any("line" in problem and "skipped" in problem for problem in told.problems)
    assert any("2020-foreign.json" in problem for problem in told.problems)
    text = told.path.read_text()
    assert "## Skipped" in text
    assert text.startswith(f"# Nightly run {night.id}: 2 alarms")


# Histories of before findings held cases.


def older(record: Record) -> dict[str, Any]:
    """A record as version 2 wrote it."""
    told = record.model_dump(mode="json", exclude={"inputs"}) | {"version": 2, "control": record.case.control == "a_a"}
    options = dict(record.case.options)
    if record.case.control == "cross_domain":
        options["selection_from"] = "another kind"
    if record.case.layer_sparsity_from is not None:
        options["layer_profile"] = record.case.layer_sparsity_from
    case = record.case.model_dump(mode="json", exclude={"control", "layer_sparsity_from"})
    return told | {"case": {**case, "options": options}}


OLDER = {
    "dense on shape:25m": nights.case(options={"dense_kernel": "own"}),
    "griffin 0.5 on shape:25m": nights.case("griffin", options={"rows": "per_row"}),
    "griffin 0.5 with another kind's selection on shape:25m": nights.case("griffin", control="cross_domain"),
    "tda 0.5 on shape:25m": nights.case("tda", layer_sparsity_from="ref:swiglu"),
    "tt on shape:25m": nights.case("tt", sparsity=None, options={"cett": 0.2}),
}
"""What nights called the cases of their units."""


def older_night(folder: Path, *labels: tuple[str, ...]) -> History:
    """A night with a finding about each of these, and its units, as they were written."""
    cases = (*OLDER.values(), nights.case(control="a_a"))
    unit = nights.unit("a" * 40, ()).model_dump(mode="json") | {"records": [older(nights.record(c)) for c in cases]}
    told = nights.night(["a" * 40]).model_dump(mode="json")
    told["findings"] = [finding().model_dump(mode="json", exclude={"grid"}) | {"cases": own} for own in labels]
    (folder / "nights").mkdir(parents=True)
    (folder / "nights" / "n1.json").write_text(json.dumps(told))
    (folder / "nights" / "n1.jsonl").write_text("{damaged\n" + json.dumps(unit) + "\n")
    return History(folder)


def test_labels_of_an_older_night_stand_for_the_cases_of_its_units(tmp_path: Path) -> None:
    (night,), problems = older_night(tmp_path, *((label,) for label in OLDER), tuple(OLDER)).nights()
    assert problems == []
    assert [one.cases for one in night.findings] == [*((case,) for case in OLDER.values()), tuple(OLDER.values())]
    assert [one.grid for one in night.findings] == [None] * 6
    assert night.findings[1].key == "73e72977f3", "what was decided about it holds"


def test_a_finding_whose_case_no_unit_tells_is_named_and_left_out(tmp_path: Path) -> None:
    kept = older_night(tmp_path, ("griffin 0.5 on shape:25m",), ("griffin 0.75 on shape:25m",))
    (night,), (problem,) = kept.nights()
    assert [one.cases for one in night.findings] == [(OLDER["griffin 0.5 on shape:25m"],)]
    assert "n1.json" in problem
    assert re.search(r"finding .*'griffin 0\.75 on shape:25m': Slower\.", problem)
    (tmp_path / "nights" / "n1.jsonl").unlink()  # as thinned
    (night,), problems = kept.nights()
    assert night.findings == ()
    assert len(problems) == 2


def test_what_an_older_night_found_is_mended_by_a_later_one(tmp_path: Path) -> None:
    (night,), _ = older_night(tmp_path, ("griffin 0.5 on shape:25m",)).nights()
    case = OLDER["griffin 0.5 on shape:25m"]
    later = finding(verdict="improvement", grid="speed", cases=(case,), good="c", commit="d", size=-0.1)
    assert state(night, told(later, name="n2")) == [("fixed", "b")]


def test_what_is_planted_fits_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of a night takes hours: that its edits find their places is known before."""
    monkeypatch.setattr(planted, "git", lambda folder, *words: "")
    plants = planted.history(planted.Sizes(1, 1, 1))
    assert len(planted.build(tmp_path / "repository", planted.Sizes(1, 1, 1), plants)) == len(plants) + 1


# Alarms.


def finding(**fields) -> Finding:  # type: ignore[no-untyped-def]
    told = {
        "verdict": "alarm",
        "split": "decode",
        "scope": "method",
        "shape": "step",
        "machine": "m",
        "cases": (nights.case("griffin"),),
        "good": "a",
        "commit": "b",
        "size": 0.1,
        "unit": "ratio",
        "night": "n1",
        "sentence": "Slower.",
        "reproduce": "tda compare a b",
    }
    return Finding(**{**told, **fields})


def told(*findings: Finding, name: str = "n1", commits: str = "abcdef") -> Night:
    stamped = tuple(one.model_copy(update={"night": name}) for one in findings)
    return nights.night(list(commits), id=name, findings=stamped)


def state(*past: Night, decisions: tuple[Decision, ...] = ()) -> list[tuple[str, str]]:
    return [(alarm.state, alarm.finding.commit) for alarm in replay(past, decisions)[0].alarms]


def test_alarm_life() -> None:
    begun = told(finding())
    assert state(begun) == [("open", "b")]
    mended = told(finding(verdict="improvement", good="c", commit="d", size=-0.09), name="n2")
    assert state(begun, mended) == [("fixed", "b")]
    alarm = replay([begun, mended], [])[0].alarms[0]
    assert (alarm.fixed_by, alarm.since) == ("d", "n2")
    back = told(finding(good="d", commit="e", night="n3"), name="n3")
    assert state(begun, mended, back) == [("reopened", "e"), ("fixed", "b")]


def test_a_small_or_foreign_improvement_fixes_nothing() -> None:
    begun = told(finding())
    small = told(finding(verdict="improvement", good="c", commit="d", size=-0.02), name="n2")
    other = told(
        finding(verdict="improvement", good="c", commit="d", size=-0.2, cases=(nights.case("tda"),)), name="n2"
    )
    machine = told(finding(verdict="improvement", good="c", commit="d", size=-0.2, machine="other"), name="n2")
    for night in (small, other, machine):
        assert state(begun, night) == [("open", "b")]


def test_decisions_are_committed_with_a_reason(tmp_path: Path) -> None:
    known = finding().key
    file = tmp_path / "decisions.toml"
    file.write_text(f'[[decision]]\nalarm = "{known}"\nstate = "accepted"\nreason = "checks cost that"\n')
    decisions = load_decisions(file)
    assert state(told(finding()), decisions=decisions) == [("accepted", "b")]
    alarms, unknown = replay([told(finding())], [*decisions, Decision(alarm="nope", state="acknowledged", reason="x")])
    assert not raised_in(alarms, "n1")
    assert unknown == ["no alarm 'nope' to be acknowledged"]
    file.write_text(f'[[decision]]\nalarm = "{known}"\nstate = "accepted"\nreason = ""\n')
    with pytest.raises(ValueError, match=r"decision\.0\.reason"):
        load_decisions(file)


def test_a_narrower_range_takes_the_place_of_a_wide_one() -> None:
    wide = told(finding(good="a", commit="e"))
    narrow = told(finding(good="c", commit="d", night="n2"), name="n2")
    assert state(wide, narrow) == [("open", "d")]
    beside = told(finding(good="e", commit="f", night="n2"), name="n2")
    assert sorted(state(wide, beside)) == [("open", "e"), ("open", "f")]


def test_hostile_subjects_break_no_page() -> None:
    commit = nights.night(["a"]).commits[0].model_copy(update={"subject": "<script>|`x` @everyone\n# Title"})
    night = nights.night(["a"]).model_copy(update={"commits": (commit,)})
    text = nightly_report(night, Alarms(), ["a | b"])
    assert "<script>" not in text
    assert "@everyone" not in text
    row = next(line for line in text.splitlines() if "Title" in line)
    assert row.count("|") - row.count("\\|") == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blocks = 2\n" + CONFIG.replace("blocks = 4\n", "", 1), "blocks: Input should be greater than or equal to 4"),
        ("this is no toml", "is no TOML"),
        (CONFIG + CONFIG[CONFIG.index("[[grids]]") :], "two grids have one name"),
        ("bloks = 4\n" + CONFIG, "bloks: Extra inputs"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "nightly.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(file)


def test_the_committed_settings_are_right() -> None:
    root = Path(__file__).resolve().parent.parent
    for name in ("benchmarks/nightly.toml", "experiments/nightly/proof.toml"):
        assert load_config(root / name).grids
