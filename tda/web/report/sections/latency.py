"""Distributions of the decode latency, with their percentiles."""

import numpy as np
from matplotlib.axes import Axes

from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.report.sections import Block, Content, Plot, section
from tda.web.report.setting import Setting
from tda.web.theme.figures import INK, case_axes, label_axes, legend, mark_handle, plain_ticks
from tda.web.theme.style import UNTRUSTED, look

MARKS = ((50, "o", "p50"), (95, "|", "p95"), (99, "x", "p99"))
BINS = 48
WIDE_RANGE = 4.0
"""Above this ratio of slowest to fastest step the axis is logarithmic."""


@section("latency", 30, "Decode latency, every step")
def latency_section(group: Group) -> Content | None:
    """One figure per timed setting."""
    blocks = [Block(setting.title, plots=(_plot(setting),)) for setting in group.settings if setting.timed]
    lead = "Each shape is the distribution of all decode steps of all rounds; a service feels its right end."
    return Content(lead, tuple(blocks)) if blocks else None


def _plot(setting: Setting) -> Plot:
    cases = [case for case in setting.cases if case.timed]
    figure, axes = case_axes(f"Decode latency of {setting.model}", [case.label for case in cases])
    samples = np.concatenate([case.samples("decode_ms") for case in cases])
    low, high = float(samples.min()), float(samples.max())
    logarithmic = high > WIDE_RANGE * low
    if logarithmic:
        axes.set_xscale("log")
    edges = np.geomspace(low, high * 1.0001, BINS) if logarithmic else np.linspace(low, high * 1.0001, BINS)
    for row, case in enumerate(cases):
        _shape(axes, row, case, edges)
    label_axes(axes, f"Decode step of {setting.model} (ms per token{', logarithmic' if logarithmic else ''})")
    plain_ticks(axes, "x", spaced=logarithmic)
    legend(figure, [mark_handle(marker, name, INK) for _, marker, name in MARKS])
    return Plot("latency", figure, f"Decode step times of {setting.model} by case, with the median, p95 and p99.")


def _shape(axes: Axes, row: int, case: ComparedCase, edges: np.ndarray) -> None:
    colour = UNTRUSTED if case.warnings else look(case.method).colour
    counts, _ = np.histogram(case.samples("decode_ms"), edges)
    heights = 0.42 * counts / counts.max()
    axes.fill_between(
        edges[:-1], row - heights, row + heights, step="post", color=colour, alpha=0.3, linewidth=0, zorder=2
    )
    for percent, marker, _ in MARKS:
        axes.plot(
            np.percentile(case.samples("decode_ms"), [percent]),
            [row],
            marker=marker,
            color=colour,
            markersize=6 if marker != "|" else 11,
            markeredgewidth=1.8,
            zorder=3,
        )
