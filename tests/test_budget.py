"""A bench within a time: what fits, what is dropped first, when a case is measured enough; the clock is played."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tda.bench import budget, cells, rounds, scoring, stage, subject
from tda.bench.budget import Deadline, duration, middle, parse_fraction, parse_seconds, take
from tda.bench.measure import FirstRequest, Pace, Passes, Timing
from tda.bench.plan import Plan, Subject
from tda.bench.planning import plan_of
from tda.bench.presets import PRESETS
from tda.bench.progress import Progress
from tda.bench.run import Bench
from tda.bench.traffic import Traffic
from tda.config import BenchConfig
from tda.records import merge
from tda.results import load
from tda.statistics import LEVEL, LOOKED_LEVEL, geometric, is_baseline, speedup
from tda.telemetry import ConditionChange


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("50s", 50), ("5m", 300), ("1.5m", 90), ("1h30m", 5400), ("2min", 120), (" 5M ", 300), ("none", None)],
)
def test_a_budget_is_a_duration(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0", "0s", "5 minutes", "m", "1e3", "nan", "inf"])
def test_a_budget_of_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="budget"):
        parse_seconds(text)


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.02", 0.02), ("none", None), ("0.5 %", 0.005)])
def test_a_precision_is_a_fraction(text, value):
    assert parse_fraction(text) == value


@pytest.mark.parametrize("text", ["", "0", "100%", "1", "-2%", "two", "nan"])
def test_a_precision_of_no_fraction_is_refused(text):
    with pytest.raises(ValueError, match="precision"):
        parse_fraction(text)


@given(
    costs=st.lists(st.floats(0.01, 10), min_size=1, max_size=12),
    essential=st.integers(0, 12),
    least=st.integers(1, 6),
    seconds=st.floats(-1, 300),
)
def test_what_is_taken_fits_and_nothing_worth_more_is_dropped(costs, essential, least, seconds):
    taken = take(costs, essential, least, seconds)
    assert sum(costs[: taken.cases]) * taken.times <= max(seconds, 0) + 1e-9
    if taken.cases > essential:
        assert taken.times >= least
    if taken.cases < len(costs):  # one case more would not fit often enough
        more = costs[: taken.cases + 1]
        assert sum(more) * (1 if len(more) <= essential else least) > seconds


def test_without_an_end_everything_is_taken():
    assert take([1.0, 2.0], 1, 5, math.inf) == budget.Taken(2, 5)
    assert not Deadline().is_set
    assert Deadline().part(0.5).left == math.inf


def test_the_middle_is_dropped_last():
    assert middle((0.25, 0.5, 0.75)) == 0.5
    assert middle((0.3, 0.9)) == 0.3
    assert middle(()) == 0.5


class Clock:
    """Time that passes only where work is said to take some."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Played:
    """A bench whose cases take as long as is said, without any work."""

    folder: object
    clock: Clock
    order: list[str]
    plan: Plan

    def run(self, seconds: float | None) -> float:
        """Run with a budget; the seconds that it took."""
        started = self.clock.now
        deadline = Deadline(started + seconds, self.clock) if seconds is not None else Deadline()
        console = SimpleNamespace(is_terminal=False)
        Bench(self.plan, self.folder, console=console, deadline=deadline, command="again").run()
        return self.clock.now - started

    @property
    def records(self) -> list:
        return load(self.folder).records

    def rounds(self, method: str, sparsity: float) -> int:
        asked = (method, sparsity, None)
        numbers = [r.round for r in self.records if (r.case.method, r.case.sparsity, r.case.control) == asked]
        return max(numbers, default=0)


