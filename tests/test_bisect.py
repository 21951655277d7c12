"""`tda bisect`: the commit at which something changed, found with few processes, or an honest range."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tda.cli import main as cli
from tests.scratch import Cost, World, factors

SPEED = ("--model", "shape:25m", "--method", "griffin", "--method", "tt", "-s", "0.5", "--blocks", "6")
ONE = ("--model", "shape:25m", "--method", "griffin", "-s", "0.5", "--blocks", "6")
TEXT = ("--model", "ref:swiglu", "--method", "griffin", "-s", "0.5", "--split", "quality")
GRIFFIN = "griffin 0.5 on shape:25m"
SLOW = factors(griffin_decode_ms=1.1)

Told = tuple[int, dict[str, dict[str, Any]], str]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.fixture
def bisect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Run the command: (exit code, rows by commit, stderr)."""

    def run(*words: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["tda", "bisect", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        rows = json.loads(out) if out else []
        return int(end.value.code or 0), {row["commit"]: row for row in rows}, err

    return run


def history(world: World, place: int, cost: Cost, before: Cost | None = None, count: int = 10) -> list[str]:
    """Commits of which the one at a place, and all after it, cost something else."""
    return [world.commit(cost if n >= place else before or Cost(), f"Change {n}") for n in range(count)]


def verdict(rows: dict[str, dict[str, Any]], commit: str) -> str:
    return str(rows[commit[:10]]["verdict"])


def middle_commits(world: World, made: list[str]) -> set[str]:
    """Commits between the ends that were run."""
    return {task.build.commit for task in world.ran} - {made[0], made[-1]}


@pytest.mark.parametrize("place", [1, 4, 9])
def test_the_commit_is_found_with_its_size(world: World, bisect: Callable[..., Told], place: int) -> None:
    made = history(world, place, SLOW)
    code, rows, err = bisect(made[0], made[-1], *SPEED)
    assert code == 0
    assert verdict(rows, made[place]) == "first bad"
    row = rows[made[place][:10]]
    assert row["low"] < row["ratio"] < row["high"]
    assert row["ratio"] == pytest.approx(1.1, abs=0.015)
    assert (row["case"], row["split"], row["subject"]) == (GRIFFIN, "decode", f"Change {place}")
    assert f"at {made[place][:10]} (Change {place}); over the whole range +" in err
    assert len(middle_commits(world, made)) <= 4  # of 8
    assert len(world.paid) <= 3 * 6 + 4 * 3 * 6 + 2 * 6


def test_between_the_ends_only_the_followed_case_runs_and_beside_both(
    world: World, bisect: Callable[..., Told]
) -> None:
    made = history(world, 5, SLOW)
    bisect(made[0], made[-1], *SPEED)
    ends, rest = world.ran[: 3 * 6], world.ran[3 * 6 :]
    assert {task.build.commit for task in ends} == {made[0], made[-1]}
    assert {tuple(map(str, task.grid.options.methods)) for task in ends} == {("griffin", "tt")}
    assert {tuple(map(str, task.grid.options.methods)) for task in rest} == {("griffin:sparsity=0.5",)}
    placing = [task.build.commit for task in rest if task.stage == "first"]
    for start in range(0, len(placing), 3):
        first, middle, last = placing[start : start + 3]
        assert {first, last} == {made[0], made[-1]}
        assert middle not in (made[0], made[-1])
    confirm = {task.build.commit for task in rest if task.stage == "confirm"}
    assert confirm == {made[4], made[5]}


CHANGES = {
    "everything": (factors(all_decode_ms=1.1), "decode", SPEED, None),
    "improvement": (factors(griffin_decode_ms=0.9), "decode", SPEED, GRIFFIN),
    "selection": (factors(griffin_selection_ms=1.5), "select", SPEED, GRIFFIN),
    "prefill": (factors(all_prefill_ms=1.08), "prefill", SPEED, "dense on shape:25m"),
    "memory": (factors(tt_peak_memory_bytes=1.05), "memory", SPEED, "tt 0.5 on shape:25m"),
    "everything, seen in the named method": (factors(all_decode_ms=1.1), "decode", ONE, GRIFFIN),
    "no method is named": (factors(cats_decode_ms=1.1), "decode", (*SPEED[:2], *SPEED[6:]), "cats 0.5 on shape:25m"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_split_is_followed(world: World, bisect: Callable[..., Told], change: str) -> None:
    cost, split, words, case = CHANGES[change]
    made = history(world, 3, cost, count=6)
    code, rows, err = bisect(made[0], made[-1], *words, "--split", split)
    assert code == 0, err
    assert verdict(rows, made[3]) == "first bad"
    if case:
        assert rows[made[3][:10]]["case"] == case


def test_quality_takes_one_process_a_commit(world: World, bisect: Callable[..., Told]) -> None:
    made = history(world, 6, Cost(nats={"griffin": 0.1}))
    code, rows, err = bisect(made[0], made[-1], *TEXT)
    assert code == 0
    assert verdict(rows, made[6]) == "first bad"
    assert rows[made[6][:10]]["nats"] == pytest.approx(0.1)
    assert "+0.1 nats a token" in err
    commits = [task.build.commit for task in world.ran]
    assert len(commits) == len(set(commits)) <= 6


def test_other_neurons_are_found_too(world: World, bisect: Callable[..., Told]) -> None:
    made = history(world, 2, Cost(digests={"griffin": 2.0}), count=5)
    code, rows, err = bisect(made[0], made[-1], *TEXT)
    assert code == 0
    assert verdict(rows, made[2]) == "first bad"
    assert "other neurons in 6 of 6 documents" in err


def test_a_text_like_neither_end_goes_to_the_nearer(world: World, bisect: Callable[..., Told]) -> None:
    nats = [0.0, 0.01, 0.01, 0.2, 0.2, 0.21]
    made = [world.commit(Cost(nats={"griffin": extra})) for extra in nats]
    code, rows, _ = bisect(made[0], made[-1], *TEXT)
    assert code == 0
    assert verdict(rows, made[3]) == "first bad"


# What cannot be said.


def test_commits_that_do_not_build_or_run_are_passed_over(world: World, bisect: Callable[..., Told]) -> None:
    made = history(world, 6, SLOW, count=9)
    world.costs[made[4]] = Cost(broken="no such backend")
    world.costs[made[3]] = Cost(crash="exit code -11")
    code, rows, _ = bisect(made[0], made[-1], *SPEED)
    assert code == 0
    assert verdict(rows, made[6]) == "first bad"
    assert "does not build: no such backend" in verdict(rows, made[4])
    crashed = [task for task in world.ran if task.build.commit == made[3]]
    assert len(crashed) <= 3


def test_a_case_that_fails_is_passed_over(world: World, bisect: Callable[..., Told]) -> None:
    made = history(world, 3, SLOW, count=5)
    world.costs[made[2]] = Cost(fails=("griffin",))
    code, rows, err = bisect(made[0], made[-1], *SPEED)
    assert code == 1
    assert f"skipped: {made[2][:10]} gives no decode of {GRIFFIN}" in verdict(rows, made[2])
    assert f"only skipped commits are left: between {made[1][:10]} (good) and {made[3][:10]} (bad)" in err


def test_a_level_in_the_middle_is_undecided_after_all_blocks(world: World, bisect: Callable[..., Told]) -> None:
    made = [world.commit(), world.commit(factors(griffin_decode_ms=1.049)), world.commit(SLOW)]
    world.noise = 0.01
    code, rows, err = bisect(made[0], made[-1], *ONE, "--max-blocks", 10)
    assert code == 1
    assert verdict(rows, made[1]) == "undecided"
    assert f"undecided at {made[1][:10]}: between {made[0][:10]} (good) and {made[2][:10]} (bad)" in err
    assert sum(task.build.commit == made[1] for task in world.ran) == 10


def test_a_block_in_which_an_end_failed_does_not_count(
    world: World, bisect: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [world.commit(), world.commit(factors(griffin_decode_ms=1.049)), world.commit(SLOW)]
    world.noise, run, failed = 0.01, world.run, []

    def once(runner: Any, task: Any) -> Any:
        unit = run(runner, task)
        if made[1][:10] in runner.night and (task.build.commit, task.block) == (made[0], 6) and not failed:
            failed.append(task)
            return unit.model_copy(update={"status": "timeout", "reason": "planted", "records": ()})
        return unit

    monkeypatch.setattr("tda.changes.alternate.Runner.run", lambda runner, task: once(runner, task))
    code, rows, _ = bisect(made[0], made[-1], *ONE, "--max-blocks", 8)
    assert (code, verdict(rows, made[1])) == (1, "undecided")
    again = [paid for paid in world.paid if made[1][:10] in paid[0] and (paid[1], paid[-1]) == (made[0], 6)]
    assert len(again) == 2


def test_blocks_are_added_only_until_it_is_decided(world: World, bisect: Callable[..., Told]) -> None:
    made = history(world, 2, SLOW, count=4)
    assert bisect(made[0], made[-1], *SPEED)[0] == 0
    quick = sum(task.build.commit == made[1] and task.stage == "first" for task in world.ran)
    assert quick == 4


def test_ends_alike_are_no_range(world: World, bisect: Callable[..., Told]) -> None:
    made = history(world, 99, SLOW, count=4)
    code, rows, err = bisect(made[0], made[-1], *SPEED)
    assert (code, rows) == (1, {})
    between = f"between {made[0][:10]} and {made[-1][:10]}"
    assert re.search(rf"decode does not differ beyond floors of \d\.\d% to \d\.\d% {between}", err)
    code, _, err = bisect(made[0], made[-1], *TEXT)
    assert code == 1
    assert "quality does not differ" in err


def test_another_split_than_the_one_that_moved_is_not_followed(world: World, bisect: Callable[..., Told]) -> None:
    made = history(world, 2, SLOW, count=4)
    assert bisect(made[0], made[-1], *SPEED, "--split", "memory")[0] == 1
    assert bisect(made[0], made[-1], *SPEED[:2], "--method", "tt", *SPEED[6:])[0] == 1


def test_a_step_that_fresh_blocks_do_not_show_is_not_named(
    world: World, bisect: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = history(world, 1, SLOW, count=2)
    slow, run = world.costs[made[1]], world.run

    def fades(runner: Any, task: Any) -> Any:
        world.costs[made[1]] = slow if task.stage == "first" else Cost()
        return run(runner, task)

    monkeypatch.setattr("tda.changes.alternate.Runner.run", lambda runner, task: fades(runner, task))
    code, _, err = bisect(made[0], made[1], *SPEED)
    assert code == 1
    assert f"fresh blocks do not show a step: between {made[0][:10]} (good) and {made[1][:10]} (bad)" in err


@pytest.mark.parametrize("place", [0, -1])
def test_an_end_that_does_not_build_is_named(world: World, bisect: Callable[..., Told], place: int) -> None:
    made = history(world, 2, SLOW, count=4)
    world.costs[made[place]] = Cost(broken="no such backend")
    code, _, err = bisect(made[0], made[-1], *SPEED)
    assert code == 1
    assert f"{made[place][:10]} does not build: no such backend" in err


def test_mistakes_are_one_sentence(world: World, bisect: Callable[..., Told]) -> None:
    made = history(world, 2, SLOW, count=3)
    for words, sentence in (
        ((made[2], made[0], *SPEED), "is no ancestor of"),
        ((made[0], made[0], *SPEED), "are one commit"),
        ((made[0], "v9", *SPEED), "no commit 'v9'"),
        (
            (made[0], made[2], *SPEED, "--split", "speed"),
            "split must be one of prefill, select, decode, memory, quality",
        ),
        ((made[0], made[2], *SPEED, "--method", "tt:cett"), "a method is NAME or NAME:OPTION=VALUE,…"),
        ((made[0], made[2], *SPEED, "--split", "quality"), "quality needs a trained model"),
    ):
        code, _, err = bisect(*words)
        assert code == 2
        assert sentence in err
    assert world.ran == []


# Going on.


def test_interrupted_it_goes_on_and_pays_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bisect: Callable[..., Told]
) -> None:
    calm = World(tmp_path / "calm", monkeypatch)
    made = history(calm, 3, SLOW, count=8)
    whole = bisect(made[0], made[-1], *SPEED)
    world = World(tmp_path / "stopped", monkeypatch)
    again = history(world, 3, SLOW, count=8)
    for stop in (7, 20, 31, 45):
        world.stop_after = stop
        code, _, err = bisect(again[0], again[-1], *SPEED)
        assert code == 130
        assert "The same command goes on" in err
    world.stop_after = None
    code, rows, _ = bisect(again[0], again[-1], *SPEED)
    assert code == whole[0] == 0
    assert _numbers(rows) == _numbers(whole[1])
    assert len(world.paid) == len(set(world.paid)) == len(calm.paid)
    assert bisect(again[0], again[-1], *SPEED)[:2] == (code, rows)
    assert len(world.paid) == len(calm.paid)


def _numbers(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "commit"} for row in rows.values()]


def test_the_ends_are_those_of_a_comparison(
    world: World, bisect: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = history(world, 2, SLOW, count=4)
    monkeypatch.setattr(sys, "argv", ["tda", "compare", made[0], made[-1], *SPEED])
    with pytest.raises(SystemExit):
        cli.main()
    capsys.readouterr()
    assert len(world.ran) == 3 * 6
    bisect(made[0], made[-1], *SPEED)
    later = [name for name, *_ in world.paid[3 * 6 :]]
    assert later  # the commits between
    assert world.paid[0][0] not in later
