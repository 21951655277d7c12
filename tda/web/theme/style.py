"""One look for one method everywhere: Okabe-Ito colours, each with a marker and a line of its own."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """How a curve is drawn.

    Attributes
    ----------
    colour : str
        Hexadecimal RGB.
    marker : str
        Matplotlib marker.
    line : str or tuple
        Matplotlib line style.
    filled : bool
        Whether markers are filled; a control's are open.
    """

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]] = "-"
    filled: bool = True


LOOKS: dict[str, Look] = {
    "dense": Look("#000000", "s"),
    "griffin": Look("#0072B2", "o"),
    "tda": Look("#D55E00", "D"),
    "cats": Look("#CC79A7", "^", (0, (5, 1.5))),
    "tt": Look("#009E73", "v", (0, (5, 1.5))),
    "int8": Look("#332288", "p"),
    "static_mean": Look("#56B4E9", "P", (0, (3, 1, 1, 1))),
    "magnitude": Look("#E69F00", "X", (0, (3, 1, 1, 1))),
    "random": Look("#8C8C8C", "h", (0, (1, 1.2))),
    "oracle": Look("#4D4D4D", "*", (0, (1, 1.2))),
}
"""Methods in the order of legends; a method that is not named here gets a spare look by its name."""
_SPARE_COLOURS = ("#44AA99", "#882255", "#117733", "#AA4499", "#6699CC", "#661100")
_SPARE_MARKERS = ("p", "<", ">", "d", "H", "8")
_SPARE_LINES = ((0, (2, 1)), (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


def look(method: str, *, control: bool = False, variant: int = 0) -> Look:
    """Look of a method; a control of it has the same colour, open markers and a dotted line.

    Its variants, 1, 2, …, which other options make, have the same colour with a marker and a line of their own.
    """
    known = LOOKS.get(method)
    if known is None:
        digest = hashlib.sha256(method.encode()).digest()
        known = Look(_SPARE_COLOURS[digest[0] % 6], _SPARE_MARKERS[digest[1] % 6])
    if variant:
        line = _SPARE_LINES[(variant - 1) % len(_SPARE_LINES)]
        known = Look(known.colour, _SPARE_MARKERS[(variant - 1) % len(_SPARE_MARKERS)], line)
    return Look(known.colour, known.marker, (0, (1, 1.5)), filled=False) if control else known


UNTRUSTED = "#B8B8B8"
"""Colour of what cannot be trusted."""


def rank(method: str) -> tuple[int, str]:
    """Sorting key that puts methods in the order of legends, unknown ones last."""
    names = list(LOOKS)
    return (names.index(method) if method in LOOKS else len(names)), method
