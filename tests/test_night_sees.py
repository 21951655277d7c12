"""What a night saw it reports: failing methods, selection with faster decode, what it could not see, a lost build."""

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tda.changes.compare import CANNOT_TELL, Judged, unjudged
from tda.changes.detect import Pair
from tda.changes.floor import two_modes
from tda.history.findings import Alarms, Finding
from tda.nightly.alarms import raised_in, replay
from tda.nightly.config import load_decisions
from tda.nightly.data import NightData
from tda.nightly.detector import ChangeDetector
from tda.nightly.report import nightly_report
from tda.records import FAILURES, Failure, FailureKind, Record
from tests import nights
from tests.test_judge import CONFIG, Line, commits, findings, sure, units
from tests.test_night import Scene, records
from tests.test_night import scene as scene


def failing(record: Record) -> Record:
    """The same case, failed."""
    return record.model_copy(update={"status": "error", "reason": "TypeError: no such kernel", "measurements": {}})


# F1: a method that fails in every process.


def test_a_method_that_fails_in_every_process_is_an_alarm(scene: Scene) -> None:
    """It was silence: no finding, no alarm, and Griffin not named."""
    made = [scene.repository.commit("Begin", records())]
    dense, *others = records()
    broken = [dense, *(failing(one) if one.case.method == "griffin" else one for one in others)]
    made.append(scene.repository.commit("Breaks griffin", broken))
    made.append(scene.repository.commit("Nothing"))
    night = scene.night(since=made[0])
    assert night is not None
    (finding,) = [one for one in night.findings if one.split == "failure"]
    assert (finding.verdict, finding.commit, finding.good) == ("alarm", made[1], made[0])
    assert {case.method for case in finding.cases} == {"griffin"}
    assert "TypeError: no such kernel" in finding.sentence
    alarms = replay([night], load_decisions(Path("none")))[0]
    assert [one.finding.commit for one in raised_in(alarms, night.id)] == [made[1]]
    assert "griffin" in nightly_report(night, alarms, ())
    scene.repository.commit("Mends griffin", records())
    second = scene.night()
    assert second is not None
    (alarm,) = replay([night, second], ())[0].alarms
    assert (alarm.state, alarm.finding.commit) == ("fixed", made[1])


def test_a_commit_whose_every_process_fails_is_an_alarm(scene: Scene) -> None:
    made = [scene.repository.commit("Begin", records())]
    made.append(scene.repository.commit("Crashes", files={"tda/__init__.py": "raise RuntimeError('no')\n"}))
    night = scene.night(since=made[0])
    assert night is not None
    assert [one.split for one in night.findings if one.verdict == "alarm"] == ["failure"]
    assert "exit code 1" in night.findings[0].sentence


# How a case fails.

VERBS: dict[FailureKind, str] = {
    "host_memory": "Does not fit any more (host memory)",
    "gpu_memory": "Does not fit any more (GPU memory)",
    "crash": "Crashes",
    "hang": "Hangs",
    "timeout": "Does not end in its time any more",
    "error": "Fails",
}


def ended(record: Record, kind: FailureKind) -> Record:
    """The same case, failed in this way."""
    told = {"status": FAILURES[kind].status, "failure": Failure(kind=kind), "reason": "no room", "measurements": {}}
    return record.model_copy(update=told)


def judged(folder: Path, *ways: Mapping[str, FailureKind]) -> ChangeDetector:
    """A night of one commit for each of `ways`: how its methods fail."""
    listed = commits(len(ways))
    made = []
    for commit, way in zip(listed, ways, strict=True):
        held = [nights.record(method) for method in ("dense", "griffin", "tda")]
        held = [ended(one, way[one.case.method]) if one.case.method in way else one for one in held]
        made += [nights.unit(commit, held, block=block) for block in (1, 2)]
    night = nights.night(listed)
    return ChangeDetector(NightData(nights.history(folder, night, made), night, CONFIG, Line(listed)))


def failures(detector: ChangeDetector) -> list[Finding]:
    return [one for one in detector.findings() if one.split == "failure"]


