"""Tasks in the report: tables, figures, items side by side, the paper's layout. Records are planted; no model runs."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tda.cases import Case, Inputs
from tda.records import Commit, Flag, Measurement, Record, TaskFacts
from tda.statistics import Estimate, item_difference, item_score
from tda.tasks import Item
from tda.web.report import build_report, summary_rows
from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import gather
from tda.web.report.items import MOST_ITEMS, MOST_WORDS, marked
from tda.web.report.paper import Paper, paper_frame
from tda.web.report.setting import Setting, settings
from tda.web.report.tasks import headline, task_scores, unlike
from tda.web.report.verdicts import verdict_rows
from tda.worth import DEFAULT
from tests.browser import opened, serving, watching
from tests.test_reporting import Tags, a_case, a_line, again, case_of, scored, texts, timed, write

EVIL = "<script>alert(1)<b>"
"""No slash: it is a folder's name, too."""
TRAINED = Inputs(weights="w")


def facts(items: int, sparse_share: float = 1.0, **changes: Any) -> TaskFacts:
    return TaskFacts(**{
        "digest": "d",
        "items": items,
        "shots": 0,
        "protocol": "all_sparse",
        "source": "local.jsonl",
        "harness": "lm-eval 0.4",
        "sparse_share": sparse_share,
        **changes,
    })  # fmt: skip


def asked(
    case: Case, scores: Mapping[str, Mapping[str, Sequence[float]]], told: Mapping[str, Any] = {}, **changes: Any
) -> Record:
    """Round 0 of a case that was scored on tasks: score by task and name, one value an item."""
    measured = {
        f"task_{task}_{name}": Measurement.of(f"task_{task}_{name}", values, range(len(values)))
        for task, found in scores.items()
        for name, values in found.items()
    }
    share = 0.0 if case.method == "dense" else 1.0
    tasks = {task: facts(len(next(iter(found.values()))), share, **told) for task, found in scores.items()}
    return a_line(case, 0, measured, tasks=tasks, **{"inputs": TRAINED, **changes})


def right(share: float, items: int, seed: int = 0) -> list[float]:
    """Items of which a share is right, the same ones for equal seeds."""
    return [float(value) for value in np.random.default_rng(seed).random(items) < share]


METHODS = {"dense": 0.70, "griffin": 0.66, "tda": 0.69, "cats": 0.70, "tt": 0.45}


def task_lines(
    model: str = "m", items: int = 400, rounds: int = 7, methods: Iterable[str] = METHODS, slow: float = 1.0
) -> list[Record]:
    """Two tasks and times of dense and methods at 0.5."""
    lines = []
    cases = [a_case(model, method, 0.0 if method == "dense" else 0.5) for method in methods]
    for case in cases:
        share = METHODS[case.method]
        f1 = np.clip(np.random.default_rng(1).normal(share, 0.2, items), 0, 1)
        scores = {"arc_easy": {"acc": right(share, items), "acc_norm": right(share - 0.1, items, 3)},
                  "coqa": {"f1": f1.tolist()}}  # fmt: skip
        lines.append(asked(case, scores))
        lines += [
            timed(case, number, inputs=TRAINED, **({"slow": slow} if slow != 1 else {}))
            for number in range(1, rounds + 1)
        ]
    return lines


def page(tmp_path: Path, records: Iterable[Record]) -> tuple[Path, str]:
    index = build_report([write(tmp_path / "in", records)], tmp_path / "out").index
    return index.parent, index.read_text()


def tasks_part(html: str) -> str:
    """The section on tasks."""
    return html[html.index('<section id="tasks-') :].split("</section>")[0]


def cells(html: str) -> dict[str, dict[str, str]]:
    """Case to heading to text (and reason) of the section's first table."""
    table = tasks_part(html).split("<table")[1].split("</table>")[0]
    headings = re.findall(r"<button[^>]*>(.*?)</button>", table)
    rows = {}
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL):
        found = re.findall(r'<t[hd][^>]*?(?: title="([^"]*)")?>(.*?)</t[hd]>', row, re.DOTALL)
        words = [f"{text} ({title})" if title else text for title, text in found]
        rows[words[0]] = dict(zip(headings, words, strict=True))
    return rows


def only_setting(records: Iterable[Record]) -> Setting:
    (found,) = settings(records)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return page(tmp_path_factory.mktemp("tasks"), task_lines())


# What stands for a task.


