"""Curves of methods over two quantities: whiskers, sparsity labels that keep clear of each other, dense, roofline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from tda.statistics import Estimate
from tda.web.report.comparison import ComparedCase
from tda.web.theme.figures import MUTED, curve_style, handle, label_axes, mark_handle, plain_ticks, settle
from tda.web.theme.style import UNTRUSTED, look

DODGE_SHARE, MOST_DODGE = 0.25, 0.012
"""Over the sparsity, curves spread over this share of the gap between sparsities, at most this far apart each."""


@dataclass(frozen=True)
class Point:
    """One case on a plane; `limit` is where the roofline puts it on the speed axis.

    A case without a value has NaN for it: its curve has a gap there.
    """

    series: str
    method: str
    control: bool
    x: Estimate
    y: Estimate
    text: str = ""
    limit: float | None = None
    trusted: bool = True
    variant: int = 0

    @property
    def present(self) -> bool:
        """Whether it can be drawn."""
        return isfinite(self.x.value) and isfinite(self.y.value)


def exact(value: float) -> Estimate:
    """A value without an interval."""
    return Estimate(value, None, None, 1)


GAP = exact(nan)


def by_series(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points of each curve, in order."""
    held: dict[str, list[Point]] = {}
    for point in points:
        held.setdefault(point.series, []).append(point)
    return held


def over_sparsity(
    cases: Sequence[ComparedCase],
    value: Callable[[ComparedCase], Estimate | None],
    limit: Callable[[ComparedCase], float | None] = lambda case: None,
) -> list[Point]:
    """Points over the asked sparsity, 0 where none was; curves stand a little apart, so that whiskers can be seen."""
    names = list(dict.fromkeys(case.series for case in cases))
    requested = sorted({case.sparsity for case in cases if case.sparsity is not None})
    gap = min((after - before for before, after in pairwise(requested)), default=1.0)
    step = min(DODGE_SHARE * gap / max(len(names), 1), MOST_DODGE)
    shift = {series: (place - (len(names) - 1) / 2) * step for place, series in enumerate(names)}
    return [
        Point(
            case.series,
            case.method,
            case.from_other_kind,
            exact((case.sparsity or 0.0) + shift[case.series]),
            value(case) or GAP,
            limit=limit(case),
            trusted=not case.warnings,
            variant=case.variant,
        )
        for case in cases
    ]


def sparsity_axis(axes: Axes, model: str, y: str) -> None:
    """Make x the asked sparsity of a model, equal in all panels, and name y."""
    label_axes(axes, f"Sparsity of {model} (fraction left out)", y)
    axes.set_xlim(0, 1)
    plain_ticks(axes, "x", [0, 0.25, 0.5, 0.75, 1])


def reach(points: Sequence[Point]) -> list[float]:
    """All values and bounds on the y axis."""
    return [value for point in points for value in (point.y.low, point.y.value, point.y.high) if value is not None]


def draw_curves(axes: Axes, points: Sequence[Point]) -> list[object]:
    """Draw a curve with whiskers for each series; return its legend entries."""
    handles: list[object] = []
    for series, members in by_series(points).items():
        first = members[0]
        kind: Any = {"control": first.control, "variant": first.variant}
        style = curve_style(first.method, **kind)
        axes.plot([point.x.value for point in members], [point.y.value for point in members], **style, zorder=3)
        for point in members:
            _whiskers(axes, point, str(style["color"]) if point.trusted else UNTRUSTED)
            if not point.trusted:
                grey = style | {"color": UNTRUSTED, "markeredgecolor": UNTRUSTED, "markerfacecolor": UNTRUSTED}
                axes.plot([point.x.value], [point.y.value], **grey, zorder=3.2)
        handles.append(handle(series, first.method, **kind))
    return handles


def _whiskers(axes: Axes, point: Point, colour: str) -> None:
    x, y = point.x, point.y
    line: dict[str, Any] = {"color": colour, "linewidth": 1.0, "alpha": 0.75, "zorder": 2.5}
    if y.low is not None and y.high is not None:
        axes.plot([x.value, x.value], [y.low, y.high], marker="_", markersize=4, **line)
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [y.value, y.value], marker="|", markersize=4, **line)


