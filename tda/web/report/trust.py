"""What speaks against the numbers, and which of them a reader cannot trust."""

from collections.abc import Iterable

from tda.derived import UNLIKE
from tda.records import Record
from tda.web.report.comparison import Comparison, reasons, settings


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


def verdicts(records: Iterable[Record]) -> list[str]:
    """A sentence for each setting in which some number cannot be trusted: the last word of a terminal."""
    found = settings(records)
    sentences = []
    for setting in found:
        shown = [case for case in setting.cases if not case.is_dense and (case.timed or case.delta_nll is not None)]
        doubtful = [case for case in shown if case.warnings]
        if doubtful:
            many = "" if len(doubtful) == len(shown) else f"{len(doubtful)} of {len(shown)} cases "
            sentences.append(f"{setting.name_among(found)}: {many}cannot be trusted, because {reasons(doubtful)}")
    return sentences