def test_scores_belong_to_the_task_with_the_longest_name() -> None:
    record = asked(
        a_case("m", "dense", 0.0),
        {"arc": {"acc": [1.0]}, "arc_easy": {"acc": [0.0], "acc_norm": [1.0]}, "x": {"f1": [1.0]}},
    )
    assert task_scores(record) == {
        "arc": ["task_arc_acc"],
        "arc_easy": ["task_arc_easy_acc", "task_arc_easy_acc_norm"],
        "x": ["task_x_f1"],
    }


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        (("acc", "acc_norm"), "acc_norm"),
        (("f1", "acc"), "acc"),
        (("em", "exact_match_strict", "f1"), "exact_match_strict"),
        (("f1", "exact_match_strict", "exact_match"), "exact_match"),
        (("rouge1", "rougeL"), "rougeL"),
        (("output_tokens", "mcc"), "mcc"),
        (("nll", "bits_per_byte"), "bits_per_byte"),
        (("output_tokens",), None),
        ((), None),
    ],
)
def test_one_score_stands_for_a_task(scores: tuple[str, ...], chosen: str | None) -> None:
    assert headline("t", [f"task_t_{score}" for score in scores]) == (chosen and f"task_t_{chosen}")


# The table.


def test_a_row_has_score_likelihood_latency_and_memory(tmp_path: Path) -> None:
    lines = [record for record in task_lines() if record.case.method in ("dense", "griffin")]
    quality = {
        name: measurement
        for name, measurement in scored(a_case("m", "dense", 0.0)).measurements.items()
        if measurement.samples
    }
    lines = [
        record.model_copy(update={"measurements": record.measurements | quality}) if record.round == 0 else record
        for record in lines
    ]
    energy = {"energy_j_per_token": Measurement.of("energy_j_per_token", [0.5])}
    lines = [
        record.model_copy(update={"measurements": record.measurements | energy}) if record.round == 1 else record
        for record in lines
    ]
    row = cells(page(tmp_path, lines)[1])["griffin 0.5"]
    assert {
        "arc_easy: acc_norm",
        "arc_easy: difference to dense",
        "arc_easy: verdict (margin ±0.01)",
        "arc_easy: tokens computed sparsely (fraction)",
        "coqa: f1",
        "ΔNLL (nats/token)",
        "decode latency (ms/token)",
        "speed-up (×)",
        "peak memory (MB)",
        "energy per token (J)",
    } <= row.keys()
    assert not any("–" in text for text in row.values())


def test_numbers_of_the_table_are_those_of_the_samples(built: tuple[Path, str]) -> None:
    rows = cells(built[1])
    mine, dense = right(0.56, 400, 3), right(0.60, 400, 3)
    error = np.std(mine, ddof=1) / np.sqrt(400)
    found = item_score(mine, share=True)
    assert rows["griffin 0.5"]["arc_easy: acc_norm"] == (
        f"{np.mean(mine):.3f} ± {error:.3f} [{found.low:.3f}, {found.high:.3f}]"
    )
    apart = item_difference(dict(enumerate(mine)), dict(enumerate(dense)), share=True, comparisons=8)
    assert apart is not None
    shown = rows["griffin 0.5"]["arc_easy: difference to dense"]
    assert [float(part) for part in re.findall(r"[-+]?[\d.]+", shown)] == pytest.approx(
        [apart.value, apart.low, apart.high], abs=0.0006
    )
    assert shown.startswith("-")
    assert rows["griffin 0.5"]["arc_easy: tokens computed sparsely (fraction)"] == "1.00"
    assert rows["dense"]["arc_easy: tokens computed sparsely (fraction)"] == "0"
    assert rows["dense"]["arc_easy: difference to dense"] == "– (it is what the others are compared with)"


def test_verdicts_and_their_multiplicity(built: tuple[Path, str]) -> None:
    rows = cells(built[1])
    verdicts = {case: row["arc_easy: verdict (margin ±0.01)"] for case, row in rows.items()}
    assert verdicts["tt 0.5"] == "worse"
    assert verdicts["cats 0.5"] == "cannot tell", "400 equal answers are no proof of one point at this level"
    assert "Verdicts hold for all 8 comparisons together: intervals of differences are at 99.38%" in built[1]
    assert "within ±0.01" in tasks_part(built[1])


def test_equal_answers_of_many_items_are_as_good_as_dense(tmp_path: Path) -> None:
    html = page(tmp_path, task_lines(items=1500, rounds=1, methods=("dense", "cats")))[1]
    assert cells(html)["cats 0.5"]["arc_easy: verdict (margin ±0.01)"] == "as good as dense"


def test_methods_stand_in_their_usual_order(built: tuple[Path, str]) -> None:
    assert list(cells(built[1])) == ["dense", "griffin 0.5", "tda 0.5", "cats 0.5", "tt 0.5"]


def test_comparisons_count_what_is_compared() -> None:
    setting = only_setting(task_lines(items=20, rounds=1))
    assert setting.comparisons == 8
    alone = only_setting([asked(a_case("m", "griffin", 0.5), {"t": {"acc": [1.0] * 9}})])
    assert (alone.comparisons, alone.tasks) == (1, ["t"])


