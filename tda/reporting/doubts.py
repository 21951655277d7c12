"""What speaks against the numbers: validity flags that were raised, and ratios between unlike kernels."""

from collections.abc import Iterable

from tda.derived import UNLIKE
from tda.records import Record
from tda.reporting.comparison import Comparison, settings


def raised_flags(cases: Iterable[Comparison]) -> dict[str, list[str]]:
    """Raised flags by name, that of unlike kernels too, each with its cases and details."""
    held: dict[str, list[str]] = {}
    for case in cases:
        raised = {name.replace("_", " "): flag.detail for name, flag in case.record.flags.items() if flag.raised}
        if case.unlike_kernels:
            raised[UNLIKE] = case.unlike_kernels
        for name, detail in raised.items():
            held.setdefault(name, []).append(f"{case.record.case.model}, {case.label}: {detail}")
    return held


def doubts(records: Iterable[Record]) -> list[str]:
    """A line for each raised flag, for a terminal: in how many cases, and one of them."""
    cases = [case for setting in settings(records) for case in setting.cases]
    return [
        f"{name} in {len(sentences)} of {len(cases)} cases, e.g. {sentences[0]}"
        for name, sentences in raised_flags(cases).items()
    ]
