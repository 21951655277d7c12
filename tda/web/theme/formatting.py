"""Numbers as text, the same in figures, table and sentences."""

from tda.digits import MISSING as MISSING
from tda.digits import interval as interval
from tda.digits import number as number


def share(value: float) -> str:
    """Write a share as it was asked, e.g. ``"0.5"`` or ``"0.125"``."""
    return f"{value:.3g}"


def size(count: float) -> str:
    """Write bytes in decimal units, e.g. ``"144 MB"``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{number(count)} B"


def counted(count: int, word: str) -> str:
    """A number of things: ``"1 thread"``, ``"2 threads"``."""
    return f"{count} {word}{'s' * (count != 1)}"


def shortened(words: str, letters: int) -> str:
    """Cut a name that would not fit, and mark the cut."""
    return words if len(words) <= letters else f"{words[: letters - 1]}…"


def listed(words: list[str]) -> str:
    """Join words as in a sentence: ``"a, b and c"``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
