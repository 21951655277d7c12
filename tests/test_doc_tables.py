"""The documents' tables hold what the committed records say; and what is written from them is right."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tda.statistics import Estimate
from tools.doc_tables.pages import PAGES, filled, stale
from tools.doc_tables.reference import phrases
from tools.doc_tables.source import RECORDS, ROOT, TABLES, csv_of, told
from tools.doc_tables.studies import SLICED, SLICES


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A copy of the pages."""
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


def rows_of(table: str) -> dict[str, list[str]]:
    """A table's rows by their first cell."""
    return {row[0]: list(row[1:]) for row in TABLES[table]()[1]}


def raw(measurement: str, **case: object) -> dict[int, float]:
    """Samples of a case by group, read from the lines of results.jsonl as plain JSON."""
    found: dict[int, float] = {}
    for line in (RECORDS / "reference" / "results.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if {**case, "control": None}.items() <= record["case"].items() and measurement in record["measurements"]:
            one = record["measurements"][measurement]
            found |= zip(one["groups"], one["samples"], strict=True)
    return found


def test_no_table_and_no_sentence_is_stale() -> None:
    assert stale() == []


def test_every_table_stands_on_a_page() -> None:
    found = {name for page in PAGES for name in re.findall(r"<!-- table: (\S+) -->", (ROOT / page).read_text())}
    assert found == set(TABLES)


@pytest.mark.parametrize("page", PAGES)
def test_a_number_that_is_changed_by_hand_is_seen(pages: Path, page: str) -> None:
    text = (pages / page).read_text()
    block = text.index("<!-- table:")
    digit = re.compile(r"\d\.\d+ [\[(]").search(text, block)
    assert digit is not None
    place = digit.end() - 3
    other = str((int(text[place]) + 1) % 10)
    (pages / page).write_text(text[:place] + other + text[place + 1 :])
    (told_stale,) = stale(pages)
    assert told_stale.startswith(f"{page} holds\n  |")


def test_a_row_that_is_gone_is_seen(pages: Path) -> None:
    page = pages / "docs/results/curve.md"
    lines = page.read_text().splitlines(keepends=True)
    page.write_text("".join(line for line in lines if not line.startswith("| Griffin 0.75")))
    (told_stale,) = stale(pages)
    assert "docs/results/curve.md holds\n  | TDA 0.75" in told_stale


def test_a_sentence_that_says_another_number_is_seen(pages: Path) -> None:
    page = pages / "docs/results/curve.md"
    page.write_text(page.read_text().replace("times as much as Griffin", "times as much as griffin"))
    (told_stale,) = stale(pages)
    assert told_stale.startswith("docs/results/curve.md must say\n  random loses 16 times as much as Griffin")


def test_sentences_are_of_pages() -> None:
    assert set(phrases()) <= set(PAGES)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<!-- table: recall -->\n| a |\n", "a block has no <!-- end -->"),
        ("<!-- table: recalls -->\n<!-- end -->", "no table is called 'recalls'"),
    ],
)
def test_a_broken_block_is_named(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"docs/x.md: {why}"):
        filled(text, "docs/x.md")


def test_what_is_around_a_block_stays() -> None:
    text = "before\n<!-- table: order -->\nold\n<!-- end -->\nafter\n"
    found = filled(text)
    assert found.startswith("before\n<!-- table: order -->\n\n|")
    assert found.endswith("|\n\n<!-- end -->\nafter\n")
    assert "old" not in found
    assert filled(found) == found


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(0.0152, 0.0109, 0.0198, 60), "+0.0152 [+0.0109, +0.0198]"),  # half: 0.0045, so four decimals
        (Estimate(0.000637, 0.0000463, 0.00122, 60), "+0.00064 [+0.00005, +0.00122]"),
        (Estimate(-0.265, -0.303, -0.227, 60), "-0.265 [-0.303, -0.227]"),
        (Estimate(12.04, 0.0, 49.2, 15), "+12 [0, +49]"),
        (Estimate(0.0, 0.0, math.inf, 15), "0 [0, ∞]"),
        (Estimate(0.00031, -0.0097, 0.0114, 40), "+0.000 [-0.010, +0.011]"),
        (Estimate(0.4775, 0.4712, 0.4843, 40), "+0.4775 [+0.4712, +0.4843]"),
        (Estimate(0.9236, 0.9236, 0.9236, 40), "+0.924"),
        (Estimate(0.5, None, None, 3), "+0.500"),
        (None, "–"),
    ],
)
def test_numbers_have_the_decimals_that_their_interval_has(found: Estimate | None, text: str) -> None:
    assert told(found, signed=True) == text