@pytest.mark.parametrize("kind", VERBS)
def test_a_night_tells_how_a_case_fails_that_ran(kind: FailureKind, tmp_path: Path) -> None:
    detector = judged(tmp_path, {}, {"griffin": kind}, {})
    alarm, mended = failures(detector)
    assert (alarm.verdict, mended.verdict) == ("alarm", "improvement")
    assert alarm.sentence.startswith(f"{VERBS[kind]} at {commits(3)[1][:10]} (Commit 1), and ran at")
    assert "no room" in alarm.sentence
    assert detector.unmeasured() == ()


@pytest.mark.parametrize(
    ("kind", "why"), [("killed", "its process was killed from outside"), ("lost", "its worker was lost")]
)
def test_a_lost_worker_raises_no_alarm_and_is_told(kind: FailureKind, why: str, tmp_path: Path) -> None:
    detector = judged(tmp_path, {}, {"griffin": kind}, {})
    assert failures(detector) == []
    (told,) = detector.unmeasured()
    assert told.startswith("griffin")
    assert told.endswith(f"at {commits(3)[1][:10]} was not measured: {why}")


def test_a_failure_after_a_lost_worker_names_the_commit_where_it_ran(tmp_path: Path) -> None:
    ways = ({}, {"griffin": "lost"}, {"griffin": "gpu_memory"}, {"griffin": "lost"})
    (alarm,) = failures(judged(tmp_path, *ways))
    assert (alarm.good, alarm.commit) == (commits(4)[0], commits(4)[2])


def test_cases_that_fail_in_unlike_ways_are_told_apart(tmp_path: Path) -> None:
    found = failures(judged(tmp_path, {}, {"griffin": "gpu_memory", "tda": "crash"}))
    told = {one.sentence.split(" at ")[0]: [case.method for case in one.cases] for one in found}
    assert told == {VERBS["gpu_memory"]: ["griffin"], VERBS["crash"]: ["tda"]}


def test_a_night_notes_what_was_lost_with_a_worker(scene: Scene) -> None:
    made = [scene.repository.commit("Begin", records())]
    broken = [ended(one, "lost") if one.case.method == "griffin" else one for one in records()]
    scene.repository.commit("Nothing", broken)
    night = scene.night(since=made[0])
    assert night is not None
    assert [one for one in night.findings if one.split == "failure"] == []
    (note,) = night.notes
    assert "its worker was lost" in note
    assert "its worker was lost" in nightly_report(night, Alarms(), ())


# F2: selection twice as slow beside a faster decode.


@pytest.mark.parametrize(("decode", "select"), [(0.9, 2.0), (1.1, 0.5), (1.1, 2.0), (0.9, 1.09), (0.9, 0.5)])
def test_selection_that_moves_its_own_way_is_told_beside_decode(decode: float, select: float, tmp_path: Path) -> None:
    """Selection twice as slow beside everything 10% faster was swallowed."""

    def levels(number: int, method: str) -> dict[str, float]:
        return {"decode_ms": decode, "selection_ms": select} if number >= 4 else {}

    found = {(one.split, one.scope): one for one in sure(findings(tmp_path, 8, levels))}
    assert found.keys() == {("decode", "everything"), ("select", "method")}
    assert found["select", "method"].verdict == ("alarm" if select > 1 else "improvement")
    assert found["select", "method"].size == pytest.approx(select - 1, abs=0.1)


def test_selection_that_is_slower_as_everything_is_no_change_of_its_own(tmp_path: Path) -> None:
    def levels(number: int, method: str) -> dict[str, float]:
        return {"decode_ms": 1.2, "selection_ms": 1.2, "prefill_ms": 1.2} if number >= 4 else {}

    assert [one.split for one in sure(findings(tmp_path, 8, levels))].count("select") == 0


# F5: a baseline commit that no longer builds.


