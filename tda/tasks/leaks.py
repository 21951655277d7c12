"""Refuse calibration text that holds what a task asks.

Thresholds know their text as hashes of 64 tokens, which is longer than many a question; where the text is at hand it is
compared in words, case and punctuation aside. An item leaks where its question, a choice or right answer, or a few-shot
example before it shares 13 words in a row with the text, or where a whole question or answer of 8 to 12 words
stands in it.

A task's own wording is no evidence. What belongs to the chat template or to the task's description is never compared.
An instruction within the questions is known by standing in the question of every item of the data set; a run that all
share and that is longer than an instruction is a passage, and counts.
"""

import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tda.quality.documents import encode
from tda.tasks.content import TaskContent, TaskItem
from tda.thresholds import WINDOW, Thresholds

RUN = 13
"""Words in a row that two texts do not share by chance."""
SHORTEST = 8
"""Words of a whole question or answer that do not stand in a text by chance."""
INSTRUCTION = 64
"""Words of the longest instruction that questions share."""
ENOUGH_ITEMS = 4
"""Fewer different items do not show what all have in common."""

Hashes = NDArray[np.uint64]
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_FACTOR = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)  # odd: multiplying by it loses nothing


def words(text: str) -> list[str]:
    """Words of a text, without case and punctuation: what spaces and punctuation separate."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return [word.replace("'", "").replace("’", "") for word in _WORD.findall(folded)]


def check(calibration: Iterable[str], tasks: Sequence[TaskContent]) -> None:
    """Raise ValueError if calibration text shares a passage with an item of a task.

    Parameters
    ----------
    calibration : iterable of str
        Documents, read once.
    tasks : sequence of TaskContent
        What is asked, with few-shot examples.

    Raises
    ------
    ValueError
        Naming the task, the item, where in it the passage stands, and the shared words.
    """
    text = _Text(calibration)
    for task in tasks:
        own = _wording(task)
        for item in task.items:
            for place, content, whole in _parts(item):
                shared = text.shared(content, whole, own)
                if shared is not None:
                    raise ValueError(
                        f"the calibration text holds what task {task.name} asks in item {item.number}, in {place}: "
                        f'"{" ".join(shared)}"; use other text'
                    )


def check_thresholds(thresholds: Thresholds, tokenizer: Any, tasks: Sequence[TaskContent]) -> None:
    """Raise ValueError if prompts or answers share a window of tokens with the text that thresholds were made from.

    Parameters
    ----------
    thresholds : Thresholds
        They know their text as hashes of tokens.
    tokenizer
        The model's.
    tasks : sequence of TaskContent
        What is asked.
    """
    at = ""

    def rows() -> Iterator[NDArray[np.int64]]:
        nonlocal at
        for task in tasks:
            for item in task.items:
                at = f"task {task.name}, item {item.number}"
                yield from _rows(item, tokenizer)

    try:
        thresholds.check_text(rows())
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from None


def _rows(item: TaskItem, tokenizer: Any) -> Iterator[NDArray[np.int64]]:
    """The prompt's tokens with the first answer; then the others, each after as much of it as a window reaches back."""
    prompt: NDArray[np.int64] = encode(tokenizer, item.prompt).numpy()
    answers = item.choices or item.answers or (item.target,)
    for number, answer in enumerate(answers):
        tokens: NDArray[np.int64] = encode(tokenizer, answer).numpy()
        yield np.concatenate([prompt if number == 0 else prompt[-WINDOW:], tokens])


def _parts(item: TaskItem) -> Iterator[tuple[str, list[str], bool]]:
    """Where in an item, its words there, and whether they are a whole question or answer."""
    yield "the question", words(item.question), True
    for answer in item.answers:
        yield "an answer", words(answer), True
    yield "a few-shot example", _without(words(item.prompt), words(item.bare)), False


def _without(prompt: list[str], bare: list[str]) -> list[str]:
    """Words of a prompt that few-shot examples put between those of the bare one."""
    pairs = list(zip(prompt, bare, strict=False))
    front = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    behind = zip(reversed(prompt), reversed(bare), strict=False)
    back = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], behind))
    return prompt[front : len(prompt) - min(back, len(bare) - front)] if len(prompt) > len(bare) else []


class _Text:
    """Runs of words of the calibration text, by length, as sorted hashes."""

    def __init__(self, documents: Iterable[str]) -> None:
        hashed = [_hashes(words(document)) for document in documents]
        self.runs = {
            size: np.unique(np.concatenate([_NONE, *(_runs(document, size) for document in hashed)]))
            for size in range(SHORTEST, RUN + 1)
        }

    def shared(self, content: list[str], whole: bool, own: Mapping[int, Hashes]) -> list[str] | None:
        """The first shared words of a part of an item that are not the task's own; None where there are none."""
        size = len(content) if whole and SHORTEST <= len(content) < RUN else RUN
        runs = _runs(_hashes(content), size)
        found = np.flatnonzero(_among(runs, self.runs[size]) & ~_among(runs, own[size]))
        return content[found[0] : found[0] + size] if len(found) else None


def _wording(task: TaskContent) -> dict[int, Hashes]:
    """By length, the runs that every item of the data set has: an instruction, or choices that are always the same."""
    if len(task.others) < ENOUGH_ITEMS:
        return dict.fromkeys(range(SHORTEST, RUN + 1), _NONE)
    parts = [[_hashes(words(text)) for text in (question, *answers)] for question, answers in task.others]
    found = {size: _in_all([_wholes(part, size) for part in parts]) for size in range(SHORTEST, RUN)}
    common = _in_all([np.concatenate([_runs(text, RUN) for text in part]) for part in parts])
    found[RUN] = np.unique(np.concatenate([_NONE, *(_instructions(text, common) for text in parts[0])]))
    return found


def _in_all(sets: list[Hashes]) -> Hashes:
    return functools.reduce(np.intersect1d, sets)  # sorted


def _wholes(texts: list[Hashes], size: int) -> Hashes:
    """Hashes of the texts that have a length."""
    return np.concatenate([_NONE, *(_runs(text, size) for text in texts if len(text) == size)])


def _instructions(text: Hashes, common: Hashes) -> Hashes:
    """Runs of a text that all items share, without those of passages that are longer than an instruction."""
    runs = _runs(text, RUN)
    shared = np.flatnonzero(_among(runs, common))
    passages = np.split(shared, np.flatnonzero(np.diff(shared) > 1) + 1)
    return np.concatenate([_NONE, *(runs[each] for each in passages if len(each) + RUN - 1 <= INSTRUCTION)])


def _among(runs: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which runs are among some sorted ones, by search: those may be many more."""
    if not len(known):
        return np.zeros(len(runs), dtype=np.bool_)
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, runs), len(known) - 1)] == runs
    return found


_NONE: Hashes = np.empty(0, dtype=np.uint64)


def _hashes(content: Sequence[str]) -> Hashes:
    """A hash of each word: uint64 [T]."""
    return np.fromiter(map(_hash, content), dtype=np.uint64, count=len(content))


@functools.lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _runs(hashed: Hashes, size: int) -> Hashes:
    """A hash of each run of so many words: uint64 [T - size + 1], a polynomial modulo 2^64."""
    count = max(0, len(hashed) - size + 1)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(size):
        total = total * _FACTOR + hashed[place : place + count]
    return total
