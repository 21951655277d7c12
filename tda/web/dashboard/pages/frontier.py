"""Latency against quality, commit by commit: where the frontier of each method is, and how it moved."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tda.statistics import Estimate
from tda.web.dashboard.blocks import DELTA, KL, RATIO, CaseFacts, SettingHistory, Stop
from tda.web.dashboard.evidence import Evidence
from tda.web.dashboard.formatting import change_text, level_text
from tda.web.dashboard.pages import HtmlPage, page
from tda.web.report.curves import Point, label_points
from tda.web.theme.figures import (
    INK,
    MUTED,
    curve_style,
    handle,
    inline,
    label_axes,
    legend,
    mark_handle,
    new_axes,
    plain_ticks,
    settle,
    symlog,
)
from tda.web.theme.style import rank

STOPS = 40
"""Commits that the slider reaches: the newest."""
MULTIPLES = 12
"""Commits that are shown side by side."""
BY_DEFINITION = {RATIO: 1.0, DELTA: 0.0, KL: 0.0}
"""Where dense stands on axes that are relative to it."""
GREY = "#a9b0b7"
LEAST_MOVE = 7.0
"""Points: a shorter way since the previous commit gets no arrow."""


@dataclass(frozen=True)
class AxisPair:
    """Two metrics on two axes, the lower the better on both."""

    slug: str
    name: str
    x: str
    y: str
    x_label: str
    y_label: str


_TIME, _HARM = "Decode time / dense decode time", "ΔNLL to dense (nats per token)"
VIEWS = (
    AxisPair("ratio", "Relative to dense", RATIO, DELTA, _TIME, _HARM),
    AxisPair("ms", "Milliseconds", "decode_ms", DELTA, "Decode step (ms)", _HARM),
    AxisPair("kl", "KL instead of ΔNLL", RATIO, KL, _TIME, "KL to dense (nats per token)"),
)


@dataclass(frozen=True)
class FrontierPoint:
    """A case of one commit on a view."""

    facts: CaseFacts
    x: Estimate
    y: Estimate

    @property
    def at(self) -> tuple[float, float]:
        """Where it is drawn."""
        return self.x.value, self.y.value

    @property
    def is_dense(self) -> bool:
        """Whether it is what the others are compared with."""
        return self.facts.method == "dense"

    def beats(self, other: "FrontierPoint") -> bool:
        """Whether it is as good on both axes and better on one."""
        return self.at != other.at and self.at[0] <= other.at[0] and self.at[1] <= other.at[1]


def spots(block: SettingHistory, view: AxisPair, stop: Stop) -> list[FrontierPoint]:
    """Cases that have both metrics at a stop, dense among them."""
    found = []
    for facts in block.cases.values():
        x, y = (_on_axis(block, facts, metric, stop) for metric in (view.x, view.y))
        if x is not None and y is not None:
            found.append(FrontierPoint(facts, x, y))
    return found if any(not spot.is_dense for spot in found) else []


def _on_axis(block: SettingHistory, facts: CaseFacts, metric: str, stop: Stop) -> Estimate | None:
    found = block.level(facts.series, metric, stop).estimate
    if found is None and facts.method == "dense" and metric in BY_DEFINITION:
        return Estimate(BY_DEFINITION[metric], None, None, 1)
    return found


def dominator(spot: FrontierPoint, among: Sequence[FrontierPoint]) -> FrontierPoint | None:
    """Another spot that beats one; None for a spot on the frontier of all."""
    return next((other for other in among if other.beats(spot)), None)


def frontiers(found: Sequence[FrontierPoint]) -> dict[str, list[FrontierPoint]]:
    """For each method its own spots that no other of it beats, from fast to slow."""
    methods = sorted({spot.facts.method for spot in found if not spot.is_dense}, key=rank)
    own = {name: [spot for spot in found if spot.facts.method == name] for name in methods}
    best = {name: [spot for spot in held if dominator(spot, held) is None] for name, held in own.items()}
    return {name: sorted(held, key=lambda spot: spot.at) for name, held in best.items()}


@dataclass(frozen=True)
class FrontierHistory:
    """A block with the stops of one view that have spots, oldest first."""

    block: SettingHistory
    view: AxisPair
    stops: tuple[Stop, ...]

    def spots(self, place: int) -> list[FrontierPoint]:
        """Spots of the stop at a place."""
        return spots(self.block, self.view, self.stops[place])

    def before(self, place: int) -> int | None:
        """Place of the clean stop before one."""
        earlier = (p for p in range(place - 1, -1, -1) if not self.stops[p].dirty)
        return next((p for p in earlier if self.stops[p].commit != self.stops[place].commit), None)


@page("frontier", 20, "Frontier", "Latency against quality: where is each method, and how did it move?")
def frontier_page(evidence: Evidence) -> Iterator[HtmlPage]:
    """One part per block that has speed and quality of one model."""
    parts = [part for block in evidence.blocks if (part := _part(evidence, block)) is not None]
    values = {"parts": parts, "multiples": MULTIPLES, "most": STOPS}
    yield HtmlPage("frontier.html", "Latency against quality, across commits", "frontier.html", values)


def _part(evidence: Evidence, block: SettingHistory) -> dict[str, object] | None:
    views = sorted(VIEWS, key=lambda view: view.slug != "ms") if block.on_gpu else VIEWS
    stops = tuple(stop for stop in block.stops if any(spots(block, view, stop) for view in views))[-STOPS:]
    paths = [FrontierHistory(block, view, stops) for view in views if any(spots(block, view, stop) for stop in stops)]
    if not paths:
        return None
    slug = f"f{hashlib.sha256(repr((block.source, block.machine, block.setting)).encode()).hexdigest()[:8]}"
    return {
        "slug": slug,
        "machine": block.machine_label,
        "title": block.title,
        "stops": [_stop_values(evidence, paths[0], place) for place in range(len(stops))],
        "tags": [(place, tag) for place, stop in enumerate(stops) for tag in evidence.by_hash[stop.commit].tags],
        "figures": [_figure(evidence, path, f"{slug}-{path.view.slug}") for path in paths],
        "small": _multiples(evidence, paths[0], slug),
    }


def _stop_values(evidence: Evidence, path: FrontierHistory, place: int) -> dict[str, object]:
    """What the table beside the figure says of one stop."""
    block, stop, before = path.block, path.stops[place], path.before(place)
    old = None if before is None else path.stops[before]
    found = path.spots(place)
    return {
        "commit": evidence.by_hash[stop.commit],
        "dirty": stop.dirty,
        "before": None if old is None else evidence.by_hash[old.commit],
        "rows": [_row(block, spot, found, stop, old) for spot in found],
    }


def _row(
    block: SettingHistory, spot: FrontierPoint, found: Sequence[FrontierPoint], stop: Stop, old: Stop | None
) -> dict[str, object]:
    best = dominator(spot, found)
    cells = []
    for metric, relative in ((RATIO, True), ("decode_ms", True), (DELTA, False), (KL, False)):
        change = None if old is None else block.change(spot.facts.series, metric, stop, old)
        level = block.level(spot.facts.series, metric, stop)
        text = level_text(level, signed=metric == DELTA)
        if level.estimate is None and spot.is_dense and metric in BY_DEFINITION:
            text = f"{BY_DEFINITION[metric]:g}"
        cells.append((text, None if change is None else change_text(change, relative=relative)))
    return {"facts": spot.facts, "cells": cells, "by": None if best is None else best.facts.short}


# The figure of all stops: one frame, and a layer per stop of which one is shown.


def _figure(evidence: Evidence, path: FrontierHistory, slug: str) -> dict[str, object]:
    svg = _layered(inline(draw(evidence, path), slug), len(path.stops) - 1)
    return {"slug": slug, "name": path.view.name, "svg": Markup(svg)}


def _layered(svg: str, shown: int) -> str:
    """Name the stop of each layer, and hide all but one."""

    def mark(found: re.Match[str]) -> str:
        hidden = "" if int(found[2]) == shown else " hidden"
        return f'<g id="{found[1]}" data-stop="{found[2]}"{hidden}'

    return re.sub(r'<g id="([^"]*-stop(\d+)-\d+)"', mark, svg)


def draw(evidence: Evidence, path: FrontierHistory) -> Figure:
    """All stops in one figure; the artists of the stop at place n have ids that hold ``stop<n>-``."""
    figure, axes = new_axes(f"{path.block.setting.split(' · ')[0]}: {path.view.name.lower()}", height=4.3)
    _frame(axes, path)
    methods = sorted({s.facts.method for place in range(len(path.stops)) for s in path.spots(place)}, key=rank)
    ghost = mark_handle("o", "previous commit", GREY)
    ghost.set_markerfacecolor("white")
    ghost.set_markeredgewidth(1)
    handles = [handle(name, name) for name in methods]
    legend(figure, [*handles, mark_handle("o", "dominated", GREY), ghost], columns=3)
    settle(figure)
    for place in range(len(path.stops)):
        _layer(figure, axes, evidence, path, place)
    return figure


def _frame(axes: Axes, path: FrontierHistory, *, small: bool = False) -> None:
    """The axes that all stops share."""
    held = [spot for place in range(len(path.stops)) for spot in path.spots(place)]
    xs, ys = ([bound for e in side for bound in (e.low, e.value, e.high) if bound is not None]
              for side in ([s.x for s in held], [s.y for s in held]))  # fmt: skip
    symlog(axes, ys)
    room = 0.07 * (max(xs) - min(xs)) or 0.05
    axes.set_xlim(min(xs) - room, max(xs) + room)
    if path.view.x == RATIO:
        axes.axvline(1, color=INK, linewidth=0.9, linestyle="--", zorder=1.5)
    if not small:
        label_axes(axes, f"{path.view.x_label}; left is faster", f"{path.view.y_label}; down is better")
    plain_ticks(axes, "x")
    if small:
        axes.xaxis.set_major_locator(MaxNLocator(4))


def _layer(figure: Figure, axes: Axes, evidence: Evidence, path: FrontierHistory, place: int) -> None:
    before = path.before(place)
    held = set(axes.get_children())
    found = path.spots(place)
    old = {} if before is None else {spot.facts.series: spot for spot in path.spots(before)}
    for spot in found:
        if spot.facts.series in old:
            _ghost(axes, old[spot.facts.series], spot)
    _points(axes, found)
    labelled = [spot for spot in found if not spot.is_dense]
    label_points(figure, axes, [_point(spot) for spot in labelled])
    commit, dirty = evidence.by_hash[path.stops[place].commit], path.stops[place].dirty
    corner: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "fontsize": 8}
    axes.text(0.995, 1.015, f"{commit.short}  {commit.day}", va="bottom", color=MUTED, **corner)
    if dirty:
        axes.text(0.995, 0.985, "DIRTY TREE", va="top", color="#c9302c", fontweight="bold", **corner)
    _name([artist for artist in axes.get_children() if artist not in held], place)


def _name(artists: Sequence[Artist], place: int) -> None:
    for artist, number in zip(artists, itertools.count()):
        artist.set_gid(f"stop{place}-{number}")
        arrow = getattr(artist, "arrow_patch", None)
        if arrow is not None:
            arrow.set_gid(f"stop{place}-{number}000")


def _point(spot: FrontierPoint) -> Point:
    text = "" if spot.facts.sparsity is None else f"{spot.facts.sparsity:.3g}"
    return Point(spot.facts.method, spot.facts.method, False, spot.x, spot.y, text)


def _points(axes: Axes, found: Sequence[FrontierPoint], *, size: float = 1.0) -> None:
    """Each method's frontier as a line, whiskers, and marks that are grey where another spot beats them."""
    for method, own in frontiers(found).items():
        style = curve_style(method)
        line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.3 * size, "zorder": 2}
        axes.plot([spot.at[0] for spot in own], [spot.at[1] for spot in own], **line)
    for spot in found:
        style = curve_style(spot.facts.method)
        colour = style["color"] if dominator(spot, found) is None else GREY
        whisker: dict[str, Any] = {"color": colour, "linewidth": 0.9, "alpha": 0.8, "zorder": 2.2}
        if spot.x.low is not None and spot.x.high is not None:
            axes.plot([spot.x.low, spot.x.high], [spot.at[1]] * 2, **whisker)
        if spot.y.low is not None and spot.y.high is not None:
            axes.plot([spot.at[0]] * 2, [spot.y.low, spot.y.high], **whisker)
        mark = {"marker": style["marker"], "markersize": style["markersize"] * size, "markeredgecolor": "white"}
        axes.plot(*spot.at, **mark, color=colour, markeredgewidth=0.6, linestyle="", zorder=3)


