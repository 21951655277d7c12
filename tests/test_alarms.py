"""Alarms follow the level that the history ends on, whatever mended what in between."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda.cases import Case
from tda.history.findings import Alarm, Finding
from tda.history.nights import Night
from tda.nightly.alarms import raised_in, replay
from tda.nightly.config import Decision
from tda.nightly.publish import write_account
from tda.nightly.report import nightly_report
from tests.test_night import Scene, finding, records, told
from tests.test_night import scene as scene


def case(name: str) -> Case:
    return Case(model="m", method=name, sparsity=0.5, prompt_tokens=64, new_tokens=16)


def change(span: str, size: float | None, cases: str = "x", error: float = 0.0, **fields: object) -> Finding:
    """A finding after the first letter's commit, up to the second's; `error` is half of its interval, relative."""
    told = {"good": span[0], "commit": span[1], "size": size, "cases": tuple(map(case, cases))}
    told["verdict"] = "alarm" if size is None or size > 0 else "improvement"
    if error:
        told |= {"low": (1 + size) / (1 + error) - 1, "high": (1 + size) * (1 + error) - 1}
    return finding(**told | fields)


def quality(span: str, size: float | None, cases: str = "x", **fields: object) -> Finding:
    return change(span, size, cases, split="quality", unit="sets" if size is None else "nats/token", **fields)


def alarms(*past: Night, decisions: tuple[Decision, ...] = ()) -> dict[str, Alarm]:
    return {alarm.finding.commit: alarm for alarm in replay(past, decisions)[0].alarms}


def states(*past: Night, decisions: tuple[Decision, ...] = ()) -> dict[str, str]:
    return {commit: alarm.state for commit, alarm in alarms(*past, decisions=decisions).items()}


# One night.


def test_a_gain_before_an_alarm_does_not_mend_it() -> None:
    """Decode 6.0, 4.8, 6.24 ms: the gain is listed first or last, the alarm is open."""
    slower, faster = change("bc", 0.3), change("ab", -0.2)
    for night in (told(slower, faster), told(faster, slower)):
        assert states(night) == {"c": "open"}
        assert len(raised_in(replay([night], ())[0], "n1")) == 1


def test_a_night_that_ends_slower_fails(scene: Scene) -> None:
    made = [scene.repository.commit(str(ms), records(ms)) for ms in (6.0, 4.8, 6.24)]
    night = scene.night(since=made[0])
    assert night is not None
    assert [one.verdict for one in night.findings] == ["alarm", "improvement"]
    told = write_account(scene.history, scene.folder / "none.toml", scene.folder)
    assert [alarm.finding.commit for alarm in told.raised] == [made[2]]
    assert told.path.read_text().startswith(f"# Nightly run {night.id}: 1 alarm\n")


def test_up_back_and_up_again_is_an_alarm() -> None:
    night = told(change("ab", 0.3), change("cd", 0.3), change("bc", 1 / 1.3 - 1))
    assert states(night)["d"] == "reopened"
    assert [alarm.finding.commit for alarm in raised_in(replay([night], ())[0], "n1")] == ["d"]


@pytest.mark.parametrize("times", [1.02, 1.1, 2.0, 3.0, 10.0])
def test_what_is_given_back_is_fixed_at_every_size(times: float) -> None:
    assert states(told(change("ab", times - 1), change("cd", 1 / times - 1))) == {"b": "fixed"}


@pytest.mark.parametrize(("up", "down"), [(0.1, -0.05), (1.0, -0.25), (1.0, -0.45), (0.5, -0.3), (0.03, -0.015)])
def test_half_a_repair_leaves_the_alarm_open(up: float, down: float) -> None:
    assert states(told(change("ab", up, error=0.005), change("cd", down, error=0.005))) == {"b": "open"}


def test_what_remains_is_told() -> None:
    """10, 20, 15 ms."""
    night = told(change("ab", 1.0, sentence="Twice."), change("cd", -0.25))
    known = replay([night], ())[0]
    assert "+50.0% remains of +100.0%" in nightly_report(night, known, [])
    later = told(name="n2")
    assert "| Twice. +50.0% remains of +100.0%. |" in nightly_report(later, replay([night, later], ())[0], [])


def test_a_repair_is_held_against_its_uncertainty() -> None:
    """8% back of 10% is half a repair where both are sure to 0.5%, and a repair where they are sure to 3%."""
    for error, state in ((0.005, "open"), (0.03, "fixed")):
        assert states(told(change("ab", 0.1, error=error), change("cd", -0.073, error=error))) == {"b": state}
    unsure = told(change("ab", 0.1, error=0.09), change("cd", -0.03, error=0.09))
    assert states(unsure) == {"b": "open"}, "less than half is never a repair"


def test_a_gain_that_is_alike_in_some_cases_mends_those() -> None:
    begun, part, rest = change("ab", 0.1, "xy"), change("cd", -0.09, "x"), change("de", -0.09, "y")
    assert states(told(begun, part)) == {"b": "open"}
    assert states(told(begun, part, rest)) == {"b": "fixed"}
    assert alarms(told(begun, part, rest))["b"].fixed_by == "e"
    again = change("ef", 0.1, "y")
    assert states(told(begun, part, rest, again)) == {"b": "fixed", "f": "reopened"}


def test_the_smallest_change_is_a_setting() -> None:
    night = told(change("ab", 0.12), change("cd", -0.08))
    for smallest, state in ((0.01, "open"), (0.05, "fixed")):
        assert [alarm.state for alarm in replay([night], (), smallest)[0].alarms] == [state]


def test_a_scope_is_a_name_where_sizes_are_absolute() -> None:
    """Memory of all cases rose, and of all but one was given back."""
    begun = change("ab", 0.1, "xyz", split="memory", scope="everything")
    mended = change("cd", -0.09, "xy", split="memory"), change("de", -0.09, "z", split="memory")
    assert states(told(begun, mended[0])) == {"b": "open"}
    assert states(told(begun, *mended)) == {"b": "fixed"}


def test_a_gain_over_a_range_pays_for_nothing_within_it() -> None:
    """8% less before c, 5% more at c: the drift tells 3% less of both."""
    rise, drift = change("bc", 0.05), change("af", -0.03, shape="drift")
    assert states(told(rise, drift)) == {"c": "open"}
    assert alarms(told(rise, drift))["c"].remains is None


def test_splits_scopes_and_machines_mend_only_themselves() -> None:
    for other in ({"split": "prefill"}, {"scope": "dense"}, {"machine": "other"}):
        assert states(told(change("ab", 0.1), change("cd", -0.2, **other))) == {"b": "open"}


# Several nights.


def test_a_later_night_that_finds_an_alarm_again_raises_nothing() -> None:
    """Neighbours of what is filled in are measured again, after what mended them."""
    first = told(change("bc", 0.1), change("de", -0.09))
    again = told(change("bc", 0.11), name="n2")
    wide = told(change("bd", 0.1), name="n2", commits="bdf")
    for second in (again, wide):
        assert states(first, second) == {"c": "fixed"}
        assert not raised_in(replay([first, second], ())[0], "n2")
        assert states(told(change("bc", 0.1)), second) == {"c": "open"}


def test_a_step_within_a_known_drift_takes_nothing_from_it() -> None:
    drift = told(change("af", 0.1, shape="drift"))
    assert states(drift, told(change("cd", 0.03), name="n2")) == {"f": "open"}


def test_a_commit_measured_later_is_held_against_what_followed() -> None:
    """The gain at e mends an alarm at c that only a later night finds."""
    assert states(told(change("ef", -0.2)), told(change("bc", 0.1), name="n2")) == {"c": "fixed"}


def test_a_wide_range_stays_for_the_cases_that_no_narrow_one_names() -> None:
    wide, narrow = told(change("af", 0.1, "xy")), told(change("cd", 0.1, "x"), name="n2")
    assert states(wide, narrow) == {"d": "open", "f": "open"}
    assert states(wide, narrow, told(change("de", 0.1, "y"), name="n3")) == {"d": "open", "e": "open"}


# Quality.


def test_quality_is_added_up() -> None:
    begun = quality("ab", 0.05)
    assert states(told(begun, quality("cd", -0.01))) == {"b": "open"}
    assert states(told(begun, quality("cd", -0.03), quality("de", -0.02))) == {"b": "fixed"}
    assert states(told(begun, quality("cd", -0.01), quality("de", -0.05))) == {"b": "fixed"}


def test_changed_sets_are_not_mended_by_better_text() -> None:
    assert states(told(quality("ab", None), quality("cd", -0.05))) == {"b": "open"}


# Decisions.


def test_an_accepted_alarm_is_the_new_baseline() -> None:
    """What it cost is no longer owed: a later alarm is mended without it, and it is not owed by an earlier one."""
    costly = change("bc", 0.1)
    accepted = (Decision(alarm=costly.key, state="accepted", reason="checks cost that"),)
    night = told(change("ab", 0.2), costly, change("cd", 1 / 1.2 - 1))
    assert states(night, decisions=accepted) == {"b": "fixed", "c": "accepted"}
    assert states(told(costly, change("cd", 0.05), change("de", -0.09)), decisions=accepted) == {
        "c": "accepted",
        "d": "fixed",
    }


def test_an_acknowledged_alarm_is_mended_like_an_open_one() -> None:
    begun = change("ab", 0.1)
    known = (Decision(alarm=begun.key, state="acknowledged", reason="being looked at"),)
    assert states(told(begun, change("cd", -0.05)), decisions=known) == {"b": "acknowledged"}
    assert states(told(begun, change("cd", -0.09)), decisions=known) == {"b": "fixed"}


# Any history.

COMMITS = "abcdefgh"
STEP = 0.05
"""What levels are multiples of, as logarithms."""
Levels = dict[str, list[int]]
"""Level of each case at each commit."""
any_levels = st.fixed_dictionaries({case: st.lists(st.integers(-2, 2), min_size=8, max_size=8) for case in "xy"})


def changes(levels: Levels, commits: str = COMMITS) -> list[Finding]:
    """What a night finds that measures these commits: what moved alike is one finding."""
    found = []
    for good, commit in itertools.pairwise(commits):
        moved = {x: at[COMMITS.index(commit)] - at[COMMITS.index(good)] for x, at in levels.items()}
        for steps in sorted({*moved.values()} - {0}):
            alike = "".join(x for x in moved if moved[x] == steps)
            found.append(change(good + commit, math.expm1(STEP * steps), alike))
    return found


def outcome(*past: Night) -> dict[str, tuple[object, ...]]:
    """What became of each alarm, without the nights in which it did."""
    made = replay(past, ())[0].alarms
    return {a.id: (a.state, a.fixed_by, a.remains and round(a.remains, 9)) for a in made}


@given(any_levels)
def test_an_alarm_is_open_while_the_level_has_not_been_back(levels: Levels) -> None:
    """In one of its cases, all levels since its commit lie above the one before; the least of them is what remains."""
    for alarm in replay([told(*changes(levels), commits=COMMITS)], ())[0].alarms:
        at = COMMITS.index(alarm.finding.commit)
        left = max(min(levels[x][at:]) - levels[x][at - 1] for x in "xy" if case(x) in alarm.finding.cases)
        assert (alarm.state == "fixed") == (left <= 0)
        remains = alarm.finding.size if alarm.remains is None else alarm.remains
        assert left <= 0 or remains == pytest.approx(math.expm1(STEP * left))


@given(st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=8))
def test_steps_that_no_night_sees_blur_it_by_no_more_than_they_are(steps: list[float]) -> None:
    at = [0.0]
    for step in steps:
        at.append(at[-1] + step)
    commits = "abcdefghi"[: len(at)]
    seen = [change(commits[n : n + 2], math.expm1(step)) for n, step in enumerate(steps) if abs(step) >= 0.01]
    unseen = sum(abs(step) for step in steps if abs(step) < 0.01)
    for alarm in replay([told(*seen, commits=commits)], ())[0].alarms:
        place = commits.index(alarm.finding.commit)
        left = min(at[place:]) - at[place - 1]
        if not -unseen <= left <= 0.01 + unseen:
            assert (alarm.state == "fixed") == (left < 0)


@given(st.lists(st.integers(-2, 2), min_size=8, max_size=8))
def test_what_remains_adds_up_to_the_level(level: list[int]) -> None:
    """All that the history ends above its lowest level is told."""
    made = replay([told(*changes({"x": level}), commits=COMMITS)], ())[0].alarms
    left = [a.finding.size if a.remains is None else a.remains for a in made if a.state != "fixed"]
    assert sum(map(math.log1p, left)) == pytest.approx(STEP * (level[-1] - min(level)))


@given(any_levels, st.data())
def test_neither_listing_nor_nights_matter(levels: Levels, data: st.DataObject) -> None:
    """One night, findings listed anyhow, two nights one after the other, and each finding in any of three nights."""
    found = changes(levels)
    whole = outcome(told(*found, commits=COMMITS))
    assert outcome(told(*data.draw(st.permutations(found)), commits=COMMITS)) == whole
    cut = data.draw(st.integers(0, 7))
    first = [one for one in found if COMMITS.index(one.commit) <= cut]
    rest = told(*found[len(first) :], name="n2", commits=COMMITS[cut:])
    assert outcome(told(*first, commits=COMMITS[: cut + 1]), rest) == whole
    nights = [data.draw(st.integers(1, 3)) for _ in found]
    apart = (
        told(*(one for one, at in zip(found, nights, strict=True) if at == night), name=f"n{night}", commits=COMMITS)
        for night in (1, 2, 3)
    )
    assert outcome(*apart) == whole


@given(any_levels, st.sets(st.sampled_from(COMMITS[1:-1])))
def test_commits_that_are_filled_in_end_as_if_measured_at_once(levels: Levels, left_out: set[str]) -> None:
    thin = "".join(commit for commit in COMMITS if commit not in left_out)
    first = told(*changes(levels, thin), commits=thin)
    later = told(*changes(levels), name="n2", commits=COMMITS)
    assert outcome(first, later) == outcome(told(*changes(levels), commits=COMMITS))
