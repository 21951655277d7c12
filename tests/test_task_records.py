"""Facts and scores of tasks in records: how lines of round 0 add to each other, and what options ask of tasks."""

from pathlib import Path
from typing import Any

import nights
import pytest

from tda import tasks
from tda.bench.plan import Plan, Subject
from tda.bench.planning import plan_of
from tda.bench.presets import PAPER_MODELS, PAPER_TASKS, PRESETS
from tda.config import BenchConfig
from tda.models.shapes import SHAPES
from tda.records import Measurement, Record, TaskFacts, measurement_kind, merge
from tda.tasks import Ask, Item, TaskResult

FACTS = TaskFacts(digest="d", items=2, shots=0, protocol="all_sparse", source="s", harness="h", sparse_share=1.0)


def item(number: int, score: float, tokens: int = 3) -> Item:
    return Item(number, "prompt", "target", "output", {"acc": score}, tokens, tokens)


def line(**changes: Any) -> Record:
    """A line of round 0."""
    record = nights.record("griffin")
    empty: dict[str, Any] = {"round": 0, "measurements": {}, "flags": {}, "achieved_sparsity": ()}
    return record.model_copy(update={**empty, **changes})


def scored(name: str, value: float, **facts: Any) -> Record:
    result = TaskResult(name, FACTS.model_copy(update=facts), [item(0, value), item(1, value)])
    return line(measurements=result.measurements(), tasks={name: result.facts})


def test_lines_of_round_0_add_to_each_other() -> None:
    documents = line(
        measurements={"nll_nats": Measurement.of("nll_nats", [1.0, 2.0], [0, 1])}, achieved_sparsity=(0.5,)
    )
    (joined,) = merge([documents, scored("one", 1.0), scored("two", 0.0)])
    assert joined.samples("nll_nats") == (1.0, 2.0)
    assert joined.samples("task_one_acc") == (1.0, 1.0)
    assert joined.samples("task_two_acc") == (0.0, 0.0)
    assert set(joined.tasks) == {"one", "two"}
    assert joined.achieved_sparsity == (0.5,)
    assert joined.seconds == pytest.approx(3 * documents.seconds)


def test_a_later_line_of_a_task_takes_the_place_of_an_earlier_one() -> None:
    (joined,) = merge([scored("one", 1.0, digest="old"), scored("one", 0.0, digest="new")])
    assert joined.samples("task_one_acc") == (0.0, 0.0)
    assert joined.tasks["one"].digest == "new"


def test_a_task_that_failed_is_told_until_it_succeeds() -> None:
    failed = line(tasks={"one": FACTS.model_copy(update={"failure": "out of memory"})})
    (joined,) = merge([failed, scored("two", 1.0)])
    assert joined.tasks["one"].failure == "out of memory"
    (joined,) = merge([failed, scored("two", 1.0), scored("one", 1.0)])
    assert joined.tasks["one"].failure is None


def test_tasks_live_beside_timed_rounds() -> None:
    timed = nights.record("griffin").model_copy(update={"round": 1})
    (joined,) = merge([scored("one", 1.0), timed])
    assert joined.samples("task_one_acc") == (1.0, 1.0)
    assert joined.tasks["one"] == FACTS
    assert joined.samples("decode_ms") == timed.samples("decode_ms")


def test_a_damaged_round_0_does_not_hide_a_good_one() -> None:
    broken = line(status="error", reason="broke")
    (joined,) = merge([scored("one", 1.0), broken])
    assert joined.status == "ok"
    assert joined.samples("task_one_acc") == (1.0, 1.0)


def test_what_came_of_a_task_is_no_part_of_its_setting() -> None:
    assert FACTS.setting == FACTS.model_copy(update={"sparse_share": 0.0, "failure": "x"}).setting
    for name, value in {"digest": "e", "items": 3, "shots": 1, "protocol": "decode", "harness": "i"}.items():
        assert FACTS.setting != FACTS.model_copy(update={name: value}).setting, name


