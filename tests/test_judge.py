"""The judgement of a night, on units with planted values and noise: right commit, right name, nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tda.cases import Inputs
from tda.changes import detect, drift
from tda.changes.effects import effect, holm, prior, resolution
from tda.changes.series import Blocks, Key, numbers
from tda.history.findings import Finding
from tda.history.repository import CommitFacts, Repository
from tda.nightly.alarms import replay
from tda.nightly.config import GridConfig, NightlyConfig
from tda.nightly.data import NightData
from tda.nightly.detector import ChangeDetector
from tests import nights

BLOCKS = 8
CONFIG = NightlyConfig(
    grids=(
        GridConfig(name="speed", options={"preset": "smoke", "models": ["shape:25m"], "methods": ["griffin", "tda"]}),
        GridConfig(name="quality", repeated=False, options={"preset": "smoke", "models": ["ref:swiglu"]}),
    )
)
METHODS = ("dense", "griffin", "tda")
Levels = Callable[[int, str], dict[str, float]]
"""Factors on the usual levels, by number of the commit and method."""


class Line(Repository):
    """A repository of numbered commits in one line."""

    def __init__(self, commits: list[str]) -> None:
        self.commits = commits

    def between(self, older: str | None, newest: str) -> list[str]:
        return self.commits[: self.commits.index(newest) + 1]

    def facts(self, commit: str) -> CommitFacts:
        return CommitFacts(commit, "2026-01-01T00:00:00+00:00", f"Commit {self.commits.index(commit)}")


def commits(count: int) -> list[str]:
    return [f"{number:040x}" for number in range(count)]


def nothing(number: int, method: str) -> dict[str, float]:
    return {}


def units(count: int, levels: Levels, seed: int = 0, **quality: Callable[[int, str], float]) -> list:
    """Units of all stages: 1% noise a process, 1% a block, and a burst of 30% now and then."""
    draw = np.random.default_rng(seed)
    made = []
    builds = [(0, "control"), *((number, "commit") for number in range(count))]
    for stage in ("first", "confirm"):
        for block in range(1, BLOCKS + 1):
            common = draw.normal(0, 0.01)
            for number, role in builds:
                burst = 0.3 * draw.random() if draw.random() < 0.03 else 0.0
                records = []
                for method in METHODS:
                    factors = levels(number, method)
                    values = {
                        name: level * factors.get(name, 1.0) * np.exp(common + burst + draw.normal(0, 0.01))
                        for name, level in nights.LEVELS.items()
                    }
                    records.append(nights.record(method, **values))
                made.append(nights.unit(commits(count)[number], records, role=role, stage=stage, block=block))
    for number in range(count):
        records = [
            nights.record(m, model="ref:swiglu", nll=quality["nll"](number, m), digest=quality["digest"](number, m))
            for m in METHODS
            if quality
        ]
        if records:
            made.append(nights.unit(commits(count)[number], records, grid="quality"))
    return made


def findings(folder: Path, count: int, levels: Levels = nothing, **more: object) -> list[Finding]:
    night = nights.night(commits(count))
    history = nights.history(folder, night, units(count, levels, **more))
    return list(ChangeDetector(NightData(history, night, CONFIG, Line(commits(count)))).findings())


def sure(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.verdict != "warning"]


def place(finding: Finding) -> int:
    return int(finding.commit, 16)


def only(found: list[Finding]) -> Finding:
    assert len(sure(found)) == 1, [finding.sentence for finding in found]
    return sure(found)[0]


def test_no_change_finds_nothing(tmp_path: Path) -> None:
    for seed in range(5):
        assert not sure(findings(tmp_path / str(seed), 10, seed=seed))


def test_one_method_slower(tmp_path: Path) -> None:
    finding = only(findings(tmp_path, 8, lambda n, m: {"decode_ms": 1.1} if n >= 4 and m == "griffin" else {}))
    assert (finding.verdict, finding.split, finding.scope, finding.shape) == ("alarm", "decode", "method", "step")
    assert place(finding) == 4
    assert int(finding.good, 16) == 3
    assert finding.cases == (nights.case("griffin"),)
    assert finding.low is not None
    assert finding.high is not None
    assert finding.size is not None
    assert finding.low < 0.1 < finding.high
    assert 0.07 < finding.size < 0.13
    assert finding.p is not None
    assert finding.p <= detect.FAMILY
    assert "Commit 4" in finding.sentence
    assert "slower" in finding.sentence
    assert finding.reproduce.startswith("tda compare 0000000000 0000000000 --preset smoke --model shape:25m --method")


def test_everything_slower(tmp_path: Path) -> None:
    finding = only(findings(tmp_path, 8, lambda n, m: {"decode_ms": 1.1} if n >= 5 else {}))
    assert (finding.split, finding.scope, place(finding)) == ("decode", "everything", 5)
    assert set(finding.cases) == set(map(nights.case, METHODS))


def test_the_same_time_on_everything_is_no_change_of_methods(tmp_path: Path) -> None:
    """A fixed cost is a greater share of a shorter step."""

    def levels(number: int, method: str) -> dict[str, float]:
        own = 8.0 if method == "dense" else 5.0
        return {"decode_ms": (own + (1.0 if number >= 5 else 0.0)) / 8.0}

    finding = only(findings(tmp_path, 8, levels))
    assert (finding.split, finding.scope, place(finding)) == ("decode", "everything", 5)
    assert finding.size == pytest.approx(1 / 8, abs=0.03)


def test_everything_slower_where_dense_is_too_noisy_to_say(tmp_path: Path) -> None:
    """Methods moved and their ratio to dense did not: dense moved with them, sure or not."""
    draw = np.random.default_rng(3)
    blocks, pair, still, moving = Blocks(), detect.Pair("b", "a"), nights.case(), nights.case("tda")
    for number in range(1, 9):
        for build, factor in (("a", 1.0), ("b", 1.1)):
            dense = 8 * factor * np.exp(draw.normal(0, 0.12))
            method = 6 * factor * np.exp(draw.normal(0, 0.005))
            blocks.put(Key("decode", still), (build, "commit"), number, dense)
            blocks.put(Key("decode", moving), (build, "commit"), number, method)
            blocks.put(Key("decode", moving, True), (build, "commit"), number, method / dense)
    found = detect.effects(blocks, pair, {})
    every = [detect.Candidate(pair, key, one) for key, one in found.items()]
    named = detect.changes(blocks, detect.confirm(blocks, every, {}), {}, detect.Rules())
    assert [(change.scope, change.split) for change in named] == [("everything", "decode")]
    assert set(named[0].cases) == {still, moving}
    assert named[0].effect.size == pytest.approx(0.1, abs=0.02)


def test_dense_alone_faster_is_no_alarm(tmp_path: Path) -> None:
    finding = only(findings(tmp_path, 8, lambda n, m: {"decode_ms": 0.9} if n >= 3 and m == "dense" else {}))
    assert (finding.verdict, finding.split, finding.scope, place(finding)) == ("improvement", "decode", "dense", 3)
    assert finding.cases == (nights.case(),)
    assert "for that reason" in finding.sentence


def test_everything_and_a_method_more(tmp_path: Path) -> None:
    def levels(number: int, method: str) -> dict[str, float]:
        return {"decode_ms": 1.32 if method == "tda" else 1.1} if number >= 4 else {}

    found = sure(findings(tmp_path, 8, levels))
    assert {(finding.scope, place(finding)) for finding in found} == {("everything", 4), ("method", 4)}
    own = next(finding for finding in found if finding.scope == "method")
    assert own.cases == (nights.case("tda"),)


@pytest.mark.parametrize(
    ("name", "split", "scope", "factor"),
    [
        ("selection_ms", "select", "method", 2.0),
        ("peak_memory_bytes", "memory", "everything", 1.1),
        ("prefill_ms", "prefill", "everything", 1.1),
    ],
)
def test_other_splits(tmp_path: Path, name: str, split: str, scope: str, factor: float) -> None:
    finding = only(findings(tmp_path, 8, lambda n, m: {name: factor} if n >= 4 else {}))
    assert (finding.verdict, finding.split, finding.scope, place(finding)) == ("alarm", split, scope, 4)


def test_drift_is_named_with_its_range(tmp_path: Path) -> None:
    def levels(number: int, method: str) -> dict[str, float]:
        return {"decode_ms": 1.02 ** min(max(number - 4, 0), 5)}

    found = sure(findings(tmp_path, 13, levels))
    finding = only(found)
    assert (finding.shape, finding.split, finding.scope) == ("drift", "decode", "everything")
    assert abs(int(finding.good, 16) - 4) <= 1
    assert abs(place(finding) - 9) <= 1
    assert finding.size is not None
    assert 0.06 < finding.size < 0.14
    assert "slowly over" in finding.sentence


def test_a_burst_in_one_block_is_no_alarm(tmp_path: Path) -> None:
    night = nights.night(commits(6))
    made = units(6, nothing)
    bad = next(u for u in made if u.commit == commits(6)[3] and u.stage == "first" and u.block == 2)
    slow = [record.model_copy(update=_slower(record, 3.0)) for record in bad.records]
    history = nights.history(
        tmp_path, night, [bad.model_copy(update={"records": tuple(slow)}) if u is bad else u for u in made]
    )
    assert not sure(list(ChangeDetector(NightData(history, night, CONFIG, Line(commits(6)))).findings()))


def _slower(record, factor: float) -> dict:  # type: ignore[no-untyped-def,type-arg]
    found = record.measurements["decode_ms"]
    scaled = found.model_copy(update={"samples": tuple(factor * sample for sample in found.samples)})
    return {"measurements": {**record.measurements, "decode_ms": scaled}}


def test_what_fresh_blocks_do_not_confirm_is_a_warning(tmp_path: Path) -> None:
    night = nights.night(commits(6))
    slow = units(6, lambda n, m: {"decode_ms": 1.1} if n == 5 and m == "tda" else {})
    calm = units(6, nothing)
    mixed = [u for u in slow if u.stage == "first"] + [u for u in calm if u.stage == "confirm"]
    history = nights.history(tmp_path, night, mixed)
    found = ChangeDetector(NightData(history, night, CONFIG, Line(commits(6)))).findings()
    assert [finding.verdict for finding in found] == ["warning"]
    assert "did not confirm" in found[0].sentence


def test_only_suspects_are_measured_again(tmp_path: Path) -> None:
    night = nights.night(commits(8))
    made = units(8, lambda n, m: {"decode_ms": 1.1} if n >= 4 and m == "griffin" else {})
    history = nights.history(tmp_path, night, [u for u in made if u.stage == "first"])
    assert ChangeDetector(NightData(history, night, CONFIG, Line(commits(8)))).to_confirm() == commits(8)[3:5]


def test_quality_alarms_on_sets_and_likelihood(tmp_path: Path) -> None:
    found = findings(
        tmp_path,
        6,
        nll=lambda n, m: 3.05 if m == "tda" and n == 3 else 3.0,
        digest=lambda n, m: 7.0 if m == "tda" and n == 3 else 1.0,
    )
    worse, mended = sure(found)
    assert (worse.verdict, worse.split, worse.scope, place(worse)) == ("alarm", "quality", "method", 3)
    assert worse.cases == (nights.case("tda", "ref:swiglu"),)
    assert worse.unit == "nats/token"
    assert worse.size == pytest.approx(0.05)
    assert (mended.verdict, place(mended)) == ("improvement", 4)
    assert "again what it was at" in mended.sentence


def test_rounding_is_no_quality_change(tmp_path: Path) -> None:
    found = findings(tmp_path, 4, nll=lambda n, m: 3.0 + 5e-5 * n, digest=lambda n, m: 1.0)
    assert not found


def test_sets_alone_are_an_alarm(tmp_path: Path) -> None:
    finding = only(
        findings(tmp_path, 4, nll=lambda n, m: 3.0, digest=lambda n, m: 9.0 if m == "griffin" and n >= 2 else 1.0)
    )
    assert (finding.verdict, finding.unit, finding.size, place(finding)) == ("alarm", "sets", None, 2)
    assert "6 of 6 documents" in finding.sentence


@pytest.mark.parametrize(
    ("levels", "verdicts"),
    [
        ((3.0, 3.05, 3.0, 3.05), ("alarm", "improvement", "alarm")),
        ((3.0, 2.95, 3.0), ("improvement", "alarm")),
        ((3.0, 3.05, 3.02, 3.0), ("alarm", "improvement", "improvement")),
    ],
)
def test_quality_that_is_worse_again_is_an_alarm(
    tmp_path: Path, levels: tuple[float, ...], verdicts: tuple[str, ...]
) -> None:
    """A revert of a revert, and a gain that is lost: text is again what it was, and worse than before."""
    found = findings(tmp_path, len(levels), nll=lambda n, m: levels[n] if m == "tda" else 3.0, digest=lambda n, m: 1.0)
    assert tuple(one.verdict for one in sorted(found, key=place)) == verdicts


def test_a_commit_that_scored_other_cases_is_no_return(tmp_path: Path) -> None:
    """Until commit 2 the night scored another model: its text is not what the text is again at commit 3."""
    made = []
    for number, commit in enumerate(commits(4)):
        model, nll = ("ref:swiglu" if number > 1 else "ref:gelu"), (3.05 if number == 3 else 3.0)
        scored = nights.record("tda", model=model, nll=nll, digest=1.0)
        made += [nights.unit(commit, [scored], grid="quality")]
    night = nights.night(commits(4))
    history = nights.history(tmp_path, night, made)
    found = only(list(ChangeDetector(NightData(history, night, CONFIG, Line(commits(4)))).findings()))
    assert (found.verdict, place(found)) == ("alarm", 3)


@pytest.mark.parametrize("other", [3.0, 2.9, 3.1])
def test_sets_that_return_are_an_alarm_where_they_were_one(tmp_path: Path, other: float) -> None:
    """Whether the text is better with the other sets, or worse."""
    levels = {1.0: 3.0, 2.0: other}

    def digest(number: int, method: str) -> float:
        return (1.0, 2.0, 1.0, 2.0)[number] if method == "tda" else 1.0

    found = findings(tmp_path, 4, nll=lambda n, m: levels[digest(n, m)], digest=digest)
    assert [one.verdict for one in sorted(found, key=place)] == ["alarm", "improvement", "alarm"]


@pytest.mark.parametrize("last", ["fixed", "open"])
def test_quality_is_mended_case_by_case(tmp_path: Path, last: str) -> None:
    """TDA by 0.05, Griffin by 0.001; the first is mended, then the second, exactly or not quite."""
    levels = {"tda": (3.0, 3.05, 3.0, 3.0), "griffin": (3.0, 3.001, 3.001, 3.0 if last == "fixed" else 3.0005)}
    found = findings(tmp_path, 4, nll=lambda n, m: levels[m][n] if m in levels else 3.0, digest=lambda n, m: 1.0)
    for count, state in ((3, "open"), (4, last)):
        night = nights.night(commits(4), findings=tuple(one for one in found if place(one) < count))
        assert [alarm.state for alarm in replay([night], ())[0].alarms] == [state]


def test_a_step_up_within_a_drift_down_is_told(tmp_path: Path) -> None:
    def levels(number: int, method: str) -> dict[str, float]:
        worse = 1.05 if number >= 5 else 1.0
        return {"decode_ms": 0.985 ** min(max(number - 1, 0), 9) * worse} if method == "griffin" else {}

    found = [(one.verdict, one.shape) for one in sure(findings(tmp_path, 12, levels)) if one.scope == "method"]
    assert found == [("alarm", "step"), ("improvement", "drift")]


def test_a_commit_that_was_not_measured_is_stepped_over(tmp_path: Path) -> None:
    def levels(number: int, method: str) -> dict[str, float]:
        return {"decode_ms": 1.1} if number >= 4 and method == "griffin" else {}

    told = nights.night(commits(8))
    broken = told.commits[4].model_copy(update={"status": "build failed"})
    told = told.model_copy(update={"commits": (*told.commits[:4], broken, *told.commits[5:])})
    made = [u for u in units(8, levels) if u.commit != broken.hash]
    history = nights.history(tmp_path, told, made)
    finding = only(list(ChangeDetector(NightData(history, told, CONFIG, Line(commits(8)))).findings()))
    assert (int(finding.good, 16), place(finding)) == (3, 5)


def test_machines_are_never_mixed(tmp_path: Path) -> None:
    """Units of another machine, twice as slow, count for nothing."""
    other = nights.MACHINE.model_copy(update={"cpu": "Other CPU"})
    made = units(5, nothing)
    alien = [
        u.model_copy(
            update={"records": tuple(r.model_copy(update={**_slower(r, 2.0), "machine": other}) for r in u.records)}
        )
        for u in made
        if u.commit == commits(5)[3] and u.role == "commit"
    ]
    rest = [u for u in made if u.commit != commits(5)[3]]
    history = nights.history(tmp_path, nights.night(commits(5)), [*rest, *alien])
    assert not sure(
        list(ChangeDetector(NightData(history, nights.night(commits(5)), CONFIG, Line(commits(5)))).findings())
    )


@pytest.mark.parametrize("told", [Inputs(), Inputs(documents="d" * 64)], ids=["alike", "told by the later builds"])
def test_drift_is_seen_across_nights(tmp_path: Path, told: Inputs) -> None:
    """Two nights, each too short to show it; builds of before records told their inputs go on in those of after."""

    def levels(number: int, method: str) -> dict[str, float]:
        return {"decode_ms": 1.015 ** min(max(number - 2, 0), 5)}

    all_commits, made = commits(9), units(9, levels)
    one = nights.night(all_commits[:5])
    two = nights.night([*all_commits[4:]], id="n2", baseline_commit=all_commits[0])
    history = nights.history(tmp_path, one, [u for u in made if u.commit in all_commits[:5]])
    late = [u for u in made if u.commit in (all_commits[0], *all_commits[4:]) or u.stage == "confirm"]
    for each in late:
        records = tuple(record.model_copy(update={"inputs": told}) for record in each.records)
        history.keep(each.model_copy(update={"night": "n2", "records": records}))
    found = sure(list(ChangeDetector(NightData(history, two, CONFIG, Line(all_commits))).findings()))
    (drifted,) = (finding for finding in found if finding.split == "decode")
    assert drifted.shape == "drift"
    assert 0 < int(drifted.good, 16) < 4, "it began in the first night"


# Numbers.


def test_effect_is_a_plain_rewrite() -> None:
    values = np.array([0.01, 0.02, 0.09, -0.2, 0.03, 0.02, 0.01, 0.04])
    found = effect(values)
    kept = np.sort(values)[1:-1]
    winsorised = np.clip(values, kept[0], kept[-1])
    error = np.sqrt(((winsorised - winsorised.mean()) ** 2).sum() / 7 * 7 / (6 * 5))
    assert found.log_ratio == pytest.approx(kept.mean())
    assert found.error == pytest.approx(error)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(kept.mean() / error), 5))
    low, high = found.bounds()
    assert low < found.size < high


def test_noise_moderates_an_error_that_is_small_by_chance() -> None:
    calm, wild = np.full(8, 0.02) + np.linspace(-1e-5, 1e-5, 8), np.linspace(-0.05, 0.05, 8)
    pooled = prior([wild, wild + 1.0])
    assert pooled is not None
    assert effect(calm, pooled).p > 0.05
    assert effect(calm).p < 1e-6
    assert resolution(pooled, 8).floor() > resolution(pooled, 32).floor() > 0


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 blocks; .*4"):
        effect(np.zeros(3))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_a_plain_rewrite(p_values: list[float]) -> None:
    corrected = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, index in enumerate(order):
        expected = max(min(1.0, (len(p_values) - r) * p_values[order[r]]) for r in range(rank + 1))
        assert corrected[index] == pytest.approx(expected)


def test_series_of_a_unit() -> None:
    found = numbers([nights.record("dense"), nights.record("griffin", decode_ms=6.0), nights.record("tt")])
    dense, griffin, tt = map(nights.case, ("dense", "griffin", "tt"))
    assert found[Key("decode", griffin, relative=True)] == pytest.approx(0.75)
    assert found[Key("prefill", dense)] == 20.0
    assert found[Key("select", griffin)] == 6.0
    assert Key("select", tt) not in found  # it chooses within decode
    assert Key("prefill", griffin) not in found


def test_select_is_statistic_and_selection() -> None:
    found = numbers([nights.record("dense"), nights.record("griffin", statistic_ms=1.5)])
    assert found[Key("select", nights.case("griffin"))] == 7.5


def levels(values: object, night: int = 0) -> list[drift.BaselineChange]:
    return [drift.BaselineChange(float(value), night) for value in np.asarray(values)]


def test_change_points_and_shapes() -> None:
    flat = np.zeros(12)
    assert drift.change_points(flat) == []
    assert drift.shape(levels(flat), 0.01) is None
    step = np.where(np.arange(12) >= 7, 0.1, 0.0)
    assert drift.change_points(step / 0.01) == [7]
    assert drift.shape(levels(step), 0.01) == drift.Fit(6, 7)
    ramp = np.clip((np.arange(12) - 3) * 0.02, 0, 0.1)
    fit = drift.shape(levels(ramp), 0.005)
    assert fit == drift.Fit(3, 8)
    assert fit.is_ramp


def test_the_noise_of_a_night_s_anchor_is_no_step() -> None:
    """All levels of the second night stand higher by what its baseline happened to be: seen only if that is ignored."""
    draw = np.random.default_rng(1)
    values = [draw.normal(0, 0.007, 10), draw.normal(0, 0.007, 10) + 0.02]
    assert drift.change_points(np.concatenate(values) / 0.007)
    assert drift.shape([*levels(values[0], 0), *levels(values[1], 1)], 0.01) is None
    assert drift.shape([*levels(values[0], 0), *levels(values[1], 0)], 0.01) == drift.Fit(9, 10)


@given(st.integers(3, 10), st.integers(1, 3), st.integers(0, 10**6))
def test_a_fit_is_the_least_squares_one(commits: int, nights_: int, seed: int) -> None:
    """Against a plain search: every form fitted by generalised least squares."""
    draw = np.random.default_rng(seed)
    values = draw.normal(0, 3, commits)
    night = np.sort(draw.integers(0, nights_, commits))
    found = drift.shape([drift.BaselineChange(v, int(g)) for v, g in zip(values, night, strict=True)], 2**0.5)
    inverse = np.linalg.inv(np.eye(commits) + (night[:, None] == night[None, :]))

    def squares(design: np.ndarray) -> float:
        left = values - design @ np.linalg.pinv(design.T @ inverse @ design) @ design.T @ inverse @ values
        return float(left @ inverse @ left)

    constant, best, form = squares(np.ones((commits, 1))), -np.inf, None
    for start in range(commits - 1):
        for stop in range(start + 1, commits):
            ramp = np.clip((np.arange(commits) - start) / (stop - start), 0, 1)
            gain = constant - squares(np.column_stack([np.ones(commits), ramp]))
            score = gain - (np.log(commits) if stop - start > 1 else 0)
            if score > best + 1e-9:
                best, form, its_gain = score, drift.Fit(start, stop), gain
    expected = form if drift.change_points(values) and its_gain > drift.penalty(commits) else None
    assert found == expected


def test_stretches_begin_at_plain_steps() -> None:
    assert drift.stretches(["a", "b", "c", "d"], {"c"}) == [["a", "b"], ["c", "d"]]