def _ghost(axes: Axes, old: FrontierPoint, new: FrontierPoint) -> None:
    """Where a case was, and an arrow to where it is now if that can be seen."""
    style = curve_style(new.facts.method)
    faint = {"markeredgecolor": style["color"], "markerfacecolor": "white", "markeredgewidth": 0.9, "alpha": 0.55}
    axes.plot(*old.at, marker=style["marker"], markersize=style["markersize"], linestyle="", zorder=1.8, **faint)
    start, end = axes.transData.transform([old.at, new.at])
    figure = axes.get_figure()
    assert figure is not None
    if ((end - start) ** 2).sum() ** 0.5 * 72 / figure.dpi > LEAST_MOVE:
        arrow = {"arrowstyle": "-|>", "color": style["color"], "linewidth": 1.1, "shrinkA": 3.5, "shrinkB": 3.5}
        axes.annotate("", new.at, old.at, arrowprops=arrow, zorder=2.6)


# All stops side by side, for a look at once and for browsers without scripts.


def _multiples(evidence: Evidence, path: FrontierHistory, slug: str) -> list[dict[str, object]]:
    places = [place for place in range(len(path.stops)) if path.spots(place)][-MULTIPLES:]
    return [_small(evidence, path, place, f"{slug}-small{place}") for place in places]


def _small(evidence: Evidence, path: FrontierHistory, place: int, slug: str) -> dict[str, object]:
    stop = path.stops[place]
    figure, axes = new_axes("", height=2.1, width=2.4)
    _frame(axes, path, small=True)
    _points(axes, path.spots(place), size=0.7)
    axes.tick_params(labelsize=7)
    if stop.dirty:
        axes.text(0.98, 0.98, "DIRTY TREE", transform=axes.transAxes, ha="right", va="top", color="#c9302c", fontsize=7)
    svg = inline(figure, slug)
    return {"commit": evidence.by_hash[stop.commit], "dirty": stop.dirty, "svg": svg, "place": place}