@pytest.mark.parametrize("items", [1, 5])
def test_few_items_say_what_they_can(tmp_path: Path, items: int) -> None:
    row = cells(page(tmp_path, task_lines(items=items, rounds=2))[1])["griffin 0.5"]
    assert ("[" in row["arc_easy: acc_norm"]) == (items == 5)
    assert ("±" in row["arc_easy: acc_norm"]) == (items == 5)
    assert row["arc_easy: verdict (margin ±0.01)"] == "cannot tell"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shots": 5}, "shots 5, dense 0"),
        ({"digest": "other"}, "other items or another prompt"),
        ({"protocol": "decode"}, "protocol decode, dense all_sparse"),
        ({"harness": "lm-eval 0.3"}, "harness lm-eval 0.3, dense lm-eval 0.4"),
        ({"source": "hub/x"}, "data hub/x, dense local.jsonl"),
    ],
)
def test_scores_of_unlike_questions_are_not_compared(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    answers = {"t": {"acc": right(0.5, 50)}}
    cases = [a_case("m", "dense", 0.0), a_case("m", "griffin", 0.5), a_case("m", "cats", 0.5)]
    lines = [asked(case, answers, changes if case.method == "griffin" else {}) for case in cases]
    lines += [timed(case, number, inputs=TRAINED) for case in cases for number in range(1, 6)]
    out, html = page(tmp_path, lines)
    row = cells(html)["griffin 0.5"]
    reason = f"– (not compared with dense: {said})"
    assert row["t: difference to dense"] == row["t: verdict (margin ±0.01)"] == reason
    assert row["t: acc"].startswith("0.")
    assert only_setting(lines).comparisons == 1, "what is not compared takes no part of the level"
    assert f"Not drawn: griffin 0.5 (not compared with dense: {said})" in html
    assert "griffin" not in texts(next(out.glob("figures/*task-1.svg")))
    apart = unlike(lines[1].tasks["t"], lines[0].tasks["t"])
    assert apart is not None
    assert unlike(lines[2].tasks["t"], lines[0].tasks["t"]) is None


def test_without_dense_nothing_is_compared(tmp_path: Path) -> None:
    lines = [record for record in task_lines(rounds=5) if record.case.method != "dense"]
    row = cells(page(tmp_path, lines)[1])["griffin 0.5"]
    assert row["arc_easy: difference to dense"] == "– (no dense run of this setting succeeded)"
    assert row["arc_easy: acc_norm"].startswith("0.5")


def test_what_was_not_scored_says_why(tmp_path: Path) -> None:
    answers = {"t": {"acc": right(0.5, 50)}}
    dense, griffin, cats, tt = (a_case("m", method, 0.5 if method != "dense" else 0.0) for method in
                                ("dense", "griffin", "cats", "tt"))  # fmt: skip
    broken = asked(tt, answers)
    broken = broken.model_copy(update={"measurements": {"task_t_acc": Measurement.absent("task_t_acc", "too long")}})
    failed = a_line(griffin, 0, {}, status="oom", reason="too large", inputs=TRAINED)
    lines = [asked(dense, answers), failed, broken, timed(cats, 1, inputs=TRAINED)]
    rows = cells(page(tmp_path, lines)[1])
    assert rows["griffin 0.5"]["t: acc"] == "– (oom: too large)"
    assert rows["cats 0.5"]["t: acc"] == rows["cats 0.5"]["t: difference to dense"] == "– (not run)"
    assert rows["tt 0.5"]["t: verdict (margin ±0.01)"] == "– (too long)"
    assert rows["dense"]["decode latency (ms/token)"] == "– (not measured)"


def test_likelihoods_are_lower_where_better_and_have_no_margin(tmp_path: Path) -> None:
    nll = np.linspace(1, 2, 60)
    lines = [
        asked(a_case("m", "dense", 0.0), {"wiki": {"nll": nll.tolist()}}),
        asked(a_case("m", "griffin", 0.5), {"wiki": {"nll": (nll + 0.01).tolist()}}),
    ]
    row = cells(page(tmp_path, lines)[1])["griffin 0.5"]
    assert row["wiki: verdict (no margin)"] == "worse"


def test_scores_on_another_scale_are_no_shares(tmp_path: Path) -> None:
    values = np.linspace(20, 40, 60).tolist()
    lines = [asked(a_case("m", method, s), {"xsum": {"bleu": values}}) for method, s in (("dense", 0.0), ("tda", 0.5))]
    row = cells(page(tmp_path, lines)[1])["tda 0.5"]
    assert row["xsum: bleu"].startswith("30.0 ± 0.76 [28.5")
    assert row["xsum: verdict (no margin)"] == "cannot tell"


def test_recall_stays_where_it_was(tmp_path: Path) -> None:
    recall = {"task_recall_accuracy": Measurement.of("task_recall_accuracy", [1.0, 0.0], [0, 1])}
    html = page(tmp_path, [a_line(a_case("m", "dense", 0.0), 0, recall, tasks={})])[1]
    assert "Recall over a distance" in html
    assert '<section id="tasks-' not in html


def test_csv_and_terminal_have_every_score(built: tuple[Path, str]) -> None:
    table = pd.read_csv(built[0] / "table.csv").set_index("method")
    mine = right(0.66, 400)
    found = item_score(mine, share=True)
    row = table.loc["griffin"]
    assert (row.task_arc_easy_acc, row.task_arc_easy_acc_low, row.task_arc_easy_acc_high) == pytest.approx(
        (found.value, found.low, found.high)
    )
    assert {"task_arc_easy_acc_norm", "task_coqa_f1_high", "task_coqa_to_dense_low"} <= set(table.columns)
    assert row.task_comparisons == 8
    rows = summary_rows(task_lines(items=30, rounds=1), ["method", "task_coqa_f1", "task_comparisons"])
    assert {len(row) for row in rows} == {3}
    assert {row["comparisons that differences to dense hold for"] for row in rows} == {"8"}
    with pytest.raises(ValueError, match=r"task_other_acc; known: .*task_coqa_f1"):
        summary_rows(task_lines(items=30, rounds=1), ["task_other_acc"])


# The figure.


def test_a_figure_per_task_has_intervals_on_both_axes(built: tuple[Path, str]) -> None:
    out, html = built
    names = sorted(path.name for path in out.glob("figures/tasks-*.svg"))
    assert names == ["tasks-1-1-task-1.svg", "tasks-1-1-task-2.svg"]
    words = texts(out / "figures" / names[0])
    assert "Decode latency of m (ms per token)" in words
    assert "acc_norm of arc_easy" in words
    assert "griffin" in words
    assert "intervals over items and over rounds" in tasks_part(html)


def test_a_long_name_fits_beside_its_figure(tmp_path: Path) -> None:
    name = "a_task_" + 20 * "with_a_long_name_"
    lines = [asked(DENSE, {name: {"acc": right(0.5, 50)}}), *(timed(DENSE, n, inputs=TRAINED) for n in range(1, 6))]
    out, html = page(tmp_path, lines)
    words = texts(out / "figures" / "tasks-1-1-task-1.svg")
    assert name not in words
    assert "a_task_with_a_long_name_with_a_long…" in words
    assert f"acc of {name} against decode latency of m" in html


def resident(lines: Iterable[Record], methods: Iterable[str]) -> list[Record]:
    flag = Flag(raised=True, detail="3 MB of weights a token, 32 MB of cache")
    chosen = set(methods)
    return [
        record.model_copy(update={"flags": {"cache_resident": flag}})
        if record.round and record.case.method in chosen
        else record
        for record in lines
    ]


def test_a_cache_residents_latency_is_marked_and_never_drawn(tmp_path: Path) -> None:
    out, html = page(tmp_path, resident(task_lines(items=50), METHODS))
    assert not list(out.glob("figures/tasks-*"))
    assert cells(html)["griffin 0.5"]["decode latency (ms/token)"].endswith(", cache-resident")
    assert html.count("No figure of arc_easy and coqa against decode latency") == 1
    assert "cache-resident: 3 MB of weights a token, 32 MB of cache" in tasks_part(html)


def test_only_what_is_cache_resident_is_left_out(tmp_path: Path) -> None:
    out, html = page(tmp_path, resident(task_lines(items=50), ["griffin"]))
    assert "griffin" not in texts(out / "figures" / "tasks-1-1-task-1.svg")
    assert "cats" in texts(out / "figures" / "tasks-1-1-task-1.svg")
    assert "Not drawn: griffin 0.5 (cache-resident: 3 MB" in html
    assert not cells(html)["cats 0.5"]["decode latency (ms/token)"].endswith("cache-resident")


def test_without_times_the_section_says_why_nothing_is_drawn(tmp_path: Path) -> None:
    out, html = page(tmp_path, task_lines(items=50, rounds=0))
    assert not list(out.glob("figures/tasks-*"))
    assert "No figure of arc_easy and coqa against decode latency, since nothing can be drawn" in html
    assert "no latency: not measured" in html


def test_equal_records_give_equal_bytes(tmp_path: Path, built: tuple[Path, str]) -> None:
    out = page(tmp_path, task_lines())[0]
    for path in sorted(built[0].rglob("*.*")):
        assert (out / path.relative_to(built[0])).read_bytes() == path.read_bytes(), path.name


def test_a_name_of_a_task_is_inert(tmp_path: Path) -> None:
    lines = [
        asked(case, {EVIL: {"acc": right(0.5, 30)}})
        for case in (a_case("m", "dense", 0.0), a_case(EVIL, "dense", 0.0), a_case(EVIL, "griffin", 0.5))
    ]
    lines += [timed(record.case, number, inputs=TRAINED) for record in lines for number in range(1, 6)]
    folder = write(tmp_path / "in", lines)
    keep(folder, EVIL, lines[1].case, [an_item(1, EVIL)])
    out = build_report([folder], tmp_path / "out").index.parent
    for name in ("index.html", "items.html"):
        text = (out / name).read_text()
        assert "alert(1)" in text
        assert EVIL not in text
    scripts = [tag for tag, _ in Tags((out / "index.html").read_text()).tags if tag == "script"]
    assert len(scripts) == 1
    for figure in out.glob("figures/tasks-*.svg"):
        assert "<script" not in figure.read_text()


# Items side by side.


def an_item(number: int, output: str, **changes: Any) -> Item:
    return Item(**{
        "number": number,
        "prompt": f"Question {number}:",
        "target": "a fox",
        "output": output,
        "scores": {"f1": 0.5},
        "tokens": 7,
        "sparse_tokens": 6,
        **changes,
    })  # fmt: skip


def keep(folder: Path, task: str, case: Case, items: Iterable[Item], letters: int = 16) -> None:
    """Items beside results, as a run leaves them."""
    path = folder / "items" / task / f"{case.method}-0.5-{case.key[:letters]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))


def sheets(out: Path) -> list[dict[str, Any]]:
    """What the page of items holds."""
    text = (out / "items.html").read_text()
    found = re.search(r'<script type="application/json" id="sheets">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    value: list[dict[str, Any]] = json.loads(found.group(1))
    return value


DENSE, GRIFFIN = a_case("m", "dense", 0.0), a_case("m", "griffin", 0.5)


def with_items(tmp_path: Path, answers: Mapping[Case, Sequence[Item]], more: Iterable[Record] = ()) -> Path:
    lines = [asked(case, {"coqa": {"f1": [0.5] * 30}}) for case in (DENSE, GRIFFIN)]
    folder = write(tmp_path / "in", [*lines, *more])
    for case, items in answers.items():
        keep(folder, "coqa", case, items)
    return build_report([folder], tmp_path / "out").index.parent


def test_items_mark_the_words_that_differ(tmp_path: Path) -> None:
    out = with_items(
        tmp_path,
        {
            DENSE: [an_item(0, "the brown fox"), an_item(1, "a dog")],
            GRIFFIN: [an_item(0, "the red fox"), an_item(1, "a dog")],
        },
    )
    (sheet,) = sheets(out)
    assert sheet["cases"] == ["dense", "griffin 0.5"]
    first, second = sheet["items"]
    assert first["answers"][1]["parts"] == [["same", "the "], ["removed", "brown"], ["added", "red"], ["same", " fox"]]
    assert first["answers"][0]["parts"] == [["same", "the brown fox"]]
    assert [first["changed"], second["changed"]] == [True, False]
    assert second["answers"][1]["parts"] == [["same", "a dog"]]
    assert first["answers"][1]["tokens"] == "6 of 7"
    assert '<a href="items.html">' in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "new words"), ("old words", ""), ("a b  c\nd", "a x  c\n\nd e"), ("é ü", "e u"), ("a", "a ")],
)
def test_marked_words_give_both_texts_back(before: str, after: str) -> None:
    parts = marked(before, after)
    assert "".join(words for kind, words in parts if kind != "added") == before
    assert "".join(words for kind, words in parts if kind != "removed") == after