class Quiet:
    """A progress that shows nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def stage(self, name: str, total: int) -> None:
        pass

    def go_on(self, name: str, steps: int) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Play a bench of speed: seconds a case, and how its times scatter from round to round."""

    def make(
        seconds: float | Callable[[str, int], float], scatter: float = 0.2, step_s: float = 0.0, **plan: object
    ) -> Played:
        clock, order = Clock(), []
        cost = seconds if callable(seconds) else lambda name, number: seconds
        noise = np.random.default_rng(0)

        def time_case(model, built, *args: object, **kwargs: object) -> Timing:
            order.append(built.name)
            clock.now += cost(built.name, len(order))
            ms = (8.0 if built.name == "dense" else 5.0) * float(np.exp(scatter * noise.standard_normal()))
            change = ConditionChange(
                1.0, {}, {"foreign_percent": 0.0}, {}, on_gpu=False, cores=2, quota=None, threads=2
            )
            passes = Passes(prefill=[8.0], first_token=[8.1])
            traffic = Traffic(2e6 if built.name == "dense" else 1e6, 0.0)
            return Timing(passes, 20.0, [ms] * 3, None, "compact", "torch", (0.5,), traffic, (1.5, 2.5), change, None)

        def known_pace(*args: object) -> Pace:
            clock.now += cost("dense", 0) / 3
            return Pace(cost("dense", 0), 0.0, step_s)

        def first(*args: object) -> FirstRequest:
            clock.now += 0.2
            return FirstRequest(100.0, 1, None)

        monkeypatch.setattr(rounds, "time_case", time_case)
        monkeypatch.setattr(stage, "first_request", first)
        monkeypatch.setattr(rounds, "pace", known_pace)
        monkeypatch.setattr("tda.bench.run.Progress", Quiet)
        for module in (subject, rounds, stage, cells):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock, time=clock))
        sizes = {"prompt_tokens": 8, "new_tokens": 4, "quality": False, **plan.pop("subject", {})}
        options = {
            "methods": ("griffin", "magnitude"),
            "speed_methods": ("griffin", "magnitude"),
            "rounds": 5,
            "most_rounds": 40,
            "precision": None,
            "budget_s": 1.0,  # there is one: `run` says how long it is
            **plan,
        }
        made = Plan((Subject("ref:swiglu", **sizes),), **options)
        return Played(tmp_path / "out", clock, order, made)

    return make


ESSENTIAL = [("dense", 0.0), ("griffin", 0.5), ("magnitude", 0.5)]


@pytest.mark.parametrize("seconds", [30, 120, 600])
def test_a_bench_ends_within_its_budget_and_gives_what_it_promised(play, seconds, caplog):
    caplog.set_level(logging.INFO, "tda")
    bench = play(1.0)
    assert bench.run(seconds) <= seconds
    promise = next(line for line in caplog.messages if "rounds of" in line)
    rounds, cases, _ = (int(word) for word in promise.split() if word.isdigit())
    timed = [record for record in merge(bench.records) if record.samples("decode_ms")]
    assert len(timed) == cases
    assert all(len(set(record.measurements["decode_ms"].groups)) >= rounds for record in timed)


def test_dropped_first_is_what_is_away_from_the_middle(play):
    bench = play(1.0)
    bench.run(32)
    for name, sparsity in ESSENTIAL:
        assert bench.rounds(name, sparsity) >= 5
    assert bench.rounds("griffin", 0.25) == bench.rounds("magnitude", 0.75) == 0
    left_out = load(bench.folder).left_out
    told = " ".join(item.what for item in left_out)
    for name in ("griffin", "magnitude"):
        assert f"{name} 0.25" in told
        assert f"{name} 0.75" in told
        assert f"{name} 0.5" not in told
    assert {item.command for item in left_out} == {"again"}


def test_what_is_essential_is_measured_less_often_rather_than_not(play):
    bench = play(1.0)
    bench.run(14)
    for name, sparsity in ESSENTIAL:
        assert 1 <= bench.rounds(name, sparsity) < 5
    last = next(r for r in reversed(bench.records) if r.round)
    assert last.flags["few_samples"].raised


def test_a_machine_that_slows_down_is_noticed_between_rounds(play):
    bench = play(lambda name, number: 1.0 if number < 12 else 3.0)
    assert bench.run(100) <= 100 + 3.0
    assert bench.rounds("griffin", 0.5) >= 5
    assert load(bench.folder).left_out


