"""What speaks against the numbers, kind by kind."""

from collections.abc import Iterable

from tda.records import Record
from tda.web.report.comparison import ComparedCase
from tda.web.report.setting import settings


def raised_flags(cases: Iterable[ComparedCase]) -> dict[str, list[str]]:
    """Warnings by kind, flags of records and what follows from comparing, each with its cases and details."""
    held: dict[str, list[str]] = {}
    for case in cases:
        for kind, detail in case.warning_details.items():
            held.setdefault(kind, []).append(f"{case.record.case.model}, {case.label}: {detail}")
    return held


def warning_lines(*machines: Iterable[Record]) -> list[str]:
    """A line for each kind of warning, for a terminal: in how many cases, and one of them."""
    cases = [case for records in machines for setting in settings(records) for case in setting.cases]
    return [
        f"{name} in {len(sentences)} of {len(cases)} cases, e.g. {sentences[0]}"
        for name, sentences in raised_flags(cases).items()
    ]