def test_long_answers_are_not_compared_word_by_word() -> None:
    long = "word " * (MOST_WORDS + 1)
    assert marked(long, "short") == [("removed", long), ("added", "short")]


def test_a_large_task_is_cut_and_says_so(tmp_path: Path) -> None:
    count = MOST_ITEMS + 100
    items = [an_item(number, "same") for number in range(count)]
    (sheet,) = sheets(with_items(tmp_path, {DENSE: items, GRIFFIN: items}))
    assert len(sheet["items"]) == MOST_ITEMS
    assert sheet["notes"] == [
        f"the first {MOST_ITEMS} of {count} items are here; all of them lie in the results folder under items"
    ]


def test_items_without_dense_or_of_another_question_are_not_marked(tmp_path: Path) -> None:
    (sheet,) = sheets(with_items(tmp_path / "alone", {GRIFFIN: [an_item(0, "x")]}))
    assert sheet["notes"] == ["dense's answers were not kept, so that no word is marked"]
    assert not sheet["items"][0]["changed"]
    answers = {DENSE: [an_item(0, "x"), an_item(1, "y")], GRIFFIN: [an_item(0, "z", prompt="Other:"), an_item(2, "w")]}
    (sheet,) = sheets(with_items(tmp_path / "other", answers))
    assert [item["number"] for item in sheet["items"]] == [0, 1, 2]
    assert [item["changed"] for item in sheet["items"]] == [False, False, False]
    assert sheet["items"][0]["answers"][1]["same_question"] is False
    assert sheet["items"][1]["answers"][1] is None


