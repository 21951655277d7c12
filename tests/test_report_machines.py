"""Machines side by side: no number is ever of two of them, and what differs is the machine's or the method's."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tda.cases import Inputs
from tda.records import Commit, Failure, Machine, Measurement, Record, TaskFacts
from tda.web.report import build_report
from tda.web.report.answers import Answers, last_of
from tda.web.report.gather import Group, gather
from tda.web.report.machines import ALIKE, INTERACTION, SideBySide, differing_facts, names_of, side_by_side
from tda.web.report.paper import paper_frame
from tda.web.report.table import frame
from tda.web.report.verdicts import verdict_rows
from tda.worth import DEFAULT
from tests.test_reporting import MACHINE, a_case, a_line, again, one_model, report_of, scored, timed, write

OTHER = MACHINE.model_copy(update={"cpu": "Other CPU", "cores": 64, "threads": 32, "torch": "2.13"})
THIRD = MACHINE.model_copy(update={"gpu": "Test GPU", "driver": "600.1"})
DENSE, CATS, GRIFFIN = (a_case("m", name, 0.5 if name != "dense" else 0.0) for name in ("dense", "cats", "griffin"))


def taken_on(machine: Machine, lines: Sequence[Record], seed: int = 0, **factors: float) -> list[Record]:
    """The same lines on another machine: `decode` and a method's name are factors on steps, `nll` is added to them."""
    draw = np.random.default_rng(seed)
    made = []
    for line in lines:
        measured = dict(line.measurements)
        factor = factors.get("decode", 1.0) * factors.get(line.case.method, 1.0)
        if line.samples("decode_ms"):
            steps = np.array(line.samples("decode_ms")) * factor * np.exp(0.01 * draw.normal())
            measured["decode_ms"] = Measurement.of("decode_ms", steps.tolist())
        if line.samples("nll_nats") and "nll" in factors:
            shifted = np.array(line.samples("nll_nats"))
            shifted[3] += factors["nll"]
            measured["nll_nats"] = Measurement.of("nll_nats", shifted.tolist(), range(len(shifted)))
        made.append(line.model_copy(update={"machine": machine, "measurements": measured}))
    return made


def groups_of(*machines: Sequence[Record]) -> list[Group]:
    return [Group(number, tuple(lines)) for number, lines in enumerate(machines, start=1)]


def the_table(*machines: Sequence[Record]) -> SideBySide:
    (found,) = side_by_side(groups_of(*machines))
    return found


# Never mixed.

HERE = one_model()
THERE = taken_on(OTHER, HERE, decode=0.5, cats=0.8)


def numbers(groups: Sequence[Group], machine: Machine) -> dict[tuple[Any, ...], list[Any]]:
    """Every number of a machine's cases."""
    table = frame(groups)
    own = table[table.machine == machine.fingerprint]
    return {(row.model, row.method, row.sparsity, row.control): list(row) for row in own.itertuples(index=False)}


