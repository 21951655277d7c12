"""`tda compare`: what moved between two commits or folders, what did not, and what cannot be said."""

import functools
import json
import math
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tda.bench.planning import only, plan_of
from tda.cases import Case
from tda.changes import folder_floors, workbench
from tda.changes.compare import Judged, unjudged
from tda.changes.detect import Pair
from tda.changes.effects import Prior
from tda.changes.floor import FloorKey, Floors, floors_of, single
from tda.changes.folder import CommitResults
from tda.changes.folders import compare_folders
from tda.changes.series import Key
from tda.changes.workbench import Workbench
from tda.config import BenchConfig
from tda.history.nights import History, Unit
from tda.nightly.config import GridConfig, load_config, reproduce
from tda.records import FAILURES, Commit, Failure, FailureKind, Machine, Measurement, Record
from tda.results import append
from tests import nights
from tests.scratch import Cost, World, factors

ROOT = Path(__file__).resolve().parent.parent
SPEED = ("--model", "shape:25m", "--method", "griffin", "--method", "tt", "-s", "0.5", "--blocks", "6")
TEXT = ("--model", "ref:swiglu", "--method", "griffin", "-s", "0.5", "--blocks", "4")
GRIFFIN, TT, DENSE = (f"{name} on shape:25m" for name in ("griffin 0.5", "tt 0.5", "dense"))

Told = tuple[int, list[dict[str, Any]], str]


@pytest.fixture
def tda(command: Callable[..., tuple[int, str, str]]) -> Callable[..., Told]:
    """Run a command in this process: (exit code, rows, stderr)."""

    def run(*words: object) -> Told:
        code, out, err = command(*words, "--json")
        return code, json.loads(out) if out else [], err

    return run


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """What moved."""
    return {(row["case"], row["split"]): row["verdict"] for row in rows if row["verdict"] != "same"}


# Commits.


def test_a_slower_method_is_named_with_its_size_and_floor(world: World, tda: Callable[..., Told]) -> None:
    old, new = world.commit(), world.commit(factors(griffin_decode_ms=1.1), "Slow down")
    code, rows, err = tda("compare", old[:12], "main", *SPEED)
    assert code == 1
    assert verdicts(rows) == {(GRIFFIN, "decode"): "slower", (GRIFFIN, "decode to dense"): "slower"}
    row = next(row for row in rows if (row["case"], row["split"]) == (GRIFFIN, "decode"))
    assert row["low"] < row["ratio"] < row["high"]
    assert row["ratio"] == pytest.approx(1.1, abs=0.015)
    assert row["high"] - row["low"] < 0.05
    assert 0 < row["floor"] < 0.03
    assert row["p"] < 0.01
    assert (row["old"], row["new"]) == (old[:10], new[:10])
    assert f"Decode slower at {new[:10]} (Slow down)" in err
    assert f"only {GRIFFIN}" in err
    assert {row["split"] for row in rows} == {"decode", "decode to dense", "prefill", "select", "memory"}


def test_builds_alternate_with_a_control_of_the_old_one(world: World, tda: Callable[..., Told]) -> None:
    old, new = world.commit(), world.commit()
    assert tda("compare", old, new, *SPEED)[0] == 0
    assert len(world.ran) == 3 * 6
    first = [(task.build.commit, task.role, task.build.copy) for task in world.ran[:3]]
    assert first == [(old, "control", "control"), (old, "commit", "commit"), (new, "commit", "commit")]
    assert [task.build.commit for task in world.ran[3:6]] == [new, old, old]


def unchanged(seed: int) -> list[Unit]:
    """Six blocks of two commits that cost the same and of a control, every process 2% apart from the next."""
    draw = random.Random(seed)

    def measured(method: str) -> Record:
        levels = {name: level * (1 + 0.02 * draw.gauss(0, 1)) for name, level in nights.LEVELS.items()}
        return nights.record(method, **levels)

    roles = (("old", "control"), ("old", "commit"), ("new", "commit"))
    return [
        nights.unit(commit, [measured("dense"), measured("griffin")], block=block, role=role)
        for block in range(1, 7)
        for commit, role in roles
    ]


def test_unchanged_commits_are_called_changed_as_rarely_as_promised() -> None:
    """One in a hundred is promised: with a right rule more than 7 findings in 200 have a chance of 1 in 1000."""
    worlds = 200
    found = sum(bool(Judged(unchanged(seed), Pair("new", "old"), "").sure) for seed in range(worlds))
    assert found <= stats.binom.ppf(0.999, worlds, 0.01)


def test_a_scratch_world_is_the_same_on_every_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tda: Callable[..., Told]
) -> None:
    found = []
    for cores in (1, 64):
        machine = nights.MACHINE.model_copy(update={"cores": cores})
        monkeypatch.setattr(workbench, "machine", lambda _, machine=machine: machine)
        world = World(tmp_path / str(cores), monkeypatch)
        _, rows, _ = tda("compare", world.commit(), world.commit(), *SPEED)
        found.append([{**row, "old": "", "new": ""} for row in rows])
    assert found[0] == found[1]


