"""Tasks of a record: which scores it has, which one stands for a task, and which of two records may be compared."""

from collections.abc import Iterable

from tda.records import Record, TaskFacts

HEADLINES = ("acc_norm", "acc", "exact_match", "f1", "rougeL", "rougeLsum", "rouge1", "bits_per_byte", "nll")
"""Scores that stand for a task, the first one that it has; a filter's name may follow (``exact_match_strict``)."""
_FIELDS = {"items": "items", "shots": "shots", "protocol": "protocol", "source": "data", "harness": "harness"}
_PROMPTS = "other items or another prompt"


def task_scores(record: Record) -> dict[str, list[str]]:
    """Names of the measurements of each task whose facts are known, ``task_<name>_<score>``."""
    found: dict[str, list[str]] = {name: [] for name in record.tasks}
    for measurement in record.measurements:
        owners = [name for name in found if measurement.startswith(f"task_{name}_")]
        if owners:
            found[max(owners, key=len)].append(measurement)  # arc_easy_acc is no score of a task called arc
    return found


def headline(task: str, measurements: Iterable[str]) -> str | None:
    """The measurement that stands for a task; None where it has no score that may be better or worse."""
    scores = {name.removeprefix(f"task_{task}_"): name for name in measurements}
    for wanted in HEADLINES:
        filtered = (name for score, name in scores.items() if score.startswith(f"{wanted}_"))
        found = scores.get(wanted) or next(filtered, None)
        if found is not None:
            return found
    return next((name for score, name in scores.items() if score != "output_tokens"), None)


def unlike(facts: TaskFacts, dense: TaskFacts) -> str | None:
    """Why scores cannot be compared with dense's, in words; None where they can."""
    if facts.setting == dense.setting:
        return None
    words = apart(facts, dense, "dense") + ([_PROMPTS] if facts.digest != dense.digest else [])
    return f"not compared with dense: {'; '.join(words)}"


def apart(facts: TaskFacts, others: TaskFacts, name: str) -> list[str]:
    """In what a task was asked differently of a model called `name`; its prompts may differ by their template."""
    values = [(word, getattr(facts, field), getattr(others, field)) for field, word in _FIELDS.items()]
    return [f"{word} {mine}, {name} {theirs}" for word, mine, theirs in values if mine != theirs]
