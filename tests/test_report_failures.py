"""What failed, as the page names it: kinds, tries, what came of it, and a stderr that stays text."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tda.records import FAILURES, Failure, FailureKind, Record
from tda.web.report import summary_rows
from tda.web.report.gather import Group
from tda.web.report.sections.failures import COUNTED, Failed, failures, failures_section
from tests.test_reporting import EVIL, Tags, a_case, a_line, dense_only, report_of, scored, timed

TT = a_case("m", "tt", 0.5)


def failed(kind: FailureKind | None = None, number: int = 1, method: str = "tt", **changes: Any) -> Record:
    """A round that failed; without a kind it is as an older record tells it."""
    told = {"status": "oom", "failure": None}
    if kind is not None:
        told = {"status": FAILURES[kind].status, "failure": Failure(kind=kind, stderr=changes.pop("stderr", None))}
    return a_line(a_case("m", method, 0.5), number, {}, **{"reason": "no room\nTraceback", **told, **changes})


def shown(*lines: Record) -> list[tuple[str, int, str, str, int, str]]:
    return [(f.case, f.round, f.what, f.reason, f.tries, f.became) for f in failures(lines)]


def test_every_failed_line_has_a_row_and_good_ones_none() -> None:
    lines = [timed(TT, 1), failed("gpu_memory", 2), *dense_only()]
    assert failures(lines) == [
        Failed("tt 0.5 on m", 2, "did not fit into GPU memory", "no room", 1, "not measured", None)
    ]
    assert failures_section(Group(1, (timed(TT, 1), *dense_only()))) is None


@pytest.mark.parametrize("kind", FAILURES)
def test_what_happened_is_told_in_the_words_of_its_kind(kind: FailureKind) -> None:
    assert [row[2] for row in shown(failed(kind))] == [FAILURES[kind].words]


def test_an_older_record_tells_its_status() -> None:
    assert [row[2] for row in shown(failed(), failed(status="crash"))] == ["oom", "crash"]


def test_a_repetition_counts_in_its_own_series_and_round() -> None:
    other = timed(a_case("m", "cats", 0.5), 1)
    elsewhere = timed(TT, 2)
    assert [row[4:] for row in shown(failed("lost"), other, elsewhere)] == [(1, "not measured")]
    assert [row[4:] for row in shown(failed("lost"), failed("lost"), elsewhere)] == [(2, "given up")] * 2
    told = shown(failed("lost"), failed("crash"), timed(TT, 1))
    assert [row[4:] for row in told] == [(3, "repeated, and measured")] * 2


def test_the_lead_counts_cells_by_how_they_failed() -> None:
    lines = [
        *dense_only(),
        *(failed("gpu_memory", number, "tt") for number in (1, 2, 3)),  # one cell, however often
        failed("gpu_memory", 1, "cats"),
        failed("host_memory", 1, "griffin"),
        failed("crash", 1, "tda"),
        failed("hang", 1, "oracle"),
        failed("timeout", 1, "magnitude"),
        failed("lost", 1, "static_mean"),
        timed(a_case("m", "static_mean", 0.5), 1),
    ]
    content = failures_section(Group(1, tuple(lines)))
    assert content is not None
    assert content.lead == (
        "7 of 8 cases failed in some round: 1 did not fit into host memory, 2 did not fit into GPU memory, 1 crashed, "
        "1 hung, 1 ran out of time and 1 lost with a machine or worker. In the end rounds of 6 cases are missing. To "
        "be killed from outside, or lost with a machine, says nothing of a case."
    )
    mended = failures_section(Group(1, (failed("crash"), timed(TT, 1))))
    assert mended is not None
    assert mended.lead == "1 of 1 cases failed in some round: 1 crashed. All was measured when repeated."
    assert COUNTED.keys() >= FAILURES.keys() | {meaning.status for meaning in FAILURES.values()}


def test_stderr_is_folded_and_stays_text(tmp_path: Path) -> None:
    line = failed("crash", stderr=f"Traceback\n{EVIL}", reason=EVIL)
    _, html = report_of(tmp_path, [*dense_only(), line])
    assert "<script>alert" not in html
    assert "<pre>Traceback\n&lt;script&gt;alert(1)&lt;/script&gt;" in html
    tags = Tags(html)
    assert [tag for tag, _ in tags.tags].count("script") == 1
    assert ("details", {}) in tags.tags  # closed: a reader opens it
    _, html = report_of(tmp_path / "none", [*dense_only(), failed("crash")])
    assert "<pre>" not in html


def test_the_table_of_cases_tells_what_did_not_fit(tmp_path: Path) -> None:
    lines = [*dense_only(), failed("gpu_memory", reason="asked for 3 GB")]
    report, html = report_of(tmp_path, lines)
    told = "did not fit into GPU memory: asked for 3 GB"
    assert f'title="{told}">–</td>' in html
    assert pd.read_csv(report.index.parent / "table.csv").status.tolist() == ["ok", told]
    assert summary_rows(lines)[1]["status"] == told
    assert "What failed" in html


def test_a_page_without_failures_has_no_such_section(tmp_path: Path) -> None:
    _, html = report_of(tmp_path, [scored(a_case("m", "dense", 0.0)), scored(TT)])
    assert "What failed" not in html
