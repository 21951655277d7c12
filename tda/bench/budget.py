"""A bench's time: a deadline, and what is taken of a matrix so that it ends in time.

What is dropped first, when not everything fits: rounds beyond five and documents beyond sixteen; then cases, the least
worth first (`tda.bench.cells.by_worth`): controls, then methods at sparsities away from the middle, then int8. What is
left after that is measured in fewer rounds, without an interval. Where not even five rounds of dense and the methods at
the middle sparsity are to be had, a model with random weights gets fewer new tokens. Nothing is dropped silently.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

MARGIN = 0.85
"""Part of the time left that is promised: a busy machine may be slower in a minute."""
REPORT_STARTS = 5.0
"""Time kept for start and page, in times of what starting the command took: both run on one core."""
LEAST_DOCUMENTS = 16
LEAST_TOKENS = 8
MOST_ROUNDS = 40
"""Rounds of a case whose interval stays wide, where the number was not asked."""
FIRST_LOOKS = 0.25
"""Part of a stage's time that single passes of cases may take; what has had none by then is left out."""
T = TypeVar("T")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_seconds(text: str, what: str = "a budget") -> float | None:
    """Seconds of a duration such as ``90``, ``50s``, ``5m`` or ``1h30m``; None for ``none``.

    Raises
    ------
    ValueError
        If it is none of these, or not more than zero.
    """
    word = text.strip().lower()
    if word == "none":
        return None
    if not re.fullmatch(r"(\d+(\.\d+)?(h|min|m|s)?)+", word):
        raise ValueError(f"{what} is a duration such as 50s, 5m or 1h30m, or none; got {text!r}")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|min|m|s)?", word)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise ValueError(f"{what} must be more than zero seconds, got {text!r}")
    return seconds


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``16GB``, ``512MiB`` or ``1e9``.

    Raises
    ------
    ValueError
        If it is none of these, or not more than zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    size = float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " ") if found else 0.0
    if not 0 < size < 1e18:
        raise ValueError(f"a size is bytes such as 16GB, 512MiB or 1e9, more than zero; got {text!r}")
    return int(size)


def parse_fraction(text: str) -> float | None:
    """A fraction such as ``2%`` or ``0.02``; None for ``none``.

    Raises
    ------
    ValueError
        If it is none of these, or not between 0 and 1.
    """
    word = text.strip().lower()
    if word == "none":
        return None
    try:
        value = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ValueError(f"a precision is a fraction such as 2% or 0.02, or none; got {text!r}")
    return value


def duration(seconds: float) -> str:
    """A duration in minutes and seconds, e.g. ``"1:05"``."""
    whole = max(round(seconds), 0)
    return f"{whole // 60}:{whole % 60:02d}"


class OutOfTimeError(Exception):
    """Ends work that a deadline leaves no time for."""


@dataclass(frozen=True)
class Deadline:
    """A moment by which something is to have ended; none is at infinity.

    Attributes
    ----------
    at : float
        By `clock`, in seconds.
    clock : callable
        A clock that never goes back.
    """

    at: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds until then; negative afterwards."""
        return self.at - self.clock()

    @property
    def is_set(self) -> bool:
        """Whether there is an end."""
        return math.isfinite(self.at)

    def part(self, fraction: float) -> "Deadline":
        """The moment at which a fraction of what is left will have passed."""
        return Deadline(self.clock() + self.left * fraction, self.clock) if self.is_set else self

    def each(self, items: Iterable[T]) -> Iterable[T]:
        """Items, one after another as often as they are gone through; OutOfTimeError once the time is over."""
        return _Each(items, self)


@dataclass(frozen=True)
class _Each(Iterable[T]):
    items: Iterable[T]
    deadline: Deadline

    def __iter__(self) -> Iterator[T]:
        for item in self.items:
            if self.deadline.left <= 0:
                raise OutOfTimeError
            yield item


NO_END = Deadline()
"""No deadline."""


@dataclass(frozen=True)
class Taken:
    """What fits: the first so many of the cases, each so many times."""

    cases: int
    times: int


def take(costs: Sequence[float], essential: int, least: int, seconds: float) -> Taken:
    """How many of some cases fit into a time, and how often each.

    Parameters
    ----------
    costs : sequence of float
        Seconds that a case takes once, in order of worth.
    essential : int
        So many are kept even where they do not fit `least` times.
    least : int
        How often a case is wanted before another one is.
    seconds : float
        The time; may be infinite.
    """
    if not math.isfinite(seconds):
        return Taken(len(costs), least)
    for count in range(len(costs), 0, -1):
        total = sum(costs[:count])
        fits = int(seconds // total) if total > 0 else least
        if fits >= least or (count <= essential and fits >= 1):
            return Taken(count, fits)
    return Taken(0, 0)


def middle(sparsities: Sequence[float]) -> float:
    """The sparsity that is dropped last: of those asked the one nearest to 0.5."""
    return min(sparsities, key=lambda sparsity: (abs(sparsity - 0.5), sparsity), default=0.5)