def test_a_damaged_item_is_named_and_an_unknown_file_left(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [asked(DENSE, {"coqa": {"f1": [0.5] * 30}})])
    keep(folder, "coqa", DENSE, [an_item(0, "x")])
    keep(folder, "coqa", a_case("other", "dense", 0.0), [an_item(0, "no case of these")])
    path = next((folder / "items" / "coqa").glob(f"*{DENSE.key}.jsonl"))
    path.write_text(path.read_text() + '{"number": 1\n[]\n{"number": 2}\n' + path.read_text().replace("7", '"x"'))
    (sheet,) = sheets(build_report([folder], tmp_path / "out").index.parent)
    places = [re.search(r", line (\d+) skipped: ", note) for note in sheet["notes"]]
    assert [place and place.group(1) for place in places] == ["2", "3", "4", "5"]
    assert "no case of these" not in (tmp_path / "out" / "items.html").read_text()


@pytest.mark.parametrize(("letters", "found"), [(8, True), (16, True), (4, False), (0, False)])
def test_a_file_is_a_cases_by_its_key(tmp_path: Path, letters: int, found: bool) -> None:
    folder = write(tmp_path / "in", [asked(DENSE, {"coqa": {"f1": [0.5] * 30}})])
    keep(folder, "coqa", DENSE, [an_item(0, "x")], letters)
    keep(folder, "other", DENSE, [an_item(0, "x")], letters)  # no task of these results
    out = build_report([folder], tmp_path / "out").index.parent
    assert (out / "items.html").exists() == found
    assert not found or len(sheets(out)) == 1