def test_a_case_that_is_known_narrowly_gets_no_more_rounds(play):
    bench = play(0.1, scatter=0.001, precision=0.02)
    bench.run(600)
    assert bench.rounds("griffin", 0.5) == bench.rounds("dense", 0.0) == 5
    assert not load(bench.folder).left_out


def test_rounds_go_where_intervals_are_wide(play):
    bench = play(0.1, scatter=0.04, precision=0.05)
    bench.run(600)
    merged = {(r.case.method, r.case.sparsity, r.case.control): r for r in merge(bench.records)}
    dense = next(record for record in merged.values() if is_baseline(record))
    counts = set()
    for (name, _, _), record in merged.items():
        ratio = speedup(record, dense)
        if name != "dense":
            counts.add(ratio.groups)
            assert math.sqrt(ratio.high / ratio.low) - 1 <= 0.05 or ratio.groups == 40
    assert len(counts) > 1


def test_without_a_budget_every_case_gets_the_rounds_that_were_asked(play, caplog):
    caplog.set_level(logging.INFO, "tda")
    bench = play(100.0, budget_s=None)
    bench.run(None)
    assert {bench.rounds(name, sparsity) for name, sparsity in ESSENTIAL} == {5}
    assert not load(bench.folder).left_out
    assert not any("time for" in line for line in caplog.messages)


def test_a_second_run_without_a_budget_completes_the_first(play):
    bench = play(1.0, most_rounds=5)
    bench.run(20)
    assert load(bench.folder).left_out
    bench.run(None)
    assert not load(bench.folder).left_out
    merged = merge(bench.records)
    assert all(len(set(r.measurements["decode_ms"].groups)) == 5 for r in merged)


def test_a_calibration_that_takes_too_long_is_cut(play, monkeypatch):
    """Beside other work what took seconds may take minutes: nothing of that model is promised then."""
    bench = play(1.0, methods=("griffin", "tda"))
    begun = []

    def calibrate(model, methods, batches, **options):
        for _ in batches:
            begun.append(bench.clock.now)
            bench.clock.now += 12.0

    monkeypatch.setattr("tda.bench.calibration.calibrate_all", calibrate)
    assert bench.run(30) <= 30 + 12
    assert len(begun) == 3
    assert not bench.records
    (left_out,) = load(bench.folder).left_out
    assert left_out.what == "everything"
    assert left_out.reason.startswith("calibration ")


@pytest.mark.parametrize("slow_from", [0, 20, 45])
def test_scoring_that_takes_longer_than_it_did_is_cut(play, monkeypatch, slow_from):
    """Whenever the machine becomes slow: a case is scored as the others are, or left out by name."""
    bench = play(1.0, subject={"quality": True, "speed": False}, documents=48)
    passes = []

    def add(self, result, number, method, *others):
        passes.append(method.name)
        bench.clock.now += 0.5 if len(passes) <= slow_from else 30.0
        numbers = range(8 * number, 8 * number + 8)
        result.documents += numbers
        result.achieved.append((0.5,))
        result.values.setdefault("nll_nats", []).extend(1.0 for _ in numbers)

    monkeypatch.setattr("tda.bench.scoring.Evaluator.add", add)
    monkeypatch.setattr("tda.bench.scoring.recall", lambda *args: {})
    monkeypatch.setattr(scoring, "time", SimpleNamespace(monotonic=bench.clock))
    assert bench.run(40) <= 40 + 30.0  # a pass that has begun is not cut
    scored = {len(record.samples("nll_nats")) for record in bench.records}
    assert len(scored) <= 1
    told = {name for item in load(bench.folder).left_out for name in item.what.partition(" of ")[2].split(", ")}
    found = {f"{r.case.method} {r.case.sparsity}" for r in bench.records if r.case.control is None}
    for name, sparsity in ESSENTIAL[1:]:
        assert (f"{name} {sparsity}" in found) != (f"{name} {sparsity}" in told)


def test_a_shape_gets_fewer_new_tokens_before_a_case_is_measured_too_rarely(play):
    bench = play(0.5, step_s=0.01, subject={"new_tokens": 64})
    bench.run(20)
    tokens = {record.case.new_tokens for record in bench.records}
    assert len(tokens) == 1
    assert 8 <= tokens.pop() < 64
    assert any("new tokens" in item.what for item in load(bench.folder).left_out)