def test_kinds_of_scores() -> None:
    assert measurement_kind("task_hellaswag_acc_norm").unit == "share"
    assert measurement_kind("task_recall_nll").better == "lower"
    assert measurement_kind("task_xsum_output_tokens").better is None
    assert measurement_kind("task_wikitext_bits_per_byte").unit == "bits/byte"


def test_measurements_of_a_result() -> None:
    result = TaskResult("xsum", FACTS, [item(4, 0.5, 7), item(9, 0.25, 2)], generated=True)
    found = result.measurements()
    assert set(found) == {"task_xsum_acc", "task_xsum_output_tokens"}
    assert found["task_xsum_acc"].samples == (0.5, 0.25)
    assert found["task_xsum_acc"].groups == (4, 9)
    assert found["task_xsum_output_tokens"].samples == (7.0, 2.0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None if name == "datasets" else name)
    with pytest.raises(ValueError, match=r"pip install 'tda-bench\[eval\]' \(not installed: datasets\)"):
        tasks.check_extra()


# What is asked.


def test_tasks_are_named_in_one_word_or_several() -> None:
    config = BenchConfig.of({"tasks": ["hellaswag, piqa", "copa"]})
    assert config.tasks == ("hellaswag", "piqa", "copa")
    assert BenchConfig.of({"tasks": "hellaswag,piqa,hellaswag"}).tasks == ("hellaswag", "piqa")
    assert BenchConfig.of(config.options()) == config


def test_a_plan_with_tasks(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").touch()
    plan = plan_of(BenchConfig(models=("ref:wide",), tasks=("hellaswag", "piqa"), task_data=tmp_path, items=5, shots=2))
    assert plan.tasks == (
        Ask("hellaswag", items=5, shots=2),
        Ask("piqa", data=tmp_path / "piqa.jsonl", items=5, shots=2),
    )
    assert (plan.protocol, plan.budget_s) == ("all_sparse", None)
    assert plan_of(BenchConfig(tasks=("piqa",), budget="2m", protocol="decode")).budget_s == 120


@pytest.mark.parametrize("make", [lambda path: path / "nowhere", lambda path: path])
def test_a_folder_without_data_of_the_tasks_is_refused(tmp_path: Path, make: Any) -> None:
    with pytest.raises(ValueError, match=r"piqa\.jsonl"):
        plan_of(BenchConfig(tasks=("piqa",), task_data=make(tmp_path)))


def test_documents_are_needed_where_there_are_no_tasks() -> None:
    with pytest.raises(ValueError, match="documents must be at least 1"):
        Plan((Subject("ref:relu"),), documents=0)
    assert Plan((Subject("ref:relu"),), documents=0, tasks=(Ask("piqa"),)).documents == 0


def test_the_preset_of_the_paper_is_its_matrix() -> None:
    plan = PRESETS["paper"]
    assert [subject.model for subject in plan.subjects] == list(PAPER_MODELS)
    assert set(PAPER_MODELS.values()) <= set(SHAPES)
    assert len(plan.subjects) == 6
    assert [task.name for task in plan.tasks] == list(PAPER_TASKS)
    assert len(PAPER_TASKS) == 9
    assert plan.sparsities == (0.25, 0.5, 0.75)
    assert {method.name for method in plan.build()} == {"dense", "tt", "griffin", "tda"}
    one = plan_of(BenchConfig(preset="paper", models=("google/gemma-2b",)))
    assert one.subjects == tuple(subject for subject in plan.subjects if subject.model == "google/gemma-2b")


@pytest.mark.parametrize("words", ["", ",", "hellaswag,", [""], ["a", ""]])
def test_a_task_without_a_name_is_refused(words: Any) -> None:
    with pytest.raises(ValueError, match="a task has a name"):
        BenchConfig.of({"tasks": words})


@pytest.mark.parametrize("options", [{"items": 3}, {"shots": 0}, {"chat_template": True}, {"task_data": Path("x")}])
def test_options_of_tasks_need_a_task(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"--[a-z-]+: for tasks, and none is named"):
        plan_of(BenchConfig(**options))