def test_items_belong_to_the_last_commit_that_was_scored(tmp_path: Path) -> None:
    line = asked(DENSE, {"coqa": {"f1": [0.5] * 30}})
    later = line.model_copy(update={"commit": Commit(hash="f" * 16, dirty=False)})
    folder = write(tmp_path / "in", [line, later])
    keep(folder, "coqa", DENSE, [an_item(0, "x")])
    (sheet,) = sheets(build_report([folder], tmp_path / "out").index.parent)
    assert sheet["title"].endswith("group 2")


def test_items_are_inert_and_stand_in_no_tag(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--\u2028"
    out = with_items(
        tmp_path, {DENSE: [an_item(0, evil)], GRIFFIN: [an_item(0, evil + " more", prompt=evil, target=evil)]}
    )
    text = (out / "items.html").read_text()
    assert "alert(1)</script>" not in text
    assert text.count("<script") == 2
    assert sheets(out)[0]["items"][0]["answers"][0]["parts"] == [["same", evil]]


def test_without_kept_items_there_is_no_page(built: tuple[Path, str]) -> None:
    assert not (built[0] / "items.html").exists()
    assert "items.html" not in built[1]


def test_items_in_a_browser(tmp_path: Path) -> None:
    items = {
        DENSE: [an_item(number, f"the brown fox {number} <b>bold</b>") for number in range(120)],
        GRIFFIN: [
            an_item(number, f"the {'red' if number % 10 == 0 else 'brown'} fox {number} <b>bold</b>")
            for number in range(120)
        ],
    }
    out = with_items(tmp_path, items)
    with serving(out) as address, opened(tmp_path / "profile") as browser, watching(browser, address):
        browser.open(f"{address}/items.html")
        assert browser.ask("document.querySelectorAll('article').length") == 50
        assert browser.text("article .changed .answer") == "the brownred fox 0 <b>bold</b>"
        assert browser.ask("[...document.querySelectorAll('article:first-of-type ins')].map((e) => e.textContent)") == [
            "red"
        ]
        browser.click("button", "Later")
        assert browser.text("#place") == "51–100 of 120"
        browser.ask("document.getElementById('changed').click()")
        assert browser.text("#place") == "1–12 of 12"
        assert browser.ask("document.querySelectorAll('article').length") == 12


# The paper's layout.


def paper_lines() -> list[Record]:
    """Two trained models on two tasks; of one, TDA and TT are not there."""
    return [*task_lines("ref:a"), *task_lines("ref:b", methods=("dense", "griffin"))]


def paper_rows(table: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of ``paper.csv`` by task, model and method."""
    return {(row["task"], row["model"], row["method"]): row for row in csv.DictReader(io.StringIO(table))}


def rows_of(tmp_path: Path, lines: Iterable[Record]) -> dict[tuple[str, str, str], dict[str, str]]:
    """The same without a page."""
    found = paper_frame(gather([write(tmp_path / "in", lines)]))
    assert found is not None
    return paper_rows(found.to_csv(index=False))


def latency_of(tmp_path: Path, lines: Iterable[Record]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Our latencies by method and model."""
    found = Paper.of(gather([write(tmp_path / "in", lines)]))
    assert found is not None
    return {(row[1], row[2]): row[3:] for row in found.latency() if row[0] == "ours"}


@pytest.fixture(scope="module")
def paper_built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return page(tmp_path_factory.mktemp("paper"), paper_lines())


def test_the_papers_table(paper_built: tuple[Path, str]) -> None:
    out, html = paper_built
    part = html[html.index('<section id="paper-') :].split("</section>")[0]
    heads = re.findall(r'<th scope="colgroup" colspan="(\d+)"><span>(.*?)</span></th>', part)
    assert heads == [("4", "ref:a"), ("4", "ref:b")]
    assert re.findall(r'<th scope="col"(?: class="first")?>(.*?)</th>', part)[:8] == 2 * [
        "dense", "tt 0.5", "griffin 0.5", "tda 0.5"]  # fmt: skip
    rows = paper_rows((out / "paper.csv").read_text())
    mine = item_score(right(0.56, 400, 3), share=True)
    row = rows["arc_easy", "ref:b", "griffin 0.5"]
    assert [float(row[name]) for name in ("value", "low", "high", "items")] == pytest.approx(
        [mine.value, mine.low, mine.high, 400]
    )
    assert row["score"] == "acc_norm"
    assert rows["arc_easy", "ref:b", "tda 0.5"]["note"] == "not yet run"
    assert not rows["arc_easy", "ref:b", "tda 0.5"]["value"]
    scores = [float(rows[task, "ref:a", "tda 0.5"]["value"]) for task in ("arc_easy", "coqa")]
    assert float(rows["average", "ref:a", "tda 0.5"]["value"]) == pytest.approx(sum(scores) / 2)
    assert not any("cats" in label for _, _, label in rows), "no column of the paper's"
    assert "not yet run" in part


def test_published_latencies_are_marked_and_nothing_else_of_a_paper_stands_there(paper_built: tuple[Path, str]) -> None:
    html = paper_built[1]
    part = html[html.index("Latency beside what is published") :].split("</section>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", part)][1:]
    published = [row for row in rows if row[0].startswith("published")]
    assert [row[1:] for row in published] == [
        ["tda", "several", "A100 80GB", "18–25% lower", "–", "–"],
        ["griffin", "Gemma-7B", "L40", "–", "1.29×", "–"],
        ["griffin", "Llama-2-13B", "L40", "–", "1.25×", "–"],
    ]
    ours = {(row[1], row[2]): row[3:] for row in rows if row[0] == "ours"}
    assert ours["tda 0.5", "ref:b"] == ["Test CPU", "not yet run", "not yet run", "not yet run"]
    found = case_of(paper_lines(), "tda").faster("generation_ms")
    assert found is not None
    assert ours["tda 0.5", "ref:a"][1].startswith(f"{100 * (1 - 1 / found.value):.0f}% lower [")


@pytest.mark.parametrize(
    "lines",
    [
        task_lines("ref:a", rounds=0),
        [
            *task_lines("ref:a", rounds=0),
            *(line.model_copy(update={"inputs": Inputs()}) for line in task_lines("shape:b", rounds=0)),
        ],
        [*task_lines("ref:a", rounds=0), asked(a_case("ref:b", "dense", 0.0), {"other": {"acc": [1.0] * 9}})],
    ],
)
def test_the_papers_table_needs_two_trained_models_on_one_task(tmp_path: Path, lines: list[Record]) -> None:
    out, html = page(tmp_path, lines)
    assert '<section id="paper-' not in html
    assert "18–25%" not in html
    assert not (out / "paper.csv").exists()


def test_an_average_of_some_tasks_is_none(tmp_path: Path) -> None:
    more = asked(a_case("ref:b", "dense", 0.0), {"piqa": {"acc": [1.0] * 9}})
    rows = rows_of(tmp_path, [*task_lines("ref:a", rounds=0), *task_lines("ref:b", rounds=0), more])
    assert rows["average", "ref:a", "dense"]["note"] == "not all tasks were scored"
    assert rows["average", "ref:b", "dense"]["value"]
    assert rows["average", "ref:b", "griffin 0.5"]["note"] == "not all tasks were scored"


def test_cells_of_the_paper_are_not_held_against_unlike_questions(tmp_path: Path) -> None:
    lines = [asked(a_case(model, "dense", 0.0), {"t": {"acc": right(0.5, 50)}}) for model in ("ref:a", "ref:b")]
    lines.append(asked(a_case("ref:b", "tda", 0.5), {"t": {"acc": right(0.5, 50)}}, {"shots": 3}))
    row = rows_of(tmp_path, lines)["t", "ref:b", "tda 0.5"]
    assert row["value"] == ""
    assert row["note"].endswith(": shots 3, dense 0")


def test_a_slower_generation_says_so(tmp_path: Path) -> None:
    slow = [line for line in task_lines("ref:b", slow=2.0) if line.case.method == "tda"]
    lines = [*task_lines("ref:a"), *(line for line in task_lines("ref:b") if line.case.method == "dense"), *slow]
    lower, faster, decode = latency_of(tmp_path, lines)["tda 0.5", "ref:b"][1:]
    told = re.fullmatch(r"(\d+)% higher \[(\d+), (\d+)\]", lower)
    assert told is not None
    middle, low, high = map(int, told.groups())
    assert low <= middle <= high
    assert faster.startswith("0.")
    assert decode.startswith("0.")


def test_models_that_were_not_asked_alike_are_named(tmp_path: Path) -> None:
    lines = [
        asked(a_case(model, "dense", 0.0), {"t": {"acc": right(0.5, 50)}, "u": {"acc": [1.0] * 9}}, told)
        for model, told in (("ref:a", {"digest": "x"}), ("ref:b", {"shots": 5}))
    ]
    html = page(tmp_path, lines)[1]
    assert "t was not asked alike of all models (ref:b: shots 5, ref:a 0)." in html
    alike = [lines[0], asked(a_case("ref:b", "dense", 0.0), {"t": {"acc": right(0.5, 50)}})]
    assert "not asked alike" not in page(tmp_path / "alike", alike)[1]


def test_models_of_several_machines_stand_in_one_table(tmp_path: Path) -> None:
    def elsewhere(line: Record, cpu: str) -> Record:
        return line.model_copy(update={"machine": line.machine.model_copy(update={"cpu": cpu})})

    lines = [
        *task_lines("ref:a", methods=("dense", "griffin")),
        *(elsewhere(line, "Other CPU") for line in task_lines("ref:b", methods=("dense", "griffin"))),
    ]
    out, html = page(tmp_path, lines)
    assert html.count('<section id="paper-') == 1
    rows = paper_rows((out / "paper.csv").read_text())
    assert {model for _, model, _ in rows} == {"ref:a", "ref:b"}
    assert len({row["machine"] for row in rows.values()}) == 2
    part = html[html.index("Latency beside what is published") :].split("</section>")[0]
    assert "Test CPU" in part
    assert "Other CPU" in part
    again = [*lines, *(elsewhere(line, "Other CPU") for line in task_lines("ref:a", methods=("dense",)))]
    assert {model for _, model, _ in rows_of(tmp_path / "again", again)} == {
        "ref:a (group 1)",
        "ref:a (group 2)",
        "ref:b",
    }


def test_two_settings_of_a_model_are_two_columns(tmp_path: Path) -> None:
    answers = {"t": {"acc": right(0.5, 50)}}
    cases = [a_case("ref:a", "dense", 0.0), a_case("ref:a", "dense", 0.0, batch=4), a_case("ref:b", "dense", 0.0)]
    rows = rows_of(tmp_path, [asked(case, answers) for case in cases])
    assert [model for task, model, _ in rows if task == "t"] == ["ref:a (batch 1)", "ref:a (batch 4)", "ref:b"]


def test_resident_models_are_named_beside_published_latencies(tmp_path: Path) -> None:
    lines = [*task_lines("ref:a"), *resident(task_lines("ref:b"), METHODS)]
    named = {model for _, model in latency_of(tmp_path, lines)}
    assert named == {"ref:a", "ref:b (cache-resident)"}


def test_a_comparison_is_none_before_a_task_was_scored() -> None:
    case = ComparedCase(timed(DENSE, 1), None)
    assert case.score(None) is None
    assert case.score("task_t_acc") is None
    assert case.score_error("task_t_acc") is None
    assert not isinstance(case.task_difference("t"), Estimate)


# The headline, and what failed.


def alike(method: str, share: float, rounds: int = 7, **changes: Any) -> list[Record]:
    """A case of 2,000 items and its rounds."""
    case = a_case("m", method, 0.0 if method == "dense" else 0.5)
    lines = [asked(case, {"t": {"acc": right(share, 2000)}}, **changes)]
    return lines + [timed(case, number, inputs=TRAINED) for number in range(1, rounds + 1)]


def verdicts(lines: Iterable[Record]) -> dict[str, str]:
    return {row["method"]: row["verdict"] for row in verdict_rows(lines, DEFAULT)}


def test_verdicts_on_tasks_need_all_of_them_as_good_as_dense() -> None:
    control = [timed(again(a_case("m", "dense", 0.0)), number, inputs=TRAINED) for number in range(1, 8)]
    found = verdicts([*alike("dense", 0.7), *control, *alike("griffin", 0.7), *alike("tda", 0.5)])
    assert found == {"griffin 0.5": "worth it", "tda 0.5": "not: worse on t"}


def test_a_verdict_needs_a_speed_that_can_be_trusted() -> None:
    flag = {"foreign_load": Flag(raised=True, detail="other processes used 80% of the cores")}
    found = verdicts([*alike("dense", 0.7), *alike("griffin", 0.7, flags=flag), *alike("tda", 0.5, flags=flag)])
    assert found == {"griffin 0.5": "cannot tell: speed not trusted (background load)", "tda 0.5": "not: worse on t"}


def test_a_task_that_failed_says_why_in_the_table(tmp_path: Path) -> None:
    case = a_case("m", "griffin", 0.5)
    failed = a_line(case, 0, {}, tasks={"t": facts(2000, None, failure="OutOfMemoryError: <b>")}, inputs=TRAINED)
    lines = [*alike("dense", 0.7), failed, *(line for line in alike("griffin", 0.7) if line.round)]
    row = cells(page(tmp_path, lines)[1])["griffin 0.5"]
    assert row["t: acc"] == "– (it failed: OutOfMemoryError: &lt;b&gt;)"