def test_presets_have_their_budgets_and_an_explicit_number_of_rounds_is_the_most():
    assert PRESETS["default"].budget_s == 300
    assert PRESETS["smoke"].budget_s == 50
    assert PRESETS["gpu"].budget_s == 120  # cases are attached once, and quality is not measured
    assert PRESETS["nightly"].budget_s is None
    assert plan_of(BenchConfig()).most_rounds == budget.MOST_ROUNDS
    assert plan_of(BenchConfig(rounds=7)).most_rounds == 7
    assert plan_of(BenchConfig(budget="none")).budget_s is None
    assert plan_of(BenchConfig(budget="none")).most_rounds == budget.MOST_ROUNDS
    assert plan_of(BenchConfig(budget="30s")).budget_s == 30.0
    for name, preset in PRESETS.items():
        assert plan_of(BenchConfig(preset=name, budget="none", precision="none")).most_rounds == preset.rounds


def test_the_preset_of_a_gpu_is_as_large_as_it_says():
    preset = PRESETS["gpu"]
    (subject,) = preset.subjects
    assert (subject.model, subject.prompt_tokens, subject.new_tokens) == ("shape:llama-3-8b", 512, 32)
    assert len(preset.cases()) == 9  # and dense's A/A control
    assert all(method.name in preset.speed_methods for method in preset.build())
    assert preset.rounds == preset.most_rounds == 5


def test_a_log_without_a_terminal_gets_lines_with_the_time_left(monkeypatch):
    monkeypatch.setattr("tda.bench.progress.EVERY_S", 0.01)
    lines: list[str] = []
    console = Console(quiet=True)
    monkeypatch.setattr(console, "print", lines.append)
    clock = Clock()
    with Progress(console, Deadline(clock.now + 90, clock)) as progress:
        progress.stage("a model: round 1", 7)
        progress.advance(3)
        while not any("3 of 7" in line for line in lines):
            time.sleep(0.01)
        progress.go_on("a model: round 2", 2)
        while not any("round 2" in line for line in lines):
            time.sleep(0.01)
    assert any(line == "a model: round 1, 3 of 7; at most 1:30 left" for line in lines)
    assert any(line == "a model: round 2, 3 of 5; at most 1:30 left" for line in lines)


def test_durations_are_told_in_minutes():
    assert [duration(seconds) for seconds in (0, 59.6, 125, -3)] == ["0:00", "1:00", "2:05", "0:00"]


@pytest.mark.parametrize("asked", [0.3, 0.5, 0.6, 0.8, 1.2, 3.0])
def test_looking_at_every_round_is_paid_for(asked):
    """Stop at the first of 5 to 40 rounds whose interval is as narrow as asked, in standard deviations: it covers."""
    draws = 4000
    logs = np.random.default_rng(1).standard_normal((draws, 40)) / 10
    open_, covered = np.ones(draws, dtype=bool), {LEVEL: 0, LOOKED_LEVEL: 0}
    for level in covered:
        open_[:] = True
        for count in range(5, 41):
            reach = _reach(logs[:, :count], level)
            stops = open_ & ((reach <= asked / 10) | (count == 40))
            covered[level] += int((abs(logs[stops, :count].mean(1)) <= reach[stops]).sum())
            open_ &= ~stops
    assert covered[LOOKED_LEVEL] / draws >= 0.94
    assert covered[LOOKED_LEVEL] > covered[LEVEL]


def _reach(logs: np.ndarray, level: float) -> np.ndarray:
    """Half-width of the t interval of each row, and that it is `geometric`'s."""
    from scipy import stats

    count = logs.shape[1]
    reach = stats.t.ppf((1 + level) / 2, count - 1) * logs.std(1, ddof=1) / math.sqrt(count)
    found = geometric(np.exp(logs[0]).tolist(), level)
    assert math.log(found.high / found.value) == pytest.approx(reach[0])
    return reach
