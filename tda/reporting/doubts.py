"""What speaks against the numbers: validity flags that were raised."""

from collections.abc import Iterable

from tda.records import Record
from tda.reporting.comparison import Comparison, settings


def raised_flags(cases: Iterable[Comparison]) -> dict[str, list[str]]:
    """Raised flags by name, each with its cases and details."""
    held: dict[str, list[str]] = {}
    for case in cases:
        for name, flag in case.record.flags.items():
            if flag.raised:
                sentence = f"{case.record.case.model}, {case.label}: {flag.detail}"
                held.setdefault(name.replace("_", " "), []).append(sentence)
    return held


def doubts(records: Iterable[Record]) -> list[str]:
    """A line for each raised flag, for a terminal: in how many cases, and one of them."""
    cases = [case for setting in settings(records) for case in setting.cases]
    return [
        f"{name} in {len(sentences)} of {len(cases)} cases, e.g. {sentences[0]}"
        for name, sentences in raised_flags(cases).items()
    ]
