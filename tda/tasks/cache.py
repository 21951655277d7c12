"""lm-eval's own cache of answers (``--use_cache``), kept to one model under one method."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from lm_eval.api.model import CacheHook, hash_args
from sqlitedict import SqliteDict

OWN = "tda:"
IDENTITY = f"{OWN}identity"
BESIDE = f"{OWN}counts:"


@dataclass(frozen=True)
class Counts:
    """Tokens of a request.

    Attributes
    ----------
    tokens, sparse : int
        Tokens that were scored or generated, and how many of them were computed sparsely.
    achieved : tuple of float
        Share left out per layer; empty where no token was sparse.
    generated : bool
        Whether they were generated.
    """

    tokens: int
    sparse: int
    achieved: tuple[float, ...] = ()
    generated: bool = False

    @classmethod
    def together(cls, parts: Iterable["Counts"]) -> "Counts":
        """Those of several parts as one."""
        found = list(parts)
        sparse = sum(part.sparse for part in found)
        shares = [[part.sparse / sparse * share for share in part.achieved] for part in found if part.achieved]
        achieved = tuple(sum(layer) for layer in zip(*shares, strict=True))
        return cls(sum(part.tokens for part in found), sparse, achieved)


class _Noting(SqliteDict):  # type: ignore[misc]
    """The cache, noting which of its answers are used."""

    used: list[str]

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if not key.startswith(OWN):
            self.used.append(key)
        return value


class Hook(CacheHook):  # type: ignore[misc]
    """Keeps answers in lm-eval's cache, with their counts beside them.

    Keys of the cache tell of a request alone, so one file must not serve two methods.

    Parameters
    ----------
    answers : SqliteDict
        lm-eval's cache.
    identity : mapping
        What every answer follows from besides its request.

    Raises
    ------
    ValueError
        If the cache holds answers that follow from something else, or from nobody knows what.
    """

    def __init__(self, answers: SqliteDict, identity: Mapping[str, Any]) -> None:
        self.dbdict = answers
        self._expected: dict[str, Any] = {}
        known, wanted = answers.get(IDENTITY), dict(identity)
        if known is None and len(answers):
            raise ValueError(
                f"{answers.filename} holds answers, and not of which method and protocol; give another --use_cache"
            )
        if known is not None and known != wanted:
            differing = [name for name in wanted if known.get(name) != wanted[name]]
            told = ", ".join(f"{name} {known.get(name)} and not {wanted[name]}" for name in differing)
            raise ValueError(f"{answers.filename} holds answers of another run: {told}; give another --use_cache")
        answers[IDENTITY] = wanted
        answers.__class__ = _Noting  # lm-eval reads it by itself, and tells nobody what it found
        answers.used = []

    def expect(self, kind: str, request: Iterable[Any], place: tuple[Any, ...], counts: Counts) -> None:
        """Say the counts of a request whose answer comes next."""
        self._expected[hash_args(kind, request)] = (place, astuple(counts))

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Keep an answer; its counts come first, so that none is without."""
        key = hash_args(attr, req)
        if (beside := self._expected.pop(key, None)) is not None:
            self.dbdict[BESIDE + key] = beside
        super().add_partial(attr, req, res)

    def found(self) -> Iterator[tuple[Any, Counts]]:
        """Place and counts of each answer that was found in the cache."""
        for key in list(self.dbdict.used):
            if (beside := self.dbdict.get(BESIDE + key)) is not None:
                place, counts = beside
                yield tuple(place), Counts(*counts)
