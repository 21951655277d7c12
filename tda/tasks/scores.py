"""Scores of one item: those that lm-eval lacks, and lm-eval's under names that measurements can have."""

import functools
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

ROUGE = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def rouge(answers: Sequence[str], output: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of a summary: F-measure on stems, the best over the references.

    By the package rouge-score. Line breaks are spaces: ROUGE-L is that of the whole text.
    """
    summary = " ".join(output.split())
    found = [_rouge_scorer().score(" ".join(answer.split()), summary) for answer in answers]
    return {name: max(float(scores[name].fmeasure) for scores in found) for name in ROUGE}


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)


def qasper(answers: Sequence[str], output: str) -> dict[str, float]:
    """F1 of an answer: the best over the annotators' answers."""
    return {"f1": max(token_f1(answer, output) for answer in answers)}


def coqa(answers: Sequence[str], output: str) -> dict[str, float]:
    """Exact match and F1 of an answer's first line, by the rule of the data set.

    Where there are several right answers, each is left out in turn, as a person's answer is scored against the others';
    the best over those that stay is averaged over the turns.
    """
    line = output.strip().split("\n")[0]
    exact = [float(_squad_words(answer) == _squad_words(line)) for answer in answers]
    f1 = [token_f1(answer, line) or same for answer, same in zip(answers, exact, strict=True)]
    return {"em": _best_without_each(exact), "f1": _best_without_each(f1)}


def _best_without_each(values: Sequence[float]) -> float:
    """The mean, over each value left out, of the largest of the others; a single value is itself."""
    if len(values) == 1:
        return values[0]
    best = [max(value for place, value in enumerate(values) if place != left) for left in range(len(values))]
    return sum(best) / len(best)


def token_f1(answer: str, output: str) -> float:
    """F1 of SQuAD: words shared between an answer and an output, without case, punctuation and articles.

    Zero where nothing is shared, two empty texts included.
    """
    right, given = _squad_words(answer), _squad_words(output)
    shared = sum((Counter(right) & Counter(given)).values())
    return 2 * shared / (len(right) + len(given)) if shared else 0.0


def _squad_words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", plain).split()


def score_name(metric: str, filtered: str) -> str:
    """A metric under a filter of answers, in letters, digits and underscores; the filter "none" adds nothing."""
    return plain_name(metric if filtered == "none" else f"{metric}_{filtered}")


def plain_name(name: str) -> str:
    """A name in letters, digits and underscores, as measurements have it."""
    return re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")


def of_item(metric: str, value: object, *, averaged: bool, higher: bool) -> tuple[str, float] | None:
    """One item's value of lm-eval's metric as a score; None where the metric is no mean over items.

    Parameters
    ----------
    metric : str
        lm-eval's name.
    value : object
        What lm-eval keeps of an item.
    averaged : bool
        Whether the task's metric is the mean of these values.
    higher : bool
        Whether a higher one is better.

    Notes
    -----
    Bits per byte become those of the item's own text, and a perplexity of answers the answer's ``nll``, in nats.
    """
    if metric == "bits_per_byte" and isinstance(value, tuple):
        likelihood, size = value
        return ("bits_per_byte", -float(likelihood) / (size * math.log(2))) if size else None
    if not isinstance(value, bool | int | float) and not hasattr(value, "__float__"):
        return None
    if metric == "perplexity" and not averaged:
        return "nll", -float(value)
    return (metric, float(value)) if averaged and higher else None


def is_mean(aggregation: Callable[..., Any] | None) -> bool:
    """Whether lm-eval averages a metric's values; it does where a metric names no aggregation."""
    from lm_eval.api.metrics import mean

    return aggregation in (None, mean)
