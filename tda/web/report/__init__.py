"""Reports from records alone: a page with figures, a table, and rows for a terminal. Imports no torch."""

from tda.web.report.report import Report, build_report
from tda.web.report.scores import task_levels, task_rows
from tda.web.report.table import summary_rows
from tda.web.report.terminal import SHORT_HEADS, SPARE, judged_rows
from tda.web.report.trust import warning_lines
from tda.web.report.verdicts import explained, verdict_rows

__all__ = [
    "SHORT_HEADS",
    "SPARE",
    "Report",
    "build_report",
    "explained",
    "judged_rows",
    "summary_rows",
    "task_levels",
    "task_rows",
    "verdict_rows",
    "warning_lines",
]
