"""How each metric of each case went from commit to commit."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tda.history.findings import Finding
from tda.web.dashboard.blocks import MAIN, SETS, CaseFacts, is_quality
from tda.web.dashboard.evidence import Evidence, KnownCommit
from tda.web.dashboard.formatting import ACTIVE, COLOURS, heading, meaning, shown_unit, size_text, standing
from tda.web.dashboard.pages import HtmlPage, page
from tda.web.dashboard.trends import FAILED, WINDOW, Dot, Trend, trends
from tda.web.theme.figures import INK, MUTED, WIDTH, inline
from tda.web.theme.style import look

PANEL, HEAD, FOOT, LEFT, RIGHT = 0.86, 0.42, 0.62, 0.62, 0.1
"""Inches: height of a case's panel, and what is left around all of them."""
BAND, RING = "#f4d6d3", "#c9302c"
LEAST_SPAN, LEAST = 0.06, 1e-5
"""A panel spans at least this share of its values, and this much: noise must not look like news."""
MOST_LABELS = 12


@page("over_time", 30, "Over time", "How did each metric of each case go from commit to commit?")
def over_time_page(evidence: Evidence) -> Iterator[HtmlPage]:
    """One part per kind of hardware; in it one per source and setting; in it one figure per metric."""
    parts: dict[str, list[dict[str, object]]] = {}
    single: list[str] = []
    for trend in trends(evidence):
        words = evidence.label_of(trend.blocks[-1].machine)
        if len(trend.slots) > 1:
            parts.setdefault(words, []).append(_part(trend))
        else:
            single.append(f"{words}: {trend.blocks[0].title}")
    values = {"parts": parts, "single": single, "window": WINDOW, "colours": COLOURS}
    yield HtmlPage("over_time.html", "Over time", "over_time.html", values)


def _part(trend: Trend) -> dict[str, object]:
    metrics = [metric for metric in trend.metrics if trend.cases(metric)]
    main = [metric for metric in metrics if metric in MAIN] or metrics
    first = trend.blocks[0]
    return {
        "slug": trend.slug,
        "title": first.title,
        "open": first.source in ("nightly", trend.evidence.blocks[0].source),
        "full": len(trend.slots) == WINDOW,
        "breaks": [words for _, words in trend.breaks],
        "main": [_plot(trend, metric) for metric in main],
        "more": [_plot(trend, metric) for metric in metrics if metric not in main],
    }


def _plot(trend: Trend, metric: str) -> dict[str, object]:
    cases = trend.cases(metric)
    slug = f"{trend.slug}-{metric}"
    dirty = {dot.stop.commit for block in trend.blocks for case in cases
             for dot in trend.dots(block, case.series, metric) if dot.stop.dirty}  # fmt: skip
    return {
        "slug": slug,
        "heading": heading(metric),
        "unit": shown_unit(metric, trend.unit(metric)),
        "meaning": meaning(metric),
        "svg": inline(draw(trend, metric), slug),
        "dirty": sorted(trend.evidence.by_hash[commit].short for commit in dirty),
    }


# The figure.


def draw(trend: Trend, metric: str) -> Figure:
    """A panel per case over one x axis of commits."""
    cases = trend.cases(metric)
    height = HEAD + FOOT + PANEL * len(cases)
    figure = Figure(figsize=(WIDTH, height))
    panels: list[Axes] = list(figure.subplots(len(cases), 1, sharex=True, squeeze=False)[:, 0])
    figure.subplots_adjust(
        left=LEFT / WIDTH, right=1 - RIGHT / WIDTH, top=1 - HEAD / height, bottom=FOOT / height, hspace=0.42
    )
    for axes, facts in zip(panels, cases, strict=True):
        _panel(axes, trend, facts, metric)
    for place, words in trend.breaks:
        _break(panels, place, words)
    _commit_axis(panels[-1], [slot.commit for slot in trend.slots])
    return figure


def _panel(axes: Axes, trend: Trend, facts: CaseFacts, metric: str) -> None:
    for place in _failed(trend):
        axes.axvspan(place - 0.5, place + 0.5, color=BAND, linewidth=0, zorder=0.5)
    colour = look(facts.method).colour
    held = [trend.dots(block, facts.series, metric) for block in trend.blocks]
    for dots in held:
        _line(axes, trend, dots, colour)
    seen = [dot for dots in held for dot in dots]
    _span(axes, metric, seen)
    newest = max(seen, key=lambda dot: (dot.place, not dot.stop.dirty))
    axes.set_title(facts.short, loc="left", fontsize=8.5, color=colour, pad=3.5, y=1)
    axes.set_title(newest.text, loc="right", fontsize=8, color=MUTED, fontweight="normal", pad=3.5, y=1)
    for finding in trend.findings(facts, metric):
        _mark(axes, trend, finding)


