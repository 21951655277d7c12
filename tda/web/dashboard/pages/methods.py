"""What each method is worth now: the newest commit of every machine and setting."""

from collections.abc import Iterator
from dataclasses import dataclass

from tda.web.dashboard.blocks import SETS, SettingHistory, Stop
from tda.web.dashboard.evidence import Evidence
from tda.web.dashboard.formatting import headed, level_text, scaled
from tda.web.dashboard.pages import HtmlPage, page
from tda.web.report.table import Cell


@dataclass(frozen=True)
class MethodColumn:
    """A column of the table, as the report's template wants it."""

    heading: str
    numeric: bool = True


@page("methods", 40, "Methods", "What does each method give now?")
def methods_page(evidence: Evidence) -> Iterator[HtmlPage]:
    """A table per block whose cases have a method, as of its newest clean commit."""
    tables = [_table(evidence, block) for block in evidence.blocks if any(f.method for f in block.cases.values())]
    yield HtmlPage("methods.html", "Methods at the newest commit", "methods.html", {"tables": tables})


def _table(evidence: Evidence, block: SettingHistory) -> dict[str, object]:
    stop = block.newest()
    cases = block.present(stop)
    metrics = [metric for metric in block.metrics if metric != SETS
               and any(block.level(case, metric, stop).estimate for case in cases)]  # fmt: skip
    columns = [MethodColumn("case", numeric=False)]
    columns += [MethodColumn(headed(name, block.unit(name))) for name in metrics]
    return {
        "machine": block.machine_label,
        "title": block.title,
        "label": f"{block.machine_label}, {block.title}",
        "commit": evidence.by_hash[stop.commit],
        "dirty": stop.dirty,
        "columns": columns,
        "rows": [_row(block, case, metrics, stop) for case in cases],
    }


def _row(block: SettingHistory, case: str, metrics: list[str], stop: Stop) -> tuple[str, list[Cell]]:
    """Status, and cells that say why where a number is missing."""
    cells = [Cell(block.cases[case].short, None, "", False)]
    for metric in metrics:
        level = block.level(case, metric, stop)
        sort = None if level.estimate is None else scaled(level.estimate, level.unit).value
        cells.append(Cell(level_text(level), sort, level.missing, True))
    return "failed" if (case, stop) in block.failures else "ok", cells
