"""Groups of a plan: what belongs together, how many cells, hours by records or bytes, and memory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tda.bench import costs, outlook
from tda.bench.footprint import footprint
from tda.bench.plan import Plan, Subject
from tda.bench.presets import PRESETS
from tda.bench.run import run_bench
from tda.cases import Case
from tda.models import load_model
from tda.models.sizes import sizes_of
from tda.records import Commit, Machine, Measurement, Record, TaskFacts
from tda.results import load
from tda.sweep.groups import SweepGroup, bound, groups_of, plan_rows, together, total_hours
from tda.tasks import Ask

MACHINE = Machine(
    cpu="x", cores=2, threads=2, memory_bytes=1, python="3", torch="2", transformers="5", tda="0", system="Linux"
)
SHAPE = Subject("shape:25m", prompt_tokens=32, new_tokens=8, dtype="bfloat16", quality=False)
TRAINED = Subject("ref:swiglu", prompt_tokens=32, new_tokens=8)


def plan(*subjects: Subject, **changes: Any) -> Plan:
    """Dense and Griffin at 0.5, three rounds, 24 documents."""
    asked = {"methods": ("griffin",), "sparsities": (0.5,), "rounds": 3, "documents": 24, "recall": False, **changes}
    return Plan(subjects or (SHAPE,), **asked)


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that reads 1 GB and makes 100 billion operations in a second."""
    monkeypatch.setattr(outlook, "rates_of", lambda device, dtype: costs.Rates(1e9, 1e11))


def record(case: Case, number: int, seconds: float, **changes: Any) -> Record:
    fields = {"case": case, "round": number, "commit": Commit(), "machine": MACHINE, "status": "ok", "started": "",
              "seconds": seconds, **changes}  # fmt: skip
    return Record(**fields)


def scored(documents: int) -> dict[str, Measurement]:
    return {"nll_nats": Measurement.of("nll_nats", [1.0] * documents, range(documents))}


def attached() -> dict[str, Measurement]:
    return {"attach_ms": Measurement.of("attach_ms", [1.0])}


def cases_of(asked: Plan) -> list[Case]:
    return [case for one in outlook.outlook(asked) for case in one.cases]


def past_of(asked: Plan, seconds: float = 10.0) -> list[Record]:
    """A round of every case, and the memory of its first request."""
    cases = cases_of(asked)
    return [record(case, 1, seconds) for case in cases] + [
        record(case, 0, 1.0, measurements=attached()) for case in cases
    ]


def prepare_hours(asked: Plan) -> float:
    (found,) = outlook.outlook(asked)
    assert found.prepare_s is not None
    return found.prepare_s / 3600


class TestTogether:
    def test_the_nightly_matrix_is_three_groups(self) -> None:
        groups = groups_of(PRESETS["nightly"])
        assert [[one.model for one in group.plan.subjects] for group in groups] == [
            ["ref:wide", "shape:1b"],
            ["ref:relu"],
            ["ref:geglu"],
        ]
        assert [group.name for group in groups] == ["ref:wide", "ref:relu", "ref:geglu"]
        assert [group.timed for group in groups] == [True, False, False]
        assert all(group.plan.sparsities == PRESETS["nightly"].sparsities for group in groups)

    def test_who_is_imitated_comes_first(self) -> None:
        shapes = [replace(SHAPE, model=f"shape:{name}", layer_sparsity_from="ref:swiglu") for name in ("25m", "0.1b")]
        (one,) = groups_of(plan(shapes[0], TRAINED, shapes[1]))
        assert [subject.model for subject in one.plan.subjects] == ["ref:swiglu", "shape:25m", "shape:0.1b"]

    def test_a_model_beyond_the_plan_ties_nobody(self) -> None:
        shapes = [replace(SHAPE, model=f"shape:{name}", layer_sparsity_from="ref:wide") for name in ("25m", "0.1b")]
        assert [group.name for group in groups_of(plan(*shapes))] == ["shape:25m", "shape:0.1b"]

    @given(st.lists(st.none() | st.integers(0, 5), min_size=6, max_size=6))
    def test_every_subject_is_in_one_group_with_whom_it_imitates(self, leads: list[int | None]) -> None:
        subjects = [
            replace(SHAPE, model=f"shape:{place}", layer_sparsity_from=None if lead is None else f"shape:{lead}")
            for place, lead in enumerate(leads)
        ]
        groups = together(subjects)
        assert sorted(one.model for group in groups for one in group) == [one.model for one in subjects]
        place = {one.model: number for number, group in enumerate(groups) for one in group}
        for subject in subjects:
            chain = [subject.model]
            while (lead := leads[int(chain[-1].partition(":")[2])]) is not None and f"shape:{lead}" not in chain:
                chain.append(f"shape:{lead}")
            if lead is None:  # no circle
                assert place[chain[-1]] == place[subject.model]
                assert groups[place[subject.model]][0].model == chain[-1]