def test_an_anchor_that_no_longer_builds_is_replaced_and_named(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later night ended with the same error."""
    from tda.changes.builds import BuildFailedError, Builds

    made = [scene.repository.commit("Begin", records())]
    assert scene.night(since=made[0]) is not None
    whole = Builds.install

    def install(self: Builds, commit: str, copy: str = "commit"):  # type: ignore[no-untyped-def]
        if commit == made[0]:
            raise BuildFailedError("setuptools is too new")
        return whole(self, commit, copy)

    monkeypatch.setattr(Builds, "install", install)
    made += [scene.repository.commit("Next"), scene.repository.commit("Slower", records(6.6))]
    night = scene.night()
    assert night is not None
    assert night.finished
    assert night.baseline_commit == made[1]
    assert [one.commit for one in night.findings if one.verdict == "alarm"] == [made[2]]
    told = nightly_report(night, Alarms(), ())
    assert (
        f"The baseline commit {made[0][:10]} no longer builds (setuptools is too new); {made[1][:10]} takes its place"
        in told
    )
    monkeypatch.setattr(Builds, "install", lambda self, commit, copy="commit": install(self, made[0]))
    scene.repository.commit("Builds no more")
    blind = scene.night()
    assert blind is not None
    assert blind.finished
    assert blind.findings == ()


# F6: what could not be seen.


def test_a_night_says_what_it_could_not_have_seen(tmp_path: Path) -> None:
    night = nights.night(commits(4))
    history = nights.history(tmp_path, night, units(4, lambda number, method: {}))
    seen = ChangeDetector(NightData(history, night, CONFIG, Line(commits(4)))).seen()
    assert {one.split for one in seen} == {"decode", "prefill", "select", "memory"}
    assert all(one.floor is not None and 0 < one.floor < 0.5 for one in seen)
    told = nightly_report(night.model_copy(update={"seen": seen}), Alarms(), ())
    assert "Smallest change that this run could find" in told
    assert told.count("| griffin 0.5 on shape:25m | speed |") == 4


def pair_of_builds(blocks: int, factor: float = 1.0, noise: tuple[float, ...] = (0.99, 1.0, 1.01)) -> list:
    """Units of two builds and a control of the older, in so many blocks."""
    made = []
    for block in range(1, blocks + 1):
        for commit, role, level in (("a", "control", 1.0), ("a", "commit", 1.0), ("b", "commit", factor)):
            own = noise[(block * (3 if role == "control" else 7 if commit == "b" else 5)) % len(noise)]
            record = nights.record("griffin", decode_ms=8 * level * own)
            made.append(nights.unit(commit, [nights.record(), record], role=role, block=block))
    return made


def test_too_few_controls_cannot_tell() -> None:
    """+50% beside three control processes was "same", exit code 0."""
    held = pair_of_builds(6, 1.5)
    judged = Judged([one for one in held if one.role == "commit" or one.block < 4], Pair("b", "a"), "")
    verdicts = {row.verdict for key, row in judged.rows.items() if key.split == "decode"}
    assert verdicts == {CANNOT_TELL}
    assert any(sentence.startswith("cannot tell") for sentence in unjudged(judged.rows, judged.modes))
    whole = Judged(held, Pair("b", "a"), "")
    assert whole.is_worse
    assert "slower" in {row.verdict for key, row in whole.rows.items() if key.case.method == "griffin"}


# Two modes.


def test_two_modes_are_seen_and_one_is_not() -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    for seed in range(200):
        one = 40 * np.exp(draw.normal(0, 0.03, 12))
        other = (40 / 1.8) * np.exp(draw.normal(0, 0.03, 12))
        assert two_modes(one, other), seed
    alike = sum(two_modes(np.exp(draw.normal(0, 0.05, 12)), np.exp(draw.normal(0, 0.05, 12))) for _ in range(200))
    assert alike == 0
    tails = sum(two_modes(np.exp(0.03 * draw.standard_t(3, 24))) for _ in range(200))
    assert tails <= 2


# Seen to fail where a mend is undone, as the tests before them did not.


def test_what_noise_hides_is_cannot_tell(tmp_path: Path) -> None:
    draw = random.Random(0)
    night = nights.night(commits(4))
    made = []
    for number, role in ((0, "control"), *((number, "commit") for number in range(4))):
        for block in range(1, 9):
            one = nights.record("griffin", decode_ms=8 * np.exp(draw.gauss(0, 1.0)))
            made.append(nights.unit(commits(4)[number], [nights.record(), one], role=role, block=block))
    history = nights.history(tmp_path, night, made)
    seen = ChangeDetector(NightData(history, night, CONFIG, Line(commits(4)))).seen()
    (noisy,) = [one for one in seen if (one.split, one.case.method, one.relative) == ("decode", "griffin", False)]
    assert noisy.floor is None
    assert "cannot tell" in nightly_report(night.model_copy(update={"seen": seen}), Alarms(), ())
