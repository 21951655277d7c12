"""Tasks of lm-evaluation-harness, every scored or generated token under a method: the extra ``eval``.

This module is light: lm-eval is imported by the modules that run it.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from tda.names import needs_extra
from tda.records import Measurement, TaskFacts

EXTRA = ("lm_eval", "datasets", "rouge_score")
"""Packages that a task needs."""


@dataclass(frozen=True)
class Ask:
    """What is asked of a task.

    Attributes
    ----------
    name : str
        A task of lm-eval, or of ours.
    data : Path or None
        JSONL file that takes the place of the task's data set.
    shots : int or None
        Examples before the question; None is the task's own number.
    items : int or None
        Items at most, the first ones; None is all.
    chat : bool
        Whether the tokenizer's chat template is applied.
    """

    name: str
    data: Path | None = None
    shots: int | None = None
    items: int | None = None
    chat: bool = False


@dataclass(frozen=True)
class Item:
    """One item of a task as a method answered it.

    Attributes
    ----------
    number : int
        Its place in the data set.
    prompt : str
        Everything before the answer, few-shot examples and chat template included.
    target : str
        The right answer, or answers as JSON.
    output : str
        The generated text, or the choice that was taken.
    scores : dict
        Score by name.
    tokens, sparse_tokens : int
        Tokens that were scored or generated, and how many of them were computed sparsely.
    likelihoods : tuple of float
        Log-likelihood of each choice, in nats; empty for a generated answer.
    """

    number: int
    prompt: str
    target: str
    output: str
    scores: dict[str, float]
    tokens: int
    sparse_tokens: int
    likelihoods: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """A task's items as one method answered them.

    Attributes
    ----------
    name : str
        The task, as measurement names spell it: letters, digits and underscores.
    facts : TaskFacts
        What the scores are of.
    items : list of Item
        In the order of the data set.
    generated : bool
        Whether answers were generated.
    """

    name: str
    facts: TaskFacts
    items: list[Item] = field(default_factory=list)
    generated: bool = False

    def measurements(self) -> dict[str, Measurement]:
        """Scores as ``task_<name>_<score>``, a sample per item with the item's number as its group."""
        names = dict.fromkeys(name for item in self.items for name in item.scores)
        values = {name: [item.scores[name] for item in self.items] for name in names}
        if self.generated:
            values["output_tokens"] = [float(item.tokens) for item in self.items]
        numbers = [item.number for item in self.items]
        named = {f"task_{self.name}_{name}": samples for name, samples in values.items()}
        return {name: Measurement.of(name, samples, numbers) for name, samples in named.items()}


def check_extra() -> None:
    """Raise ValueError if a package that tasks need is not installed."""
    absent = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(f"{needs_extra('tasks need', 'eval')} (not installed: {', '.join(absent)})")
