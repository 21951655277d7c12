"""Tables in a terminal: they fit its width without a broken word, with fewer columns where it is narrow."""

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest

GAP = "  "
_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_NO_BREAK = "\xa0"
Columns = dict[str, list[str]]
"""Head and cells of each column; what must not be broken has other spaces."""


def table(
    rows: Sequence[Mapping[str, str]],
    width: int,
    heads: Mapping[str, str],
    *,
    spare: Sequence[str] = (),
    numbers: Collection[str] = (),
    group: str | None = None,
) -> tuple[list[str], list[str]]:
    """Lay out rows of text; return lines, and the columns for which there was no space.

    No word and no bracketed interval is broken, unless the columns that must stay cannot fit otherwise.

    Parameters
    ----------
    rows : sequence of dict
        Equal keys in each.
    width : int
        Letters of a line.
    heads : mapping of str to str
        What stands above each column.
    spare : sequence of str
        Columns in the order in which they are left out.
    numbers : collection of str
        Columns that are set to the right.
    group : str, optional
        A column that stands in lines of its own, above the rows that have it in common.
    """
    if not rows:
        return [], []
    columns = {name: _column(head, [row[name] for row in rows]) for name, head in heads.items() if name != group}
    left_out = []
    for name in spare:
        if _total([_least(cells) for cells in columns.values()]) <= width:
            break
        if columns.pop(name, None) is not None:
            left_out.append(name)
    widths = _widths(list(columns.values()), width)
    head, *lines = (
        _lines(cells, widths, [name in numbers for name in columns]) for cells in zip(*columns.values(), strict=True)
    )
    found = [*head, "─" * _total(widths)]
    before = None
    for row, own in zip(rows, lines, strict=True):
        if group is not None and row[group] != before:
            before = row[group]
            found.append(middle_cut(before, width))
        found += own
    return found, left_out


def middle_cut(text: str, width: int) -> str:
    """A text that is too long without its middle: a path is told by its beginning and its end."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def _column(head: str, cells: Sequence[str]) -> list[str]:
    return [_BRACKETS.sub(lambda found: found[0].replace(" ", _NO_BREAK), text) for text in (head, *cells)]


def _least(cells: Sequence[str]) -> int:
    return max(len(word) for cell in cells for word in re.split("[ \n]", cell))


def _most(cells: Sequence[str]) -> int:
    return max(len(line) for cell in cells for line in cell.split("\n"))


def _total(widths: Collection[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """The least widths; what is left over goes letter by letter to the column that lacks most."""
    widths, wanted = [_least(cells) for cells in columns], [_most(cells) for cells in columns]
    while _total(widths) < width and widths != wanted:
        place = max(range(len(widths)), key=lambda place: wanted[place] - widths[place])
        widths[place] += 1
    while _total(widths) > width and max(widths) > 1:  # some word is longer than its space
        widths[widths.index(max(widths))] -= 1
    return widths


def _lines(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    """The lines of a row."""
    parts = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    return [
        GAP.join(
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in zip_longest(*parts, fillvalue="")
    ]


def _wrapped(text: str, width: int) -> list[str]:
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width, break_on_hyphens=False)]
    return [line.replace(_NO_BREAK, " ") for line in lines]