def draw_limits(axes: Axes, points: Sequence[Point], which: str) -> bool:
    """Mark where the roofline puts each point on the axis `which`; return whether there is any."""
    drawn = False
    for point in points:
        if point.limit is None or not point.present:
            continue
        drawn = True
        colour = look(point.method).colour
        x, y = (point.limit, point.y.value) if which == "x" else (point.x.value, point.limit)
        marker = "|" if which == "x" else "_"
        axes.plot([x], [y], marker=marker, markersize=11, markeredgewidth=2, color=colour, alpha=0.55, zorder=2)
        axes.plot([point.x.value, x], [point.y.value, y], color=colour, linewidth=0.8, alpha=0.45, zorder=1.8)
    return drawn


def limit_handle(which: str) -> object:
    """Legend entry of the roofline's marks."""
    return mark_handle("|" if which == "x" else "_", "roofline", MUTED)


_DIRECTIONS = [(np.cos(angle), np.sin(angle)) for angle in np.deg2rad([90, 270, 0, 180, 45, 135, 315, 225])]
_DISTANCES = (9.0, 14.0, 20.0, 28.0)


def label_points(figure: Figure, axes: Axes, points: Sequence[Point], level: float | None = None) -> None:
    """Write each point's text beside it where it covers least: labels, markers, curves, frame, a line at `level`."""
    settle(figure)
    points = [point for point in points if point.present]
    if not points:
        return
    centres = axes.transData.transform([(point.x.value, point.y.value) for point in points])
    frame = axes.get_window_extent()
    obstacles = np.concatenate([centres, _along(axes, points)])
    if level is not None:
        height = axes.transData.transform((points[0].x.value, level))[1]
        obstacles = np.concatenate([obstacles, [(x, height) for x in np.arange(frame.x0, frame.x1, 4.0)]])
    taken: list[Bbox] = []
    pixel = figure.dpi / 72
    for point, centre in zip(points, centres, strict=True):
        width, height = 5.2 * pixel * len(point.text) + 2, 8.5 * pixel
        candidates = [
            _box(centre + np.array(way) * distance * pixel, width, height)
            for distance in _DISTANCES
            for way in _DIRECTIONS
        ]
        costs = [_cost(box, taken, obstacles, frame) + 0.02 * place for place, box in enumerate(candidates)]
        box = candidates[int(np.argmin(costs))]
        taken.append(box)
        middle = (np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2 - centre) / pixel
        axes.annotate(
            point.text,
            (point.x.value, point.y.value),
            xytext=(float(middle[0]), float(middle[1])),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color=look(point.method).colour if point.trusted else MUTED,
            zorder=4,
        )


def _box(centre: NDArray[np.float64], width: float, height: float) -> Bbox:
    x, y = centre
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _cost(box: Bbox, taken: Sequence[Bbox], obstacles: NDArray[np.float64], frame: Bbox) -> float:
    overlaps = sum(box.overlaps(other) for other in taken)
    padded = box.padded(2.0)
    inside = (
        (obstacles[:, 0] > padded.x0)
        & (obstacles[:, 0] < padded.x1)
        & (obstacles[:, 1] > padded.y0)
        & (obstacles[:, 1] < padded.y1)
    )
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return float(20 * overlaps + inside.sum() + 10 * outside)


def _along(axes: Axes, points: Sequence[Point]) -> NDArray[np.float64]:
    """Pixels along curves and whiskers."""
    lines: list[list[tuple[float, float]]] = []
    for members in by_series(points).values():
        lines.append([(point.x.value, point.y.value) for point in members])
        for point in members:
            x, y = point.x, point.y
            lines.append([(x.value, bound) for bound in (y.low, y.high) if bound is not None])
            lines.append([(bound, y.value) for bound in (x.low, x.high) if bound is not None])
            if point.limit is not None:
                lines.append([(x.value, y.value), (point.limit, y.value)])
    steps = np.linspace(0, 1, 25)[:, None]
    pieces = []
    for line in filter(None, lines):
        pixels = axes.transData.transform(line)
        pieces += [start + steps * (end - start) for start, end in pairwise(pixels)]
    return np.concatenate(pieces) if pieces else np.empty((0, 2))