def _failed(trend: Trend) -> list[int]:
    return [place for place, slot in enumerate(trend.slots) if slot.commit.status in FAILED]


def _line(axes: Axes, trend: Trend, dots: Sequence[Dot], colour: str) -> None:
    """Clean levels joined, with a gap at commits that gave nothing; dirty ones by themselves, ringed."""
    clean = [dot for dot in dots if not dot.stop.dirty]
    line = sorted([(dot.place, dot.estimate.value) for dot in clean] + [(place, math.nan) for place in _failed(trend)])
    axes.plot([x for x, _ in line], [y for _, y in line], color=colour, linewidth=1.1, zorder=2)
    bars = [
        [(dot.place, dot.estimate.low), (dot.place, dot.estimate.high)]
        for dot in dots
        if dot.estimate.low is not None and dot.estimate.high is not None
    ]
    axes.add_collection(LineCollection(bars, color=colour, alpha=0.5, linewidth=1.4))
    for dirty in (False, True):
        some = [dot for dot in dots if dot.stop.dirty == dirty]
        marks = axes.scatter(
            [dot.place for dot in some],
            [dot.estimate.value for dot in some],
            s=26 if dirty else 11,
            facecolors="white" if dirty else colour,
            edgecolors=RING if dirty else colour,
            linewidths=1.3 if dirty else 0,
            zorder=3,
        )
        marks.set_urls([trend.evidence.by_hash[dot.stop.commit].page for dot in some])


def _span(axes: Axes, metric: str, dots: Sequence[Dot]) -> None:
    """Limits of the y axis, with room for marks above."""
    reach = [value for dot in dots for value in (dot.estimate.low, dot.estimate.value, dot.estimate.high)
             if value is not None]  # fmt: skip
    low, high = min(reach), max(reach)
    middle = (low + high) / 2
    least = 1.0 if metric == SETS else LEAST_SPAN * abs(middle) + LEAST
    half = max(high - low, least) / 2
    axes.set_ylim(middle - 1.25 * half, middle + 1.6 * half)
    axes.yaxis.set_major_locator(MaxNLocator(2 if metric == SETS else 3, integer=metric == SETS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 9):,.10g}"))
    axes.grid(visible=False, axis="x")
    if is_quality(metric) and low <= 0 <= high:
        axes.axhline(0, color=INK, linewidth=0.6, zorder=1)


def _mark(axes: Axes, trend: Trend, finding: Finding) -> None:
    """A finding at its commit: up for worse, down for better; hollow where it no longer wants anybody."""
    place = trend.places[finding.machine, finding.commit]
    state = standing(finding, trend.evidence.states.get(finding.key))
    colour = COLOURS[state]
    start = trend.places.get((finding.machine, finding.good))
    if start is not None and place - start > 1:
        axes.axvspan(start + 0.5, place + 0.5, color=colour, alpha=0.1, linewidth=0, zorder=0.6)
    axes.axvline(place, color=colour, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1.2)
    top: Any = axes.get_xaxis_transform()
    axes.plot(
        [place],
        [0.88],
        transform=top,
        marker="v" if finding.verdict == "improvement" else "^",
        markersize=6,
        color=colour,
        markerfacecolor=colour if state in ACTIVE or state == "improvement" else "white",
        clip_on=False,
        zorder=4,
    )
    right = place > 0.7 * len(trend.slots)
    axes.annotate(
        size_text(finding).split(" [")[0],
        (place, 0.88),
        xycoords=top,
        xytext=(-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center",
        fontsize=7.5,
        color=colour,
        fontweight="bold",
        zorder=4,
    )


def _break(panels: Sequence[Axes], place: float, words: str) -> None:
    for axes in panels:
        axes.axvline(place, color=INK, linewidth=1, linestyle=(0, (1, 1.2)), zorder=1.5)
    first = panels[0]
    right = place > sum(first.get_xlim()) / 2
    first.annotate(
        words,
        (place, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 15),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        fontsize=7.5,
        color=INK,
    )


def _commit_axis(axes: Axes, commits: Sequence[KnownCommit]) -> None:
    """Hashes, from the newest back in equal steps; a tag stands beside its hash."""
    axes.set_xlim(-0.7, len(commits) - 0.3)
    shown = range(len(commits) - 1, -1, -math.ceil(len(commits) / MOST_LABELS))
    words = ["\n".join((commits[place].short[:8], *commits[place].tags)) for place in shown]
    axes.set_xticks(list(shown), words, rotation=90, fontsize=7, family="DejaVu Sans Mono", linespacing=1.05)
