"""Whether a method is worth it: the rule, its two numbers, and the lines of terminal and page."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tda.records import Flag, Measurement, Record
from tda.web.report import judged_rows, verdict_rows
from tda.web.report.setting import settings
from tda.web.report.verdicts import judged, worth
from tda.worth import DEFAULT, WorthRule
from tests.test_reporting import Tags, a_case, a_line, again, report_of, scored, speed_lines, timed

DENSE, CATS = a_case("m", "dense", 0.0), a_case("m", "cats", 0.5)


def lines(
    speedup: float = 1.3,
    loss: float = 0.0,
    *,
    spread: float = 0.01,
    loss_spread: float = 0.001,
    rounds: int = 7,
    documents: int = 12,
    control: bool = True,
    **changes: Any,
) -> list[Record]:
    """A bench of cats with a speed-up and a loss that scatter by so much, and dense with the same noise."""
    draw = np.random.default_rng(5)
    found = []
    for case, faster, lost in ((DENSE, 1.0, 0.0), (again(DENSE), 1.0, 0.0), (CATS, speedup, loss)):
        if case.control is not None and not control:
            continue
        nll = (
            3.0 + np.linspace(-0.5, 0.5, documents) + lost + (loss_spread * draw.normal(size=documents) if lost else 0)
        )
        measured = {"nll_nats": Measurement.of("nll_nats", nll.tolist(), range(documents))}
        if case.control is None:
            found.append(a_line(case, 0, measured))
        for number in range(1, rounds + 1):
            line = timed(case, number)
            steps = [40.0 / faster * math.exp(spread * draw.normal())] * 16
            of_case = {"decode_ms": Measurement.of("decode_ms", steps)}
            told = changes if case == CATS else {}
            found.append(line.model_copy(update={"measurements": line.measurements | of_case, **told}))
    return found


def verdict(records: Iterable[Record], rule: WorthRule = DEFAULT) -> str:
    (row,) = verdict_rows(records, rule)
    return row["verdict"]


LOADED = {"foreign_load": Flag(raised=True, detail="others used 20%")}


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({}, "worth it"),
        ({"speedup": 0.9}, "not: speed-up below 1.05"),
        ({"speedup": 1.0}, "not: speed-up below 1.05"),
        ({"loss": 0.2}, "not: ΔNLL above 0.05"),
        ({"speedup": 0.9, "loss": 0.2}, "not: speed-up below 1.05; ΔNLL above 0.05"),
        ({"loss": 0.05, "loss_spread": 0.02}, "cannot tell: ΔNLL on both sides of 0.05"),
        ({"spread": 0.15}, "cannot tell: speed-up is "),
        ({"rounds": 4}, "cannot tell: fewer than 5 rounds"),
        ({"documents": 4}, "cannot tell: fewer than 5 documents"),
        ({"control": False}, "cannot tell: no A/A control"),
        ({"flags": LOADED}, "cannot tell: speed not trusted (background load)"),
        ({"flags": LOADED, "loss": 0.2}, "not: ΔNLL above 0.05"),
        ({"execution": "masked"}, "cannot tell: no speed (masked execution and the oracle skip nothing)"),
    ],
    ids=str,
)
def test_a_verdict_follows_from_the_intervals(measured: dict[str, Any], said: str) -> None:
    assert verdict(lines(**measured)).startswith(said)


def test_the_noise_of_dense_beside_itself_stands_in_every_verdict() -> None:
    """The same speed-up is worth it in a quiet bench, and unclear where dense differs from itself by as much."""
    quiet, loud = lines(1.15), lines(1.15)
    for place, line in enumerate(loud):
        if line.case.control == "a_a" and line.round:
            factor = 1.25 if line.round % 2 else 0.8
            steps = [factor * sample for sample in line.samples("decode_ms")]
            measured = line.measurements | {"decode_ms": Measurement.of("decode_ms", steps)}
            loud[place] = line.model_copy(update={"measurements": measured})
    assert verdict(quiet) == "worth it"
    assert verdict(loud).startswith("cannot tell: speed-up is ")
    assert all(row["A/A noise"].startswith("±") for row in verdict_rows([*quiet], DEFAULT))


@pytest.mark.parametrize(
    ("measured", "rule", "said"),
    [
        ({"loss": 0.2}, WorthRule(max_loss_nats=0.3), "worth it"),
        ({"loss": 0.01}, WorthRule(max_loss_nats=0.001), "not: ΔNLL above 0.001"),
        ({}, WorthRule(min_speedup=1.5), "not: speed-up below 1.5"),
        ({"speedup": 1.0}, WorthRule(min_speedup=0.9), "worth it: break-even unclear"),
    ],
    ids=str,
)
def test_the_numbers_of_the_rule_can_be_set(measured: dict[str, Any], rule: WorthRule, said: str) -> None:
    assert verdict(lines(**measured), rule) == said


@pytest.mark.parametrize("wrong", [{"max_loss_nats": -0.1}, {"max_loss_nats": math.nan}, {"min_speedup": 0.0}])
def test_a_rule_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        WorthRule(**wrong)


def test_what_is_repaid_late_says_from_how_many_tokens_on() -> None:
    slow = {"prefill_ms": Measurement.of("prefill_ms", [1300.0, 1300.0])}
    found = [
        line.model_copy(update={"measurements": line.measurements | slow}) if line.case == CATS and line.round else line
        for line in lines(1.3)
    ]
    said = verdict(found)
    assert said.startswith("worth it: from ")
    assert said.endswith(" generated tokens on; measured 17")


def test_only_methods_are_judged_in_the_order_in_which_they_were_measured() -> None:
    names = ("tda", "griffin", "cats")
    records = [scored(DENSE), *(scored(a_case("m", name, s)) for s in (0.5, 0.25) for name in names)]
    records += [scored(a_case("m", "griffin", 0.5, control="cross_domain")), scored(a_case("m", "oracle", 0.5))]
    records += [timed(again(DENSE), 1), timed(DENSE, 1)]
    (setting,) = settings(records)
    assert [case.label for case in judged(setting)] == [f"{name} {s}" for name in names for s in (0.25, 0.5)]


def test_random_weights_have_no_quality_and_no_speed_up_of_another_model() -> None:
    rows = verdict_rows(speed_lines(sparsities=(0.5,)), DEFAULT)
    assert {row["model"] for row in rows} == {"shape:0.3b"}
    assert {row["ΔNLL (nats/token)"] for row in rows} == {"–"}
    assert {row["verdict"].split(":")[0] for row in rows} <= {"cannot tell", "not"}


def test_a_failed_method_has_a_line_of_its_own() -> None:
    failed = a_line(CATS, 1, {}, status="oom", reason="too large")
    assert verdict([timed(DENSE, 1), failed]) == "cannot tell: oom"
    assert verdict([timed(CATS, 1)]) == "cannot tell: no dense run succeeded"


def test_json_has_the_verdict_on_each_method() -> None:
    rows = judged_rows(lines(), DEFAULT)
    assert json.loads(json.dumps(rows)) == rows
    assert [(row["method"], row["verdict"]) for row in rows] == [
        ("dense", None),
        ("dense (A/A control)", None),
        ("cats", "worth it"),
    ]


def test_the_page_begins_with_the_verdicts_and_explains_the_rule(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    records = [line.model_copy(update={"case": line.case.model_copy(update={"model": evil})}) for line in lines()]
    _, html = report_of(tmp_path, records)
    assert html.index('aria-label="Verdicts on ') < html.index("<nav")
    words = Tags(html).text()
    assert "worth it" in words
    assert "at least 1.05×" in words
    assert "at most 0.05 nats per token" in words
    assert evil not in html


def test_a_page_of_dense_alone_says_that_nothing_is_judged(tmp_path: Path) -> None:
    _, html = report_of(tmp_path, [scored(DENSE)])
    assert "no verdict" in html


def test_a_verdict_is_one_of_three_words() -> None:
    for measured in ({}, {"speedup": 0.9}, {"rounds": 1}):
        (setting,) = settings(lines(**measured))
        (case,) = judged(setting)
        assert worth(case, DEFAULT).word in ("worth it", "not", "cannot tell")