def test_decimals_can_be_limited_and_halves_go_up() -> None:
    assert told(Estimate(0.4775, 0.4712, 0.4843, 40), at_most=3) == "0.478 [0.471, 0.484]"


def test_numbers_are_those_of_the_records_as_plain_json_has_them() -> None:
    own, dense = (
        raw("nll_nats", model="ref:wide", dtype="float32", method=name, sparsity=sparsity)
        for name, sparsity in (("griffin", 0.5), ("dense", 0.0))
    )
    assert own.keys() == dense.keys()
    loss = np.mean([own[group] - dense[group] for group in own])
    assert rows_of("axes")["Griffin 0.5"][3].startswith(f"{loss:+.4f} [")
    answers = raw("task_recall_accuracy", model="ref:relu", method="griffin", sparsity=0.5)
    assert len(answers) == 60
    assert rows_of("recall")["griffin 0.5"][1].startswith(f"{np.mean(list(answers.values())):.2f} [")


def test_slices_are_of_the_same_documents() -> None:
    found = csv_of("slices/slices.csv")
    assert set(found.model) == set(SLICED)
    for over in ("length", "position", "batch"):
        assert found[found["over"] == over].documents.nunique() == 1
    alone = found[found.value == "shared by 1"]
    assert alone.change_nll.abs().max() < 1e-5


class TestWhatTheQualityPageSays:
    """Its sentences, each against the intervals of slices.csv."""

    @pytest.fixture
    def row(self) -> Any:
        found = csv_of("slices/slices.csv").set_index(["model", "method", "over", "value"])
        return lambda *key: found.loc[key]

    @pytest.mark.parametrize("model", SLICED)
    def test_short_prompts(self, row: Any, model: str) -> None:
        assert all(row(model, method, "length", "16").change_low > 0 for method in ("griffin", "tda"))
        for method in ("tt",) if model == "ref:relu" else ("tt", "cats"):
            change = row(model, method, "length", "16")
            assert change.change_low <= 0 <= change.change_high
        if model != "ref:relu":
            mean, griffin = (row(model, method, "length", "16") for method in ("static_mean", "griffin"))
            assert mean.delta_high < griffin.delta_low

    def test_long_answers(self, row: Any) -> None:
        told_apart = {
            (method, model)
            for method in ("griffin", "tda", "static_mean")
            for model in SLICED
            if row(model, method, "position", "65-128").change_low > 0
        }
        griffin = {("griffin", "ref:swiglu"), ("griffin", "ref:wide"), ("tda", "ref:wide")}
        assert told_apart == griffin | {("static_mean", f"ref:{name}") for name in ("swiglu", "geglu", "wide")}
        assert all(row(model, "griffin", "position", "65-128").change_high > 0 for model in SLICED)
        assert all(row(model, "tda", "position", "65-128").change_high > 0 for model in SLICED)

    @pytest.mark.parametrize("model", SLICED)
    def test_batch(self, row: Any, model: str) -> None:
        assert row(model, "griffin", "batch", "shared by 8").change_low > 0
        shared = row(model, "tda", "batch", "shared by 8")
        assert shared.achieved_sparsity < row(model, "tda", "batch", "per_row").achieved_sparsity
        less, more = shared.change_high < 0, shared.change_low > 0
        assert (less, more) == {"ref:relu": (False, True), "ref:wide": (False, False)}.get(model, (True, False))

    def test_kinds(self, row: Any) -> None:
        lines, sums = "code-like", "reasoning-like"
        more = [
            *(("ref:relu", method, "prose", other) for method in ("griffin", "tda") for other in (lines, sums)),
            ("ref:geglu", "griffin", "prose", sums),
            ("ref:wide", "tda", sums, "prose"),
            *(("ref:swiglu", "griffin", "recall", other) for other in ("prose", lines, sums)),
        ]
        for model, method, worse, better in more:
            assert row(model, method, "kind", worse).delta_low > row(model, method, "kind", better).delta_high

    def test_what_is_left_out(self, row: Any) -> None:
        found = csv_of("slices/slices.csv")
        found = found[found.value.isin([value for values in SLICES.values() for value in values])]
        found = found[found.value != "recall"]
        relu_tt = (found.model == "ref:relu") & (found.method == "tt")
        others = found[(found.method != "tda") & ~relu_tt]
        assert (others.achieved_sparsity - 0.5).abs().max() < 0.01
        assert found[relu_tt].achieved_sparsity.between(0.86, 0.88).all()
        assert (found[relu_tt].delta_nll.abs() == 0).all()