class TestHours:
    def test_by_hand_of_records(self) -> None:
        asked = plan()
        (one,) = groups_of(asked, past_of(asked))
        # dense, its control and Griffin: three rounds of 10 s and 1 s for the first request each
        assert one.hours == pytest.approx(prepare_hours(asked) + 3 * (3 * 10 + 1) / 3600)
        assert (one.basis, one.cells) == ("past records", 3)

    def test_rounds_of_any_machine_count_evenly(self) -> None:
        asked = plan()
        other = MACHINE.model_copy(update={"cpu": "y"})
        past = [*past_of(asked), *(record(case, 1, 20.0, machine=other) for case in cases_of(asked))]
        (one,) = groups_of(asked, past)
        assert one.hours == pytest.approx(prepare_hours(asked) + 3 * (3 * 15 + 1) / 3600)

    def test_what_is_not_told_is_as_much_slower_as_the_rest(self) -> None:
        asked = plan()
        modelled = outlook.outlook(asked)[0].seconds
        past = [one for one in past_of(asked, 2 * modelled[0].timed / 3) if one.case.is_baseline and one.round]
        (one,) = groups_of(asked, past)
        documents, timed = (sum(getattr(each, part) for each in modelled) for part in ("documents", "timed"))
        assert one.hours == pytest.approx(prepare_hours(asked) + (documents + 2 * timed) / 3600)
        assert one.basis == "byte model and past records"

    def test_documents_in_proportion_without_the_first_batch(self) -> None:
        asked = plan(replace(TRAINED, speed=False), documents=48)
        past = [record(case, 0, 4.0, measurements=scored(24)) for case in cases_of(asked)]
        (one,) = groups_of(asked, past)
        assert one.cells == 3  # dense, Griffin, and Griffin with another kind's prompt
        assert one.hours == pytest.approx(prepare_hours(asked) + 3 * 4.0 * 48 / (24 - 8) / 3600)

    def test_items_in_proportion(self) -> None:
        asked = plan(replace(TRAINED, speed=False), documents=0, tasks=(Ask("copa", items=50),))
        facts = TaskFacts(digest="d", items=10, shots=0, protocol="all_sparse", source="s", harness="h")
        past = [record(case, 0, 2.0, tasks={"copa": facts}) for case in cases_of(asked)]
        (one,) = groups_of(asked, past)
        assert one.hours == pytest.approx(prepare_hours(asked) + len(cases_of(asked)) * 2.0 * 5 / 3600)

    @pytest.mark.parametrize(
        "changes", [{"device": "cuda"}, {"prompt_tokens": 64}, {"model": "shape:0.1b"}, {"batch": 2}]
    )
    def test_records_of_something_else_tell_nothing(self, changes: dict[str, Any]) -> None:
        asked = plan()
        past = [
            one.model_copy(update={"case": one.case.model_copy(update=changes), "seconds": 1e6})
            for one in past_of(asked)
        ]
        assert groups_of(asked, past) == groups_of(asked)
        assert groups_of(asked)[0].basis == "byte model"

    @pytest.mark.parametrize("changes", [{"seed": 7}, {"execution": "indexed"}, {"layer_sparsity_from": "ref:wide"}])
    def test_records_of_the_same_sizes_tell(self, changes: dict[str, Any]) -> None:
        asked = plan()
        past = [one.model_copy(update={"case": one.case.model_copy(update=changes)}) for one in past_of(asked)]
        assert groups_of(asked, past) == groups_of(asked, past_of(asked))

    def test_failures_tell_nothing(self) -> None:
        asked = plan()
        past = [one.model_copy(update={"status": "timeout"}) for one in past_of(asked, 1e6)]
        assert groups_of(asked, past) == groups_of(asked)

    def test_a_budget_is_the_most(self) -> None:
        asked = plan(budget_s=60.0)
        (one,) = groups_of(asked, past_of(asked, 1e6))
        assert one.hours == pytest.approx(1 / 60)

    def test_a_model_without_a_configuration(self, tmp_path: Path) -> None:
        (one,) = groups_of(plan(replace(SHAPE, model=str(tmp_path / "none"))))
        assert (one.hours, one.memory_bytes, one.weight_bytes, one.basis) == (None, None, None, "unknown")

    def test_the_byte_model_by_hand(self) -> None:
        """A step of shape:25m reads 2 bytes of each weight; a pass of 1024 tokens computes 2 operations of each."""
        count, layers, values = sizes_of("shape:25m").parameters, 8, 8 * 1536
        (subject,) = plan().subjects
        found = costs.Costs(plan(), subject, sizes_of("shape:25m"), costs.Rates(1e9, 1e11))
        assert found.pass_s(1) == pytest.approx(2 * count / 1e9 + layers * costs.LAYER_S)
        whole = 2 * count * 1024 / 1e11 + costs.PASS_READS * 1024 * values * 2 / 1e9
        assert found.pass_s(1024) == pytest.approx(whole + layers * costs.LAYER_S)

    def test_a_precision_asks_for_as_many_rounds_as_lie_between(self) -> None:
        assert costs.expected_rounds(plan(rounds=4, most_rounds=36, precision=0.02)) == 12
        assert costs.expected_rounds(plan(rounds=4, most_rounds=36)) == 4


