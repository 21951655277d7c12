"""Figures: one style, deterministic SVG and PNG, and the axes that several sections share."""

import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tda.web.theme.style import look

INK, MUTED, GRID = "#1b1f24", "#5b6570", "#e3e6ea"
WIDTH = 4.8
"""Width of a figure in inches: text stays legible when it is scaled to a phone."""
TITLE_LETTERS, X_LETTERS, Y_LETTERS = 42, 48, 34
"""Letters that fit above, below and beside the axes of a figure of that width."""
PATH_LETTERS = 36
"""A path that is longer is told by its last part."""
ROW_LETTERS, BESIDE_ROWS, LEGEND_LETTERS = 26, 40, 60
"""Letters of a row's name, of title and label beside such names, and of a line of a legend."""
STYLE: Any = {
    "axes.edgecolor": "#9aa3ad",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
}
_PROLOG = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_SIZE = re.compile(r' (?:width|height)="[\d.]+pt"')
_IDENTITY = re.compile(r'( id="|url\(#|xlink:href="#)')
_NAMESPACE = re.compile(r' xmlns(?::xlink)?="[^"]*"')


def new_axes(
    title: str, height: float = 3.6, width: float = WIDTH, letters: int = TITLE_LETTERS
) -> tuple[Figure, Axes]:
    """Make a figure of one panel, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_wrapped(title, letters), pad=10)
    return figure, axes


def label_axes(axes: Axes, x: str, y: str = "") -> None:
    """Name both axes, in as many lines as fit beside them."""
    axes.set_xlabel(_wrapped(x, X_LETTERS if y else BESIDE_ROWS))  # without y, rows have names
    axes.set_ylabel(_wrapped(y, Y_LETTERS))


def _wrapped(words: str, letters: int) -> str:
    """Break into lines, the unit in brackets at the end by itself; of a long path its last part stands for it."""
    words = " ".join(word if len(word) <= PATH_LETTERS else word.rpartition("/")[2] for word in words.split(" "))
    if len(words) <= letters:
        return words
    head, bracket, unit = words.rpartition(" (")
    parts = [head, f"({unit}"] if bracket else [words]
    return "\n".join(line for part in parts for line in textwrap.wrap(part, letters, break_on_hyphens=False))


def settle(figure: Figure) -> None:
    """Lay the figure out for good, so that every format gets the same layout and it is worked out once."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.execute(figure)
        figure.set_layout_engine(None)  # a placeholder would cost each format a draw more


def to_svg(figure: Figure, name: str) -> str:
    """Draw as SVG: equal figures of equal names give equal text; ids are unique over names."""
    settle(figure)
    buffer = io.StringIO()
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=bare)
    prefix = re.sub(r"\W+", "-", name)
    return _IDENTITY.sub(rf"\g<1>{prefix}-", _PROLOG.sub("", buffer.getvalue(), count=1))


def to_png(figure: Figure) -> bytes:
    """Draw as PNG, without metadata."""
    settle(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def inline(figure: Figure, name: str, files: dict[str, bytes] | None = None) -> Markup:
    """Draw as a part of a page, whose matter its size is; `files` gets ``<name>.svg`` and ``<name>.png`` too."""
    svg = to_svg(figure, name)
    if files is not None:
        files |= {f"{name}.svg": svg.encode(), f"{name}.png": to_png(figure)}
    head, rest = svg.split(">", 1)
    return Markup(_NAMESPACE.sub("", _SIZE.sub("", head)) + ">" + rest)


def case_axes(title: str, labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Make a figure with a row for each case, first on top."""
    names = ["\n".join(textwrap.wrap(label, ROW_LETTERS)) for label in labels]
    more = max((name.count("\n") for name in names), default=0)
    figure, axes = new_axes(title, height=1.35 + (0.27 + 0.12 * more) * len(names), letters=BESIDE_ROWS)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(visible=False, axis="y")
    return figure, axes


def row_text(axes: Axes, row: int, words: str) -> None:
    """Write at the right end of a case's row."""
    place: Any = ("axes fraction", "data")
    axes.annotate(words, (0.995, row), xycoords=place, ha="right", va="center", fontsize=7.5, color=INK)


def mark_handle(marker: str, name: str, colour: str) -> Line2D:
    """Legend entry of a mark without a line."""
    size = 11 if marker in ("|", "_") else 6
    return Line2D([], [], label=name, color=colour, marker=marker, markersize=size, markeredgewidth=2, linewidth=0)


def plain_ticks(axes: Axes, which: str, ticks: Iterable[float] | None = None, *, spaced: bool = False) -> None:
    """Label an axis with plain numbers, no powers of ten; at `ticks`, or at 1, 2, 3, 5, 10, … where `spaced`."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
    elif spaced:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0), numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 9):,.10g}"))


def symlog(axes: Axes, values: Iterable[float], *, linear: float = 1e-3) -> None:
    """Scale the y axis so that both `linear` and several units can be read, zero and below included."""
    found = [value for value in values if math.isfinite(value)]
    top, bottom = max([linear, *found]), min([0.0, *found])
    axes.set_yscale("symlog", linthresh=linear, linscale=0.45)
    decades = [linear * 10**power for power in range(8)]
    ticks = [-value for value in reversed(decades) if value <= -bottom * 1.001] + [0.0]
    ticks += [value for value in decades if value <= top * 1.001]
    if top > 1:
        ticks += [3.0] * (top > 2)
    plain_ticks(axes, "y", sorted(ticks))
    axes.set_ylim((bottom * 1.4 if bottom < -linear else min(bottom, -0.35 * linear)), top * 1.6)
    axes.axhline(0, color=INK, linewidth=0.9, zorder=1.5)


def log_scale(axes: Axes, values: Iterable[float]) -> None:
    """Scale the y axis logarithmically over positive values, with plain numbers at steps of 1, 2, 3, 5."""
    found = [value for value in values if 0 < value < math.inf]
    axes.set_yscale("log")
    if found:
        axes.set_ylim(min(found) * 0.85, max(found) * 1.2)
    plain_ticks(axes, "y", spaced=True)


def curve_style(method: str, *, control: bool = False, variant: int = 0) -> dict[str, Any]:
    """Keywords of `Axes.plot` for the curve of a method."""
    drawn = look(method, control=control, variant=variant)
    return {
        "color": drawn.colour,
        "marker": drawn.marker,
        "linestyle": drawn.line,
        "markerfacecolor": drawn.colour if drawn.filled else "white",
        "markeredgecolor": drawn.colour if not drawn.filled else "white",
        "markeredgewidth": 1.3 if not drawn.filled else 0.6,
        "markersize": 9 if drawn.marker == "*" else 6.5,
    }


def legend(figure: Figure, handles: Sequence[Any], columns: int = 3) -> None:
    """Put a legend below the axes."""
    if handles:
        longest = max(len(str(one.get_label())) for one in handles)
        columns = max(1, min(columns, LEGEND_LETTERS // longest))
        figure.legend(
            handles=list(handles), loc="outside lower center", ncols=columns, handlelength=2.3, columnspacing=1.1
        )


def handle(series: str, method: str, *, control: bool = False, variant: int = 0) -> Line2D:
    """Legend entry of a curve."""
    return Line2D([], [], label=series, **curve_style(method, control=control, variant=variant))
