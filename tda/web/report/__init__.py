"""Reports from records alone: a page with figures, a table, and rows for a terminal. Imports no torch."""

from tda.web.report.report import Report, build_report
from tda.web.report.scores import task_levels, task_rows
from tda.web.report.table import summary_rows
from tda.web.report.trust import doubts, verdicts

__all__ = ["Report", "build_report", "doubts", "summary_rows", "task_levels", "task_rows", "verdicts"]