class TestRows:
    def test_a_row_for_each_group(self) -> None:
        rows = plan_rows([SweepGroup("a", plan(), True, 3_000_000_000, 50_000_000, 1.234, "byte model", 3)])
        assert rows == [
            {"group": "a", "models": "shape:25m", "cells": 3, "weights (GB)": 0.05, "memory (GB)": 3.0, "hours": 1.2,
             "basis": "byte model", "timed": "yes"}
        ]  # fmt: skip

    def test_gpu_memory_where_a_gpu_is_asked_for(self) -> None:
        (row,) = plan_rows(groups_of(plan(device="cuda")))
        assert row["GPU memory (GB)"] is not None

    def test_the_bound_is_the_longest_or_an_even_share(self) -> None:
        groups = [SweepGroup(str(one), plan(), True, None, None, one, "byte model", 1) for one in (3.0, 1.0, 1.0, None)]
        assert total_hours(groups) == 5.0
        assert (bound(groups, 1), bound(groups, 2)) == (5.0, 3.0)


class TestMemory:
    @pytest.mark.parametrize("name", ["ref:swiglu", "ref:relu", "shape:25m"])
    def test_sizes_are_those_of_the_model(self, name: str) -> None:
        model: Any = load_model(name).model
        sizes, config = sizes_of(name), model.config
        assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
        with torch.no_grad():
            cache = model(torch.ones(1, 3, dtype=torch.int64), use_cache=True).past_key_values
        assert 3 * sizes.cached_values == sum(part.numel() for one in cache.layers for part in (one.keys, one.values))
        matrices = 2 if name == "ref:relu" else 3
        assert sizes.ffn_parameters == sizes.layers * matrices * sizes.hidden * sizes.neurons
        assert (sizes.layers, sizes.vocabulary) == (config.num_hidden_layers, config.vocab_size)

    def test_what_is_larger_needs_more(self) -> None:
        def needed(asked: Plan) -> int:
            (subject,) = asked.subjects
            return footprint(asked, subject, sizes_of(subject.model)).host_bytes

        one = plan(TRAINED)
        assert needed(one) > 4 * sizes_of("ref:swiglu").parameters
        assert needed(plan(replace(TRAINED, dtype="bfloat16"))) < needed(one)
        assert needed(plan(replace(TRAINED, prompt_tokens=512))) > needed(one)
        assert needed(plan(replace(TRAINED, model="ref:swiglu:4x"))) > needed(one)
        assert needed(plan(replace(TRAINED, speed=False))) < needed(one)  # without the buffer of the bandwidth

    def test_random_weights_are_made_on_the_gpu(self) -> None:
        sizes = sizes_of("shape:25m")
        found = footprint(plan(device="cuda"), SHAPE, sizes)
        assert found.gpu_bytes is not None
        assert found.gpu_bytes > 2 * sizes.parameters
        loaded = footprint(plan(TRAINED, device="cuda"), TRAINED, sizes_of("ref:swiglu"))
        assert loaded.host_bytes - found.host_bytes == 4 * sizes_of("ref:swiglu").parameters


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bench, as it ran."""
    folder = tmp_path_factory.mktemp("measured")
    sizes = {"prompt_tokens": 32, "new_tokens": 8, "rounds": 1, "documents": 2, "calibration_documents": 2}
    run_bench(folder, models=["ref:swiglu"], methods=["griffin", "cats", "oracle"], sparsities=[0.5], **sizes)
    return folder


def test_cells_are_those_that_a_bench_measures(measured: Path) -> None:
    lines = load(measured).records
    asked = plan(
        TRAINED, methods=("griffin", "cats", "oracle"), speed_methods=("griffin", "cats", "oracle"), rounds=1,
        documents=2, calibration_documents=2,
    )  # fmt: skip
    (one,) = groups_of(asked)
    assert one.cells == len({line.case.key for line in lines})
    assert {case.key for case in cases_of(asked)} == {line.case.key for line in lines}
    timed = {line.case.key for line in lines if line.round}
    (found,) = outlook.outlook(asked)
    assert {case.key for case, cost in zip(found.cases, found.seconds, strict=True) if cost.timed} == timed
    (later,) = groups_of(asked, lines)
    assert later.basis == "byte model and past records"  # two documents are a first look, of which no time is told


def test_a_plan_is_told_with_its_parts_and_its_budget(command: Any) -> None:
    code, printed, err = command("bench", "-m", "shape:25m", "--budget", "5s", "--dry-run")
    assert code == 0, err
    assert "hours in all" in err
    assert "it ends within 0:05" in err
    words = ["-m", "shape:25m", "-s", "0.5", "--budget", "none"]
    code, printed, err = command("bench", *words, "--dry-run", "--json")
    (row,) = json.loads(printed)
    assert row["cases"] == 7  # dense, its control, int8, Griffin, TDA, CATS and TT: those that are timed
    assert row["timed rounds (hours)"] > row["loading (hours)"] > 0 == row["tasks (hours)"]
