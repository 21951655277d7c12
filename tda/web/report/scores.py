"""The table of task scores as a terminal shows it: a row for each case and task."""

from collections.abc import Iterable

from tda.derived import Missing
from tda.records import Record
from tda.statistics import LEVEL, MARGIN, Estimate
from tda.web.report.comparison import ComparedCase
from tda.web.report.setting import Setting, settings
from tda.web.theme.formatting import MISSING, interval, number


def task_levels(records: Iterable[Record]) -> str:
    """What the intervals of differences in the table are, for each model."""
    scored = [setting for setting in settings(records) if setting.tasks]
    sentences = [f"{setting.name_among(scored)}: {multiplicity(setting)}" for setting in scored]
    return " ".join(sentences) if len(sentences) > 1 else "".join(multiplicity(setting) for setting in scored)


def task_rows(records: Iterable[Record]) -> list[dict[str, str]]:
    """A row for each case and task: score, difference to dense, what it says, tokens computed sparsely, and latency.

    Parameters
    ----------
    records : iterable of Record
        Lines of one machine and commit, merged or not.
    """
    found = settings(records)
    return [
        {"model": setting.name_among(found), "method": case.label, "task": task, **_cells(case, task)}
        for setting in found
        for task in setting.tasks
        for case in setting.cases
        if task in case.record.tasks
    ]


def multiplicity(setting: Setting) -> str:
    """At which level the intervals of a setting's differences are, in a sentence."""
    count = setting.comparisons
    if count == 1:
        return "Intervals of differences are at 95%."
    level = f"{1 - (1 - LEVEL) / count:.2%}"
    return f"Verdicts hold for all {count} comparisons together: intervals of differences are at {level} (Bonferroni)."


def _cells(case: ComparedCase, task: str) -> dict[str, str]:
    name, share = case.headline(task), case.record.tasks[task].sparse_share
    difference, verdict = case.task_difference(task), case.task_verdict(task)
    error = None if name is None else case.score_error(name)
    return {
        "score": MISSING if name is None else name.removeprefix(f"task_{task}_"),
        "items": str(case.record.tasks[task].items),
        "value": case.score_missing(task) if name is None else _shown(case.score(name)),
        "standard error": MISSING if error is None else number(error, 2),
        "to dense": MISSING if isinstance(difference, Missing) else interval(difference, signed=True),
        f"verdict (±{MARGIN:g})": MISSING if isinstance(verdict, Missing) else verdict,
        "sparse tokens": MISSING if share is None else f"{share:.1%}",
        "decode (ms)": _shown(case.decode_ms, ", cache-resident" if case.cache_resident else ""),
        "speed-up (×)": _shown(case.speedup, ", not trusted" if case.warnings and not case.is_dense else ""),
    }


def _shown(estimate: Estimate | None, warning: str = "") -> str:
    return MISSING if estimate is None else interval(estimate) + warning