CHANGES: dict[str, tuple[Cost, int, str, set[tuple[str, str, str]]]] = {
    "everything": (
        factors(all_decode_ms=1.1),
        1,
        "in all cases",
        {(case, "decode", "slower") for case in (DENSE, GRIFFIN, TT)},
    ),
    "dense became faster": (
        factors(dense_decode_ms=0.9),
        0,
        "dense only",
        {(DENSE, "decode", "faster"), *((case, "decode to dense", "slower") for case in (GRIFFIN, TT))},
    ),
    "a method became faster": (
        factors(griffin_decode_ms=0.9),
        0,
        "Decode faster",
        {(GRIFFIN, split, "faster") for split in ("decode", "decode to dense")},
    ),
    "selection": (factors(griffin_selection_ms=2), 1, "Selection slower", {(GRIFFIN, "select", "slower")}),
    "prefill": (factors(all_prefill_ms=1.1), 1, "Prefill slower", {(DENSE, "prefill", "slower")}),
    "memory": (factors(tt_peak_memory_bytes=1.05), 1, "Peak memory more", {(TT, "memory", "more")}),
    "less than counts": (factors(tt_peak_memory_bytes=1.005), 0, "", set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_moved_is_named_for_what_it_is(world: World, tda: Callable[..., Told], change: str) -> None:
    cost, expected, sentence, moved = CHANGES[change]
    code, rows, err = tda("compare", world.commit(), world.commit(cost), *SPEED)
    assert code == expected
    assert sentence in err
    assert {(*place, verdict) for place, verdict in verdicts(rows).items()} == moved


TEXTS = {
    "worse": (Cost(nats={"griffin": 0.1}), 1, "worse"),
    "better, with other neurons": (Cost(nats={"griffin": -0.1}, digests={"griffin": 2.0}), 0, "better"),
    "other neurons for nothing": (Cost(digests={"griffin": 2.0}), 1, "other neurons in 6 of 6 documents"),
    "rounding": (Cost(nats={"griffin": 1e-6}), 0, None),
}


@pytest.mark.parametrize("text", TEXTS)
def test_quality_is_measured_once_and_compared_by_document(world: World, tda: Callable[..., Told], text: str) -> None:
    cost, expected, verdict = TEXTS[text]
    code, rows, _ = tda("compare", world.commit(), world.commit(cost), *TEXT, "--documents", 40)
    assert code == expected
    quality = [row for row in rows if row["split"] == "quality"]
    assert [row["verdict"] for row in quality] == ([verdict] if verdict else [])
    if cost.nats and quality:
        assert quality[0]["nats"] == pytest.approx(cost.nats["griffin"])
    grids = [task.grid for task in world.ran]
    assert [grid.repeated for grid in grids] == [False] * 2 + [True] * 12
    assert (grids[0].options.documents, grids[-1].options.documents) == (40, 2)


def test_a_case_that_fails_now_ends_with_1(world: World, tda: Callable[..., Told]) -> None:
    code, rows, err = tda("compare", world.commit(), world.commit(Cost(fails=("tt",))), *SPEED)
    assert code == 1
    assert f"{TT} fails: error: planted" in err
    assert TT not in {row["case"] for row in rows}
    assert f"decode of {TT} has too few values to compare" in err


def test_a_case_that_failed_before_is_no_news(world: World, tda: Callable[..., Told]) -> None:
    code, _, err = tda("compare", world.commit(Cost(fails=("tt",))), world.commit(), *SPEED)
    assert code == 0
    assert "fails" not in err


def test_the_floor_is_the_controls_alone() -> None:
    """The new commit's own scatter is in its effect; counted among the noise too, it would be counted twice."""
    draw = np.random.default_rng(5)
    old = [nights.unit("a", [nights.record(decode_ms=8 + draw.normal() / 10)], block=n) for n in range(1, 7)]
    control = [
        nights.unit("a", [nights.record(decode_ms=8 + draw.normal() / 10)], block=n, role="control")
        for n in range(1, 7)
    ]
    floors = set()
    for scatter in (0.01, 3.0):
        new = [nights.unit("b", [nights.record(decode_ms=8 + scatter * draw.random())], block=n) for n in range(1, 7)]
        judged = Judged([*old, *control, *new], Pair("b", "a"), "")
        floors.add(judged.floor(Key("decode", nights.case(), grid="speed")))
    assert len(floors) == 1


@pytest.mark.parametrize("cost", [Cost(broken="no such backend"), Cost(crash="exit code -11")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_commit_that_cannot_be_measured_is_named(
    world: World, tda: Callable[..., Told], cost: Cost, place: int
) -> None:
    costs = [Cost(), Cost()]
    costs[place] = cost
    made = [world.commit(one) for one in costs]
    code, _, err = tda("compare", *made, *SPEED)
    assert code == 1
    assert made[place][:10] in err
    assert str(cost.broken or cost.crash) in err


# Going on.


def test_interrupted_it_goes_on_and_pays_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tda: Callable[..., Told]
) -> None:
    calm = World(tmp_path / "calm", monkeypatch)
    whole = tda("compare", calm.commit(), calm.commit(factors(tt_decode_ms=1.2)), *TEXT)
    world = World(tmp_path / "stopped", monkeypatch)
    words = ("compare", world.commit(), world.commit(factors(tt_decode_ms=1.2)), *TEXT)
    for stop in (1, 5, 9):
        world.stop_after = stop
        code, _, err = tda(*words)
        assert code == 130
        assert "The same command goes on" in err
    world.stop_after = None
    code, rows, _ = tda(*words)
    assert len(world.paid) == len(set(world.paid)) == len(calm.paid)
    assert [{**row, "old": "", "new": ""} for row in rows] == [{**row, "old": "", "new": ""} for row in whole[1]]
    assert tda(*words)[:2] == (code, rows)
    assert len(world.paid) == len(calm.paid)


def test_more_blocks_are_added_to_what_is_there(world: World, tda: Callable[..., Told]) -> None:
    old, new = world.commit(), world.commit()
    tda("compare", old, new, *SPEED)
    tda("compare", old, new, *SPEED[:-1], 8)
    assert len(world.paid) == len(set(world.paid)) == 3 * 8


def test_units_of_other_options_are_not_taken(world: World, tda: Callable[..., Told]) -> None:
    old, new = world.commit(), world.commit()
    tda("compare", old, new, *SPEED)
    tda("compare", old, new, *SPEED, "--rounds", 3)
    assert len(world.paid) == 2 * 3 * 6


def test_what_failed_is_tried_again_by_the_next_run(world: World, tda: Callable[..., Told]) -> None:
    old, new = world.commit(), world.commit(Cost(crash="out of memory"))
    assert tda("compare", old, new, *SPEED)[0] == 1
    world.costs[new] = Cost()
    assert tda("compare", old, new, *SPEED)[0] == 0


def test_a_damaged_line_is_measured_again(world: World, tda: Callable[..., Told]) -> None:
    old, new = world.commit(), world.commit()
    tda("compare", old, new, *SPEED)
    path = Path("results/compare/nights") / f"{old[:10]}-{new[:10]}.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4][:50], *lines[5:]]))
    code, _, err = tda("compare", old, new, *SPEED)
    assert code == 0
    assert "line 5 skipped" in err
    assert len(world.paid) == 3 * 6 + 1


# The command that a night prints.


NIGHTLY = load_config(ROOT / "benchmarks" / "nightly.toml")


@pytest.mark.parametrize("grid", NIGHTLY.grids, ids=lambda grid: str(grid.name))
def test_the_command_that_a_night_prints_is_accepted(world: World, tda: Callable[..., Told], grid: GridConfig) -> None:
    case = plan_of(grid.options).cases()[-1]
    command = shlex.split(reproduce(Pair(new=world.commit(), old=world.commit()), NIGHTLY, grid.name, [case]))
    assert command[0] == "tda"
    code, rows, err = tda(*command[1:])
    assert code == 0, err
    assert str(case) in {row["case"] for row in rows}
    for task in world.ran:
        own = {"documents": 2} if task.grid.repeated and "documents" in grid.options.options() else {}
        own |= {} if task.grid.repeated else {"rounds": 1}
        assert task.grid.options == grid.options.model_copy(update=own)


def test_one_case_is_measured_as_it_would_be_among_all() -> None:
    config = BenchConfig(preset="smoke", methods=("griffin", "tda"), sparsities=(0.25, 0.5), rounds=3)
    for case in plan_of(config).cases():
        narrow = only(config, [case])
        cases = plan_of(narrow).cases()
        assert case in cases
        assert {one.method for one in cases} == {"dense", case.method}
        assert narrow.rounds == 3
        assert only(narrow, [case]) == narrow
    nightly = config.model_copy(update={"preset": "nightly"})
    profiled = next(case for case in plan_of(nightly).cases() if case.layer_sparsity_from)
    assert "models" not in only(nightly, [profiled]).options()  # its sparsity per layer comes from ref:wide


# Wrong use.


def test_mistakes_are_one_sentence(world: World, tda: Callable[..., Told], tmp_path: Path) -> None:
    old, new = world.commit(), world.commit()
    one, other = (folder(tmp_path / name) for name in ("one", "other"))
    mistakes = [
        ((old, old), "are one commit"),
        ((old, "v9"), "no commit 'v9' in"),
        ((one, new), f"{one} is a folder of results and {new} is none: give two folders or two commits"),
        ((new, one), "give two folders or two commits"),
        ((one, other, "--rounds", 5), "two folders are compared by what they hold; rounds is for commits"),
        ((old, new, "--measure-floor"), "--measure-floor is for folders"),
        ((old, new, "--method", "griffon"), "unknown method 'griffon'"),
    ]
    for words, sentence in mistakes:
        code, _, err = tda("compare", *words)
        assert code == 2
        assert sentence in err
    assert world.ran == []


# Folders.

QUIET = 0.001


def a_record(case: Case, number: int, machine: Machine, dirty: bool, values: Mapping[str, Sequence[float]]) -> Record:
    return Record(
        case=case,
        round=number,
        commit=Commit(hash="c" * 40, dirty=dirty),
        machine=machine,
        status="ok",
        measurements={name: Measurement.of(name, samples) for name, samples in values.items()},
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )


@functools.cache
def a_case(method: str = "griffin", prompt_tokens: int = 64) -> Case:
    """What a bench of it records, options included; "control" is that of dense."""
    if method == "control":
        return a_case("dense", prompt_tokens).model_copy(update={"control": "a_a"})
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": 16, "sparsities": 0.5}
    return plan_of(BenchConfig(models="shape:25m", methods=method, **sizes)).cases()[-1]


def folder(
    path: Path,
    slow: Mapping[str, float] | None = None,
    *,
    methods: Sequence[str] = ("dense", "griffin"),
    rounds: int = 9,
    machine: Machine = nights.MACHINE,
    dirty: bool = False,
    nll: float | None = None,
    memory: float = 1e8,
    control: float | None = None,
    stream: float | None = None,
    seed: int = 0,
) -> Path:
    """A results folder; `slow` says by what factor a method's decode is slower, `control` how dense's control is."""
    draw = np.random.default_rng([seed, len(path.name)])
    for method in (*methods, *(["control"] if control is not None else [])):
        case = a_case(method)
        first: dict[str, Sequence[float]] = {"peak_memory_bytes": [memory]}
        if nll is not None:
            first["nll_nats"] = [3 + nll + number for number in range(6)]
        lines = [a_record(case, 0, machine, dirty, first)]
        for number in range(1, rounds + 1):
            factor = (slow or {}).get(method, 1.0) if method != "control" else control or 1.0
            times = (8 * factor * (1 + QUIET * draw.normal(size=4))).tolist()
            values = {"decode_ms": times, "prefill_ms": [20 * (1 + QUIET * draw.normal())]}
            if stream is not None:
                values["stream_gb_per_s"] = (stream * (1 + 0.02 * draw.normal(size=2))).tolist()
            if method == "griffin":
                values |= {"selection_ms": [6 * (1 + QUIET * draw.normal())], "selection_digest": [1.0]}
            lines.append(a_record(case, number, machine, dirty, values))
        path.mkdir(exist_ok=True)
        append(path, lines)
    return path


def know(variance: float = 1e-4, ratio_variance: float | None = None, machine: Machine = nights.MACHINE) -> None:
    """Make the floor of every series known: one process differs from another by 1.4%."""
    splits = [("memory", False), ("decode", False), ("prefill", False), ("select", False), ("decode", True)]
    path = Floors().path
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        for method in ("dense", "griffin"):
            for split, relative in splits:
                own = variance if ratio_variance is None or not relative else ratio_variance
                line = {"source": "n1", "machine": machine.fingerprint, "case": a_case(method).key, "dof": 15}
                line |= {"label": method, "split": split, "relative": relative, "variance": own}
                file.write(json.dumps(line) + "\n")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


GPU = nights.MACHINE.model_copy(update={"gpu": "A GPU", "driver": "600.1"})


@pytest.mark.parametrize("other", [nights.MACHINE, GPU.model_copy(update={"driver": "601.2"})], ids=["cpu", "driver"])
def test_a_gpu_has_floors_of_its_own(other: Machine, cache: Path, tda: Callable[..., Told]) -> None:
    paths = folder(cache / "old", machine=GPU), folder(cache / "new1", {"griffin": 1.2}, machine=GPU)
    know(machine=other)
    assert tda("compare", *paths)[0] == 3
    know(machine=GPU)
    code, rows, _ = tda("compare", *paths)
    assert code == 1
    assert set(verdicts(rows).values()) == {"slower"}


def test_the_controls_of_folders_from_a_gpu_give_a_floor(cache: Path, tda: Callable[..., Told]) -> None:
    paths = [folder(cache / name, machine=GPU, control=1.01) for name in ("old", "new1")]
    assert tda("compare", *paths)[0] == 0


def test_without_a_floor_nothing_is_judged(cache: Path, tda: Callable[..., Told]) -> None:
    old, new = folder(cache / "old"), folder(cache / "new", {"griffin": 1.5})
    code, rows, err = tda("compare", old, new)
    assert code == 3
    assert {row["verdict"] for row in rows} == {"cannot tell"}
    assert f"`tda compare {old} {new} --measure-floor` measures it" in err
    assert "cannot tell: memory of dense on shape:25m and" in err


@pytest.mark.parametrize(("factor", "code", "verdict"), [(1.0, 0, set()), (1.3, 1, {"slower"}), (0.7, 0, {"faster"})])
def test_the_controls_of_folders_give_a_floor(
    cache: Path, tda: Callable[..., Told], factor: float, code: int, verdict: set[str]
) -> None:
    """FOLDER against FOLDER gave no verdict before: "no floor known", exit code 2."""
    paths = folder(cache / "old", control=1.02), folder(cache / "new1", {"griffin": factor}, control=0.99)
    ended, rows, err = tda("compare", *paths)
    assert (ended, set(verdicts(rows).values())) == (code, verdict), err
    floors = {row["split"]: row["floor"] for row in rows if row["case"].startswith("griffin")}
    assert floors["decode"] == pytest.approx(np.hypot(0.02, 1 / 0.99 - 1), abs=0.01)
    assert "floors come from the A/A controls in the folders" in err


def test_two_modes_of_a_machine_are_named(cache: Path, tda: Callable[..., Told]) -> None:
    """A whole folder in the slower of two speeds, 1.8 apart: 50 of 200 comparisons of one build differed."""
    know()
    told = set()
    for seed in range(20):
        paths = [
            folder(cache / f"{name}{seed}", dict.fromkeys(("dense", "griffin"), mode), stream=40 / mode, seed=seed)
            for name, mode in (("o", 1.0), ("nw", 1.8 if seed % 2 else 1.0))
        ]
        code, rows, err = tda("compare", *paths)
        told.add((seed % 2, code, "cannot tell: two modes" in err, frozenset(verdicts(rows).values())))
    assert told == {(0, 0, False, frozenset()), (1, 3, True, frozenset({"cannot tell"}))}


def test_a_slowdown_counts_beyond_the_floor_of_single_processes(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    old = folder(cache / "old")
    code, rows, _ = tda("compare", old, folder(cache / "new1", {"griffin": 1.2}))
    assert code == 1
    case = "griffin 0.5 on shape:25m"
    assert verdicts(rows) == {(case, "decode"): "slower", (case, "decode to dense"): "slower"}
    floor = next(row["floor"] for row in rows if row["split"] == "select")
    assert floor == pytest.approx(single(Prior(1e-4, 15), 1 - 0.01 / len(rows)))
    code, rows, _ = tda("compare", old, folder(cache / "new22", {"griffin": 1 + 0.8 * floor}))
    assert (code, verdicts(rows)) == (0, {})  # processes of one build differ so, whatever the rounds say
    code, rows, _ = tda("compare", old, folder(cache / "new333", {"griffin": 0.8}))
    assert (code, set(verdicts(rows).values())) == (0, {"faster"})


def test_a_faster_dense_alone_is_no_regression(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    code, rows, _ = tda("compare", folder(cache / "old"), folder(cache / "new1", {"dense": 0.8}))
    assert code == 0
    assert verdicts(rows)["griffin 0.5 on shape:25m", "decode to dense"] == "slower"
    code, _, _ = tda("compare", folder(cache / "old"), folder(cache / "new22", {"dense": 0.8, "griffin": 1.2}))
    assert code == 1


def test_a_floor_that_hides_everything_is_said(cache: Path, tda: Callable[..., Told]) -> None:
    know(variance=1e-2, ratio_variance=1e-6)
    code, rows, err = tda("compare", folder(cache / "old"), folder(cache / "new1"))
    assert code == 3
    told = {(row["split"], row["verdict"], row["floor"] is None) for row in rows}
    hidden = {(split, "cannot tell", True) for split in ("decode", "prefill", "select", "memory")}
    assert told == hidden | {("decode to dense", "same", False)}
    assert "is not known there or over 50%" in err


def test_a_method_slower_beside_an_unchanged_dense_is_one(cache: Path, tda: Callable[..., Told]) -> None:
    know(variance=1e-2, ratio_variance=1e-6)
    code, rows, _ = tda("compare", folder(cache / "old"), folder(cache / "new1", {"griffin": 1.1}))
    assert code == 1
    told = {place: verdict for place, verdict in verdicts(rows).items() if verdict != "cannot tell"}
    assert told == {(GRIFFIN, "decode to dense"): "slower"}


def test_memory_has_no_rounds_and_is_judged_by_the_floor(cache: Path, tda: Callable[..., Told]) -> None:
    know(variance=1e-6)
    old = folder(cache / "old")
    assert tda("compare", old, folder(cache / "new1"))[0] == 0
    code, rows, _ = tda("compare", old, folder(cache / "new22", memory=1.05e8))
    assert code == 1
    assert {split for _, split in verdicts(rows)} == {"memory"}


def test_quality_of_folders_is_paired_by_document(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    code, rows, _ = tda("compare", folder(cache / "old", nll=0.0), folder(cache / "new1", nll=0.01))
    assert code == 1
    assert [row["nats"] for row in rows if row["split"] == "quality"] == [pytest.approx(0.01)] * 2


def test_too_few_rounds_give_no_verdict(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    code, rows, err = tda("compare", folder(cache / "old", rounds=4), folder(cache / "new1", {"griffin": 2}, rounds=4))
    assert code == 3
    assert "fewer than 5 rounds" in err
    assert set(verdicts(rows).values()) == {"cannot tell"}


def test_unlike_machines_are_refused_by_field(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    other = nights.MACHINE.model_copy(update={"torch": "2.14.0", "threads": 1})
    code, _, err = tda("compare", folder(cache / "old"), folder(cache / "new1", machine=other))
    assert code == 2
    assert "unlike machines: threads 2 and 1, torch '2.13.0' and '2.14.0'" in err
    newer = nights.MACHINE.model_copy(update={"tda": "9.9"})  # what is compared
    assert tda("compare", folder(cache / "old"), folder(cache / "new22", machine=newer))[0] == 0


def test_what_is_dirty_lonely_failed_or_damaged_is_said(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    old = folder(cache / "old", methods=["dense", "tt"])
    new = folder(cache / "new1", methods=["dense", "griffin"], dirty=True)
    failed = a_record(a_case("tt"), 0, nights.MACHINE, True, {}).model_copy(update={"status": "oom", "reason": "full"})
    append(new, [failed])
    with open(new / "results.jsonl", "a") as file:
        file.write("{}\n")
    code, rows, err = tda("compare", old, new)
    assert code == 1
    assert {row["case"] for row in rows} == {"dense on shape:25m"}
    assert {(row["old"], row["new"]) for row in rows} == {("cccccccccc", "cccccccccc with uncommitted changes")}
    assert "tt 0.5 on shape:25m does not fit any more (memory): full" in err
    assert f"not compared, since failed in {new}: tt 0.5 on shape:25m" in err
    assert f"not compared, since not in {old}: griffin 0.5 on shape:25m" in err
    assert "skipped" in err


def test_a_case_that_the_new_folder_lacks_is_not_said_to_be_well(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    old, new = folder(cache / "old", methods=["dense", "griffin"]), folder(cache / "new22", methods=["dense"])
    code, _, err = tda("compare", old, new)
    assert code == 3
    assert f"not compared, since not in {new}: griffin 0.5 on shape:25m" in err
    assert tda("compare", new, old)[0] == 0, "what is new has nothing to be worse than"


def test_folders_that_cannot_be_compared(cache: Path, tda: Callable[..., Told]) -> None:
    old = folder(cache / "old")
    played = nights.MACHINE.model_copy(update={"gpu": "FAKE H100"})
    append(folder(cache / "mixed"), [a_record(a_case("tt"), 1, nights.MACHINE, True, {})])
    (cache / "empty").mkdir()
    (cache / "empty" / "results.jsonl").touch()
    for path, sentence in (
        (folder(cache / "other", methods=["tt"]), "have no good case in common"),
        (folder(cache / "played", machine=played), "a device that a test plays"),
        (cache / "mixed", "several commits"),
        (cache / "empty", "holds no results"),
    ):
        code, _, err = tda("compare", old, path)
        assert code == 2
        assert sentence in err


# How a case fails.

TOLD: dict[FailureKind, tuple[int, str]] = {
    "host_memory": (1, f"{TT} does not fit any more (host memory): no room"),
    "gpu_memory": (1, f"{TT} does not fit any more (GPU memory): no room"),
    "crash": (1, f"{TT} crashes: no room"),
    "hang": (1, f"{TT} hangs: no room"),
    "timeout": (1, f"{TT} does not end in its time any more: no room"),
    "error": (1, f"{TT} fails: error: no room"),
    "killed": (3, f"cannot tell: {TT} was not measured: its process was killed from outside"),
    "lost": (3, f"cannot tell: {TT} was not measured: its worker was lost"),
}


def failed_line(kind: FailureKind, number: int = 1, machine: Machine = nights.MACHINE) -> Record:
    """A round of tt that failed in this way."""
    told = {"status": FAILURES[kind].status, "reason": "no room", "failure": Failure(kind=kind)}
    return a_record(a_case("tt"), number, machine, False, {}).model_copy(update=told)


@pytest.mark.parametrize("kind", FAILURES)
def test_how_a_case_of_a_folder_fails_is_told(kind: FailureKind, cache: Path, tda: Callable[..., Told]) -> None:
    know()
    old, new = folder(cache / "old", methods=["dense", "tt"]), folder(cache / "new1", methods=["dense"])
    append(new, [failed_line(kind)])
    code, rows, err = tda("compare", old, new)
    expected, sentence = TOLD[kind]
    assert code == expected, err
    assert sentence in err
    assert "slower" not in {row["verdict"] for row in rows}
    assert (f"since failed in {new}" in err) == (expected == 1)
    assert tda("compare", new, old)[0] == 0, "what is mended is no news"


@pytest.mark.parametrize("kind", FAILURES)
def test_how_a_case_of_a_commit_fails_is_told(kind: FailureKind, world: World, tda: Callable[..., Told]) -> None:
    old, new = world.commit(), world.commit(Cost(fails=("tt",), failure=kind))
    code, _, err = tda("compare", old, new, *SPEED)
    expected, sentence = TOLD[kind]
    assert code == expected, err
    assert sentence.replace("no room", "planted") in err


def test_a_lost_worker_hides_no_failure_of_its_case(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    old, new = folder(cache / "old", methods=["dense", "tt"]), folder(cache / "new1", methods=["dense"])
    append(new, [failed_line("gpu_memory", 1), failed_line("lost", 2)])
    code, _, err = tda("compare", old, new)
    assert code == 1
    assert TOLD["gpu_memory"][1] in err
    assert "was not measured" not in err


def test_a_failure_after_a_lost_worker_is_no_known_regression(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    old, new = folder(cache / "old", methods=["dense"]), folder(cache / "new1", methods=["dense"])
    append(old, [failed_line("lost")])
    append(new, [failed_line("gpu_memory")])
    code, _, err = tda("compare", old, new)
    assert code == 3
    assert "does not fit (GPU memory): no room, and before it was not measured: its worker was lost" in err


# Several machines in one folder.

OTHER = nights.MACHINE.model_copy(update={"cpu": "Another CPU", "threads": 1})


def test_machines_of_a_folder_are_compared_like_with_like(cache: Path, tda: Callable[..., Told]) -> None:
    """The other machine is three times as slow: held against the first one's, everything would have moved."""
    know()
    know(machine=OTHER)
    slow = dict.fromkeys(("dense", "griffin"), 3.0)
    old = folder(folder(cache / "old"), slow, machine=OTHER)
    same = folder(folder(cache / "new1", slow, machine=OTHER), machine=nights.MACHINE)
    code, rows, err = tda("compare", old, same)
    assert (code, verdicts(rows)) == (0, {}), err
    assert len({row["machine"] for row in rows}) == 2
    worse = folder(folder(cache / "new22"), slow | {"griffin": 3.9}, machine=OTHER)
    code, rows, _ = tda("compare", old, worse)
    assert code == 1
    moved = {row["machine"] for row in rows if row["verdict"] == "slower"}
    assert moved == {f"Another CPU [{OTHER.fingerprint[:6]}]"}


def test_a_machine_that_one_folder_lacks_is_told(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    one, two = folder(cache / "one"), folder(folder(cache / "two1"), machine=OTHER)
    code, _, err = tda("compare", one, two)
    assert code == 0
    assert f"not compared, since not in {one}: what ran on Another CPU" in err
    code, _, err = tda("compare", two, one)
    assert code == 3
    assert f"not compared, since not in {one}: what ran on Another CPU" in err
    third = folder(cache / "third", machine=OTHER.model_copy(update={"cpu": "A third"}))
    code, _, err = tda("compare", two, third)
    assert code == 2
    assert "no machine is in both folders" in err
    code, _, err = tda("compare", two, one, "--measure-floor")
    assert code == 2
    assert f"{two} holds results of several machines" in err


def test_a_failure_on_one_machine_names_it(cache: Path, tda: Callable[..., Told]) -> None:
    know()
    know(machine=OTHER)
    methods = ["dense", "tt"]
    old = folder(folder(cache / "old", methods=methods), methods=methods, machine=OTHER)
    new = folder(folder(cache / "new1", methods=methods), methods=["dense"], machine=OTHER)
    append(new, [failed_line("gpu_memory", machine=OTHER)])
    code, _, err = tda("compare", old, new)
    assert code == 1
    assert f"on Another CPU [{OTHER.fingerprint[:6]}]: {TOLD['gpu_memory'][1]}" in err


# Floors.


def noisy_units(processes: int, sigma: float, seed: int = 0, **fields: Any) -> list[Any]:
    draw = np.random.default_rng(seed)
    return [
        nights.unit("a" * 40, [nights.record(decode_ms=8 * math.exp(sigma * draw.normal()))], block=1 + n, **fields)
        for n in range(processes)
    ]


DECODE = FloorKey(nights.MACHINE.fingerprint, nights.record().case.key, "decode")


def test_a_floor_is_what_single_processes_stay_within(cache: Path) -> None:
    floors = Floors()
    assert floors.known() == {}
    floors.learn("n1", noisy_units(40, 0.01), "a" * 40)
    noise = floors.known()[DECODE]
    assert noise.dof == 39
    assert noise.variance == pytest.approx(1e-4, rel=0.5)
    draw = np.random.default_rng(2)
    differences = np.abs(np.expm1(0.01 * (draw.normal(size=4000) - draw.normal(size=4000))))
    assert np.mean(differences > single(Prior(1e-4, 1e6), 0.99)) == pytest.approx(0.01, abs=0.006)


def test_floors_are_pooled_over_sources_and_counted_once(cache: Path) -> None:
    floors = Floors()
    for _ in range(2):
        floors.learn("n1", noisy_units(9, 0.01), "a" * 40)
    floors.learn("n2", noisy_units(9, 0.03, seed=1), "a" * 40)
    lines = floors.path.read_text().splitlines()
    assert len(lines) == 2 * 3  # decode, prefill, memory
    one, other = (json.loads(line)["variance"] for line in lines if '"decode"' in line)
    assert floors.known()[DECODE] == Prior(pytest.approx((one + other) / 2), 16.0)
    floors.learn("n1", noisy_units(5, 0.02, seed=3), "a" * 40)  # measured again: the old line no longer counts
    assert floors.known()[DECODE].dof == 8 + 4
    with open(floors.path, "a") as file:
        file.write("{damaged\n")
    assert floors.known()[DECODE].dof == 8 + 4


def test_old_sources_fade(cache: Path) -> None:
    floors = Floors()
    floors.learn("old", noisy_units(9, 0.5), "a" * 40)
    for number in range(10):
        floors.learn(f"n{number}", noisy_units(9, 0.01, seed=number), "a" * 40)
    assert floors.known()[DECODE].variance < 1e-3
    floors.learn("old", noisy_units(9, 0.5, seed=9), "a" * 40)  # measured again, it is the newest
    assert floors.known()[DECODE].variance > 1e-3


def test_only_good_first_processes_of_that_commit_count() -> None:
    good = noisy_units(4, 0.01)
    others = [
        *noisy_units(9, 1.0, status="crash"),
        *noisy_units(9, 1.0, stage="confirm"),
        *(unit.model_copy(update={"commit": "b" * 40}) for unit in noisy_units(9, 1.0)),
    ]
    assert floors_of("n1", [*others, *good], "a" * 40) == floors_of("n1", good, "a" * 40)
    assert floors_of("n1", good[:3], "a" * 40) == []


def test_versions_of_this_package_share_a_machine() -> None:
    newer = nights.MACHINE.model_copy(update={"tda": "9.9"})
    assert newer.fingerprint == nights.MACHINE.fingerprint


def test_a_comparison_of_commits_teaches_the_floor(world: World, tda: Callable[..., Told]) -> None:
    tda("compare", world.commit(), world.commit(factors(all_decode_ms=2)), *SPEED)
    dense = plan_of(BenchConfig(models="shape:25m")).cases()[0]
    noise = Floors().known()[FloorKey.of(nights.MACHINE, Key("decode", dense))]
    assert noise.dof == 2 * 6 - 1  # both installs of the old one, six blocks
    assert math.sqrt(noise.variance) == pytest.approx(world.noise, rel=0.6)


def test_a_cache_that_cannot_be_written_stops_nothing(world: World, tda: Callable[..., Told]) -> None:
    (world.folder / "cache").write_text("a file")
    code, _, err = tda("compare", world.commit(), world.commit(), *SPEED)
    assert code == 0
    assert "the noise of this machine is not kept" in err


def test_the_floor_of_folders_is_measured_on_request(
    world: World, tda: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (folder_floors, workbench):
        monkeypatch.setattr(module, "machine", lambda name: nights.MACHINE)
    old, new = folder(tmp_path / "old"), folder(tmp_path / "new1")
    code, rows, err = tda("compare", old, new, "--measure-floor", "--blocks", 5)
    assert (code, verdicts(rows)) == (0, {}), err
    assert len(world.paid) == len(set(world.paid)) == 2 * 5
    assert {task.role for task in world.ran} == {"commit", "control"}
    assert (world.ran[0].build.site / "tda").is_dir()
    options = world.ran[0].grid.options.options()
    sizes = {"prompt_tokens": 64, "new_tokens": 16, "batch": 1, "dtype": "bfloat16", "rounds": 5}
    assert options.items() >= {"models": ["shape:25m"], "methods": ["dense"], **sizes}.items()
    assert tda("compare", old, new)[0] == 0  # it stays known
    assert tda("compare", old, new, "--measure-floor", "--blocks", 5)[0] == 0
    assert len(world.paid) == 2 * 5


def test_floors_of_unlike_sizes_are_measured_apart(
    world: World, tda: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (folder_floors, workbench):
        monkeypatch.setattr(module, "machine", lambda name: nights.MACHINE)
    paths = folder(tmp_path / "old"), folder(tmp_path / "new1")
    for path in paths:
        for method in ("dense", "griffin"):
            case = a_case(method, prompt_tokens=128)
            times = {"decode_ms": [6.0], "prefill_ms": [30.0]}
            append(path, [a_record(case, n, nights.MACHINE, False, times) for n in range(1, 8)])
    tda("compare", *paths, "--measure-floor", "--blocks", 4)
    grids = {task.grid.options.prompt_tokens: task.grid.options for task in world.ran}
    assert {size: options.rounds for size, options in grids.items()} == {64: 5, 128: 5}
    assert len(world.paid) == len(set(world.paid)) == 2 * 2 * 4


def test_the_floor_of_another_machine_is_not_measured_here(
    world: World, tda: Callable[..., Told], tmp_path: Path
) -> None:
    old, new = folder(tmp_path / "old"), folder(tmp_path / "new1")
    code, _, err = tda("compare", old, new, "--measure-floor")
    assert code == 2
    assert "was taken on another machine than this one: cpu 'Test CPU' and" in err
    assert world.ran == []


def test_comparing_folders_reads_every_setting_apart(cache: Path) -> None:
    know()
    paths = folder(cache / "old"), folder(cache / "new1")
    for path, times in zip(paths, (30.0, 60.0), strict=True):
        case = a_case("griffin", prompt_tokens=128)
        append(path, [a_record(case, n, nights.MACHINE, False, {"decode_ms": [times]}) for n in range(1, 8)])
    found = compare_folders(*map(CommitResults.read, paths), Floors().known())
    ratios = {
        row.case.prompt_tokens: row.ratio for row in found.rows if (row.case.method, row.split) == ("griffin", "decode")
    }
    assert ratios == {64: pytest.approx(1, abs=0.01), 128: pytest.approx(2)}
    assert found.unjudged[0].startswith("cannot tell: decode of griffin 0.5 on shape:25m")


# For real.


@pytest.mark.slow
def test_two_real_commits_of_this_repository(tmp_path: Path) -> None:
    """Two commits of a clone: the real package, installed, in real processes; the second run pays nothing."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    old = _git(clone, "rev-parse", "HEAD")
    with open(clone / "README.md", "a") as file:
        file.write("\nMore.\n")
    _git(clone, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-am", "Say more")
    words = [sys.executable, "-m", "tda.cli.main", "compare", old, "HEAD", "--repo", str(clone), "--json"]
    words += ["--model", "shape:25m", "--method", "griffin", "-s", "0.5", "--prompt-tokens", "16", "--new-tokens", "4"]
    words += ["--rounds", "1", "--blocks", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert first.returncode in (0, 1, 3), first.stderr  # a busy machine may well show something in 4 blocks
    rows = json.loads(first.stdout)
    assert {row["case"] for row in rows} == {DENSE, GRIFFIN}
    name = f"{old[:10]}-{_git(clone, 'rev-parse', 'HEAD')[:10]}"
    units, problems = History(tmp_path / "results" / "compare").units(name)
    assert problems == []
    assert [unit.status for unit in units] == ["ok"] * 12
    assert all(record.commit == Commit(hash=unit.commit, dirty=False) for unit in units for record in unit.records)
    second = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (first.returncode, first.stdout)
    assert len((tmp_path / "results" / "compare" / "nights" / f"{name}.jsonl").read_text().splitlines()) == 12
    assert len(Floors(tmp_path / "cache" / "tda" / "floors.jsonl").known()) == len(rows)


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


# Seen to fail where a mend is undone, as the tests before them did not.


@pytest.mark.parametrize(("each", "blocks"), [(10.0, 6), (25.0, 2), (100.0, 1), (1.0, 8)])
def test_a_floor_is_measured_within_its_time(
    each: float, blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block is begun that would not end in time; one is measured however long it takes, and so many at most."""
    clock = [0.0]
    monkeypatch.setattr(workbench, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    ran = []

    def run(self: Workbench, name: str, builds: Any, grid: Any, most: int, stage: str = "first") -> list[Any]:
        clock[0] += each
        ran.append(most)
        return []

    monkeypatch.setattr(Workbench, "run", run)
    Workbench(out=tmp_path, work=tmp_path).run_for("n", [], None, 8, 60.0)
    assert ran == list(range(1, blocks + 1))
    assert clock[0] <= max(60.0, each)


def test_settings_share_the_time_of_a_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tda.changes.folder import CommitResults
    from tda.changes.folder_floors import measure_floor
    from tda.results import append
    from tests.test_compare import a_case, a_record, folder

    monkeypatch.setattr(folder_floors, "machine", lambda name: nights.MACHINE)
    monkeypatch.setattr(workbench, "machine", lambda name: nights.MACHINE)
    monkeypatch.setattr(folder_floors, "check_measured", lambda units, commit: None)
    paths = folder(tmp_path / "old"), folder(tmp_path / "new1")
    for path in paths:
        for number in range(1, 8):
            times = {"decode_ms": [6.0], "prefill_ms": [30.0]}
            append(path, [a_record(a_case("dense", prompt_tokens=128), number, nights.MACHINE, False, times)])
    given = []
    monkeypatch.setattr(
        Workbench, "run_for", lambda self, name, builds, grid, most, seconds: given.append(seconds) or []
    )
    bench_ = Workbench(out=tmp_path, work=tmp_path)
    measure_floor(bench_, *map(CommitResults.read, paths), 8)
    assert given == [60.0, 60.0]


@pytest.mark.parametrize("apart", [1.0, 1.8])
def test_two_modes_of_processes_are_named_between_commits(apart: float) -> None:
    draw = np.random.default_rng(0)
    made = [
        nights.unit(
            commit,
            [nights.record(decode_ms=(8 * apart if (block + place) % 2 else 8) * np.exp(draw.normal(0, 0.01)))],
            role=role,
            block=block,
        )
        for block in range(1, 9)
        for place, (commit, role) in enumerate((("a", "control"), ("a", "commit"), ("b", "commit")))
    ]  # fmt: skip
    judged = Judged(made, Pair("b", "a"), "")
    assert judged.modes == (apart > 1)
    assert any("two modes" in told for told in unjudged(judged.rows, judged.modes)) == (apart > 1)


def test_the_floor_has_the_noise_of_both_folders(cache, tda) -> None:
    paths = folder(cache / "old", control=1.05), folder(cache / "new1", control=1.05)
    _, rows, _ = tda("compare", *paths)
    floors = {row["split"]: row["floor"] for row in rows if row["case"].startswith("dense")}
    assert floors["decode"] == pytest.approx(0.05 * 2**0.5, abs=0.01)


@pytest.mark.parametrize("alone", [0, 1])
def test_a_control_in_one_folder_is_no_floor(alone: int, cache, tda) -> None:
    controls = [1.02 if number == alone else None for number in range(2)]
    code, rows, _ = tda(
        "compare", folder(cache / "old", control=controls[0]), folder(cache / "new1", control=controls[1])
    )
    assert (code, {row["verdict"] for row in rows}) == (3, {"cannot tell"})


def test_commits_whose_noise_hides_everything_end_with_3(tmp_path, monkeypatch, tda) -> None:
    world = World(tmp_path, monkeypatch, noise=0.25)
    code, rows, err = tda("compare", world.commit(), world.commit(), *SPEED[:-1], 4)
    assert code == 3, err
    assert "cannot tell" in {row["verdict"] for row in rows}
    assert "cannot tell" in err
