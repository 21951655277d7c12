"""Tables of a terminal: no line is longer than it, and no word is broken."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda.cli.options import print_rows
from tda.cli.tables import middle_cut, table
from tda.web.report import SHORT_HEADS, SPARE, summary_rows, verdict_rows
from tda.worth import DEFAULT
from tests.test_reporting import a_case, again, quality_lines, scored, timed

PATH = "/" + "/".join(["a-long-folder"] * 9) + "/model"


def records() -> list:
    cases = [a_case("m", "dense", 0.0), a_case("m", "griffin", 0.5), a_case("m", "tda", 0.25)]
    cases += [case.model_copy(update={"model": PATH}) for case in cases]
    rounds = [
        timed(one, number)
        for number in range(1, 7)
        for case in cases
        for one in (case, again(case))[: 1 + (case.method == "dense")]
    ]
    return [*map(scored, cases), *quality_lines("m", (0.5,), ("griffin",)), *rounds]


TABLES = {"cases": lambda: summary_rows(records()), "verdicts": lambda: verdict_rows(records(), DEFAULT)}


def printed(
    rows: list, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **more: bool
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    print_rows(rows, as_json=False, title="Title", heads=SHORT_HEADS, spare=SPARE, group="model", **more)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_and_break_no_word(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = TABLES[name]()
    out = printed(rows, width, monkeypatch, capsys)
    assert max(map(len, out.splitlines())) <= width
    words = {word for row in rows for text in row.values() for word in re.split(r" ", text)}
    heads = {word for name in rows[0] for word in SHORT_HEADS.get(name, name).split()}
    cells = out.split("─\n", 1)[1].split("Not shown")[0]
    strange = set(cells.split()) - words - heads - {middle_cut(PATH, width)}
    assert not strange


def test_narrow_tables_name_what_they_leave_out_and_wide_ones_have_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = TABLES["cases"]()
    narrow, wide = (printed(rows, 80, monkeypatch, capsys, wide=wide) for wide in (False, True))
    assert "Not shown: KL, ran as" in narrow
    assert "Not shown" not in wide
    assert all(head in wide for head in map(str, SHORT_HEADS.values()) if head != "error")


def test_rows_of_a_narrow_table_can_be_told_apart() -> None:
    rows = TABLES["cases"]()
    assert len({(row["model"], row["method"], row["asked sparsity"]) for row in rows}) == len(rows)
    assert {"griffin (another kind's prompt)", "dense (A/A control)"} <= {row["method"] for row in rows}


@given(
    st.lists(st.lists(st.text("ab [],", max_size=30), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(1, 90),
)
def test_no_line_is_longer_than_the_width_even_if_words_are(cells: list[list[str]], width: int) -> None:
    rows = [dict(zip("xyz", row, strict=True)) for row in cells]
    lines, left_out = table(rows, max(width, 7), {"x": "x", "y": "y", "z": "z"}, spare=("z",))
    assert all(len(line) <= max(width, 7) for line in lines)
    assert set(left_out) <= {"z"}


def test_a_path_is_told_by_its_beginning_and_its_end() -> None:
    assert middle_cut("m", 80) == "m"
    cut = middle_cut(PATH, 40)
    assert len(cut) <= 40
    assert cut.startswith("/a-long")
    assert cut.endswith(Path(PATH).name)