@given(order=st.permutations(range(len(HERE) + len(THERE))))
def test_shuffled_lines_of_two_machines_give_each_machines_own_numbers(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("mixed")
    lines = [(*HERE, *THERE)[place] for place in order]
    mixed = gather([write(folder / "mixed", lines)])
    assert len(mixed) == 2
    for machine in (MACHINE, OTHER):
        own = [line for line in lines if line.machine == machine]
        (alone,) = gather([write(folder / machine.cpu, own)])
        (group,) = (one for one in mixed if one.machine == machine)
        assert group.lines == alone.lines
        assert repr(numbers(mixed, machine)) == repr(numbers([alone], machine))
        assert verdict_rows(group.lines, DEFAULT) == verdict_rows(alone.lines, DEFAULT)


def articles(html: str) -> list[str]:
    """What the page says of each group, without its number and its place among figures."""
    found = re.findall(r"<article.*?</article>", html, re.DOTALL)
    kept = [re.sub(r'<span class="ordinal">.*?</span>|<nav.*?</nav>', "", text, flags=re.DOTALL) for text in found]
    kept = [re.sub(r"-[a-z][0-9a-f]{10}\b", "-id", text) for text in kept]  # hashed from the figure's name
    return [re.sub(r"\s+", " ", re.sub(r"\b((?:[a-z]+[-_])+)\d", r"\1N", text)) for text in kept]


def test_a_page_of_a_mixed_folder_says_of_each_machine_what_its_own_page_says(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(len(HERE) + len(THERE))
    lines = [(*HERE, *THERE)[place] for place in order]
    mixed = build_report([write(tmp_path / "mixed", lines)], tmp_path / "page").index.read_text()
    assert mixed.count("<article") == 2
    for text, machine in zip(articles(mixed), dict.fromkeys(line.machine.cpu for line in lines), strict=True):
        own = write(tmp_path / machine, [line for line in lines if line.machine.cpu == machine])
        (alone,) = articles(build_report([own], tmp_path / f"{machine} page").index.read_text())
        assert text == alone


def asked(line: Record, model: str) -> Record:
    """A line that also scored a task."""
    right = [float(place % 3 > 0) for place in range(30)]
    facts = TaskFacts(digest="d", items=30, shots=0, protocol="decode", source="s", harness="h")
    measured = line.measurements | {"task_quiz_acc": Measurement.of("task_quiz_acc", right, range(30))}
    return line.model_copy(
        update={
            "case": line.case.model_copy(update={"model": model}),
            "measurements": measured,
            "tasks": {"quiz": facts},
            "inputs": Inputs(weights=model),
        }
    )


def test_tables_of_the_paper_hold_each_machines_own_scores() -> None:
    lines = [asked(scored(case), model) for model in ("m", "n") for case in (DENSE, GRIFFIN)]
    there = [
        line.model_copy(
            update={
                "machine": OTHER,
                "measurements": {"task_quiz_acc": Measurement.of("task_quiz_acc", [1.0] * 30, range(30))},
            }
        )
        for line in lines
    ]
    table = paper_frame(groups_of(lines, there))
    assert table is not None
    rows = table[(table.task == "quiz") & (table.method == "dense")]
    told = {(row.machine, row.model.split(" ")[0]): row.value for row in rows.itertuples()}
    here = pytest.approx(20 / 30)
    machines = (MACHINE.fingerprint, OTHER.fingerprint)
    assert told == {(machine, model): here if machine == machines[0] else 1.0 for machine in machines for model in "mn"}


def test_answers_are_those_of_the_machine_that_scored_last(tmp_path: Path) -> None:
    """The file of a case's items is written anew: the machine that came first in the folder may have scored last."""
    answers = Answers("quiz", DENSE.key, tmp_path / "none.jsonl")
    early, late = (asked(scored(DENSE, started=f"2026-01-0{day}T00:00:00+00:00"), "m") for day in (1, 2))
    one, other = (line.model_copy(update={"case": DENSE}) for line in (early, late))
    assert list(last_of([answers], [[one], [other]])) == [[], [answers]]
    assert list(last_of([answers], [[other], [one]])) == [[answers], []]


# What is the machine's, and what the method's.


def test_the_ratio_of_dense_is_welch_over_the_rounds_of_both() -> None:
    dense = the_table(HERE, THERE).rows[0]
    assert dense.is_baseline
    (one,) = dense.between
    logs = [
        [np.log(np.median(line.samples("decode_ms"))) for line in lines if line.round and line.case == DENSE]
        for lines in (THERE, HERE)
    ]
    bounds = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert one.ratio is not None
    assert (one.ratio.low, one.ratio.high) == pytest.approx((np.exp(bounds.low), np.exp(bounds.high)))
    assert one.ratio.value == pytest.approx(0.5, rel=0.03)
    assert one.verdict == "the machine's"


def test_a_method_that_gains_otherwise_on_one_machine_is_told_and_one_that_does_not_is_alike() -> None:
    table = the_table(HERE, THERE)
    found = {row.label: row.between[0] for row in table.rows}
    assert found["cats 0.5"].verdict.startswith(INTERACTION)
    assert found["griffin 0.5"].verdict.startswith(ALIKE)
    per_round = {}
    for name, lines in (("here", HERE), ("there", THERE)):
        steps = {
            (line.case, line.round): np.median(line.samples("decode_ms")) for line in lines if line.samples("decode_ms")
        }
        per_round[name] = [np.log(steps[DENSE, place] / steps[CATS, place]) for place in range(1, 8)]
    test = stats.ttest_ind(per_round["there"], per_round["here"], equal_var=False)
    bounds = test.confidence_interval(1 - 0.05 / 2)  # two methods are judged
    ratio = found["cats 0.5"].ratio
    assert ratio is not None
    assert (ratio.low, ratio.high) == pytest.approx((np.exp(bounds.low), np.exp(bounds.high)))
    assert any(sentence.startswith("cats 0.5 gains otherwise on B") for sentence in table.messages)
    assert any(sentence.startswith("1 of 2 ratios of speed-ups are alike") for sentence in table.messages)
    assert any("this ratio is the machine's" in sentence for sentence in table.messages)


def test_a_faster_machine_alone_is_no_interaction() -> None:
    """At a level for all, one table in twenty may tell one that is none: 60 tables hold no more than chance allows."""
    wrong = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        machines = []
        for machine, speed in ((MACHINE, 1.0), (OTHER, 0.2)):
            lines = []
            for place in range(1, 8):
                for case, gain in ((DENSE, 1.0), (CATS, 0.7), (GRIFFIN, 0.8)):
                    steps = [40 * speed * gain * np.exp(0.02 * draw.normal())]
                    measured = {"decode_ms": Measurement.of("decode_ms", steps)}
                    lines.append(a_line(case, place, measured, machine=machine))
            machines.append(lines)
        wrong += any(one.verdict.startswith(INTERACTION) for row in the_table(*machines).rows for one in row.between)
    assert wrong <= stats.binom.ppf(0.999, 60, 0.05)


def test_few_rounds_and_failures_give_no_verdict() -> None:
    def rounds(machine: Machine, count: int) -> list[Record]:
        return [timed(case, place, machine=machine) for place in range(1, count + 1) for case in (DENSE, CATS)]

    (_, cats) = the_table(rounds(MACHINE, 7), rounds(OTHER, 3)).rows
    assert cats.between[0].verdict.startswith("cannot tell with fewer than 5 rounds")
    failed = a_line(CATS, 1, {}, machine=OTHER, status="oom", reason="3 GB", failure=Failure(kind="gpu_memory"))
    there = [line for line in rounds(OTHER, 7) if line.case == DENSE]
    (_, cats) = the_table(rounds(MACHINE, 7), [*there, failed]).rows
    assert cats.between[0].ratio is None
    assert cats.between[0].verdict.endswith(" on B (did not fit into GPU memory: 3 GB)")


def test_unlike_kernels_of_two_machines_are_named() -> None:
    there = [line.model_copy(update={"backend": "c"}) for line in THERE]
    (one,) = next(row for row in the_table(HERE, there).rows if row.label == "griffin 0.5").between
    assert "kernels differ (torch on A, c on B)" in one.verdict


def test_three_machines_are_held_against_the_first() -> None:
    table = the_table(HERE, THERE, taken_on(THIRD, HERE, seed=1, decode=0.25))
    dense = table.rows[0]
    assert [(one.name, one.first) for one in dense.between] == [("B", "A"), ("C", "A")]
    assert [one.ratio.value for one in dense.between if one.ratio] == pytest.approx([0.5, 0.25], rel=0.03)
    assert dense.comparisons == 4


# Quality.


def test_equal_quality_is_told_and_the_largest_difference_where_it_is_not() -> None:
    equal = the_table(HERE, THERE)
    assert any(sentence.startswith("Quality is equal ") for sentence in equal.messages)
    tiny = the_table(HERE, taken_on(OTHER, HERE, nll=2e-5))
    assert tiny.messages[-1] == equal.messages[-1]
    assert [one.largest for row in tiny.rows for one in row.quality] == pytest.approx([2e-5] * 5)
    apart = the_table(HERE, taken_on(OTHER, HERE, nll=0.25))
    words = "NLL differs by at most 0.25 nats/token (1 of 12 documents by more than rounding)"
    assert f"Quality is not equal: griffin 0.5, {words}." in apart.messages
    assert not any(sentence.startswith("Quality is equal ") for sentence in apart.messages)


def test_scores_of_tasks_are_compared_item_by_item_where_they_were_asked_alike() -> None:
    here = [asked(scored(case), "m") for case in (DENSE, GRIFFIN)]
    flipped = Measurement.of("task_quiz_acc", [1.0, *here[0].samples("task_quiz_acc")[1:]], range(30))
    there = [line.model_copy(update={"machine": OTHER}) for line in here]
    there[1] = there[1].model_copy(update={"measurements": there[1].measurements | {"task_quiz_acc": flipped}})
    dense, griffin = the_table(here, there).rows
    assert [str(one) for one in dense.quality] == ["NLL is equal", "acc of quiz is equal"]
    assert str(griffin.quality[1]) == "acc of quiz differs by at most 1.0 share (1 of 30 items by more than rounding)"
    other = TaskFacts(**{**here[0].tasks["quiz"].model_dump(), "digest": "other"})
    there[1] = there[1].model_copy(update={"tasks": {"quiz": other}})
    assert [one.what for one in the_table(here, there).rows[1].quality] == ["NLL"]


# Which machines.


def test_only_one_state_of_the_code_and_shared_cases_are_put_side_by_side() -> None:
    newer = [line.model_copy(update={"commit": Commit(hash="77", dirty=False)}) for line in THERE]
    changed = [line.model_copy(update={"inputs": Inputs(change="c")}) for line in THERE]
    others = [line.model_copy(update={"case": line.case.model_copy(update={"seed": 5})}) for line in THERE]
    text = [line.model_copy(update={"inputs": Inputs(text="t")}) for line in THERE]
    for unlike in (newer, changed, others, text):
        assert side_by_side(groups_of(HERE, unlike)) == []
    assert side_by_side(groups_of(HERE)) == []
    both = side_by_side(groups_of(HERE, THERE, newer, taken_on(THIRD, newer)))
    assert [one.title.rpartition(" · ")[2] for one in both] == ["commit 0123456789", "commit 77"]
    assert [one.names for one in both] == [("A", "B"), ("B", "C")]


def test_a_case_of_one_machine_alone_and_controls_have_no_row() -> None:
    here = [*(timed(case, 1) for case in (DENSE, again(DENSE), CATS, GRIFFIN))]
    there = [line.model_copy(update={"machine": OTHER}) for line in here if line.case != GRIFFIN]
    assert [row.label for row in the_table(here, there).rows] == ["dense", "cats 0.5"]


def test_machines_are_named_shortly_and_told_by_what_differs() -> None:
    assert list(names_of(groups_of(HERE, THERE)).values()) == ["A", "B"]
    many = [MACHINE.model_copy(update={"threads": place}) for place in range(1, 29)]
    named = list(names_of(groups_of(*([timed(DENSE, 1, machine=one)] for one in many))).values())
    assert (named[25:], len(set(named))) == (["Z", "A2", "B2"], 28)
    close = OTHER.model_copy(update={"memory_bytes": MACHINE.memory_bytes + 1000})
    assert differing_facts([MACHINE, close]) == [
        ("CPU", ["Test CPU", "Other CPU"]),
        ("Cores", ["2 cores", "64 cores"]),
        ("Threads", ["2", "32"]),
        ("Memory", ["24,000,000,000 B", "24,000,001,000 B"]),
        ("torch", ["2.12", "2.13"]),
    ]


def test_the_page_shows_machines_side_by_side(tmp_path: Path) -> None:
    evil = OTHER.model_copy(update={"cpu": "<script>alert(1)</script>"})
    there = [line.model_copy(update={"machine": evil}) for line in THERE]
    report, html = report_of(tmp_path, [*HERE, *there])
    assert "Machines side by side" in html
    assert "cats 0.5 gains otherwise on B" in html
    assert "<script>alert" not in html
    section = html[html.index('<section id="machines-1">') :]
    table = pd.read_csv(report.index.parent / "table.csv")
    for speedup in table[table.method == "cats"].speedup:
        assert f">{speedup:.2f} [" in section
    _, alone = report_of(tmp_path / "alone", HERE)
    assert "Machines side by side" not in alone
