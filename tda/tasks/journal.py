"""Answers kept as they come: an evaluation that was killed goes on with what it had not answered yet."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tda.cases import Frozen, digest_of
from tda.results import append_lines, check_writable, read_lines

logger = logging.getLogger(__name__)


class Answer(Frozen):
    """What a model answered to one request.

    Attributes
    ----------
    value : (float, bool) or str
        Log-likelihood in nats and whether greedy decoding gives the continuation too; or the generated text.
    tokens, sparse_tokens : int
        Tokens that were scored or generated, and how many of them were computed sparsely.
    achieved_sparsity : tuple of float
        Share left out per layer in the batch that the request was part of; empty where no token was sparse.
    """

    value: tuple[float, bool] | str
    tokens: int
    sparse_tokens: int
    achieved_sparsity: tuple[float, ...] = ()


class JournalLine(Frozen):
    """A line of a journal: an answer and the hash of what it follows from."""

    key: str
    answer: Answer


class Journal:
    """Answers by the hash of all that they follow from; with a file, each is there before the next batch begins.

    Parameters
    ----------
    path : Path or None
        JSONL file; what can be read of it counts as answered. None keeps nothing beyond this object.
    identity : mapping
        What every answer follows from besides its request: model, method, protocol and so on, as JSON can hold it.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._identity = digest_of(dict(identity), 32)
        self._answers: dict[str, Answer] = {}
        if path is None:
            return
        check_writable(path)
        if path.is_file():
            lines, problems = read_lines(path, JournalLine)
            self._answers = {line.key: line.answer for line in lines}
            for problem in problems:
                logger.warning(problem)

    def key(self, kind: str, *facts: Any) -> str:
        """Hash of a request of a kind, and of all else that its answer follows from."""
        return digest_of([self._identity, kind, *facts], 32)

    def get(self, key: str) -> Answer | None:
        """The answer to a request; None where there is none yet."""
        return self._answers.get(key)

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Keep answers by their keys; an answer that is there stays the only one."""
        new = {key: answer for key, answer in answers.items() if key not in self._answers}
        if self._path is not None and new:
            append_lines(
                self._path, [JournalLine(key=key, answer=answer).model_dump_json() for key, answer in new.items()]
            )
        self._answers |= new
