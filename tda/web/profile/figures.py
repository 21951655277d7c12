"""Figures of profiles: a step in pieces, the gap to the limit, the roofline."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tda.profiler.roofline import points
from tda.profiler.split import COMPONENTS, Gap
from tda.web.profile.groups import PIECES, ProfileGroup, ShownProfile
from tda.web.theme.figures import GRID, INK, MUTED, case_axes, label_axes, legend, new_axes, plain_ticks, row_text
from tda.web.theme.formatting import number
from tda.web.theme.style import UNTRUSTED, look

COMPONENT_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#D9D9D9", "#FFFFFF")
FAMILY_MARKERS = {"FFN": "s", "projections": "o", "attention": "^", "head": "D", "other": "X"}


def step_figure(group: ProfileGroup) -> Figure:
    """A decode step of every case in pieces, in ms of self time."""
    figure, axes = case_axes(
        f"Where a decode step of {group.first.case.model} spends its time", [shown.label for shown in group.shown]
    )
    longest = 0.0
    for row, shown in enumerate(group.shown):
        left = 0.0
        for piece, ms in shown.pieces().items():
            colour = UNTRUSTED if shown.warnings else PIECES[piece]
            axes.barh(row, ms, left=left, height=0.62, color=colour, edgecolor="white", linewidth=0.5, zorder=2)
            left += ms
        longest = max(longest, left, shown.decode_ms)
        axes.plot([shown.decode_ms] * 2, [row - 0.4, row + 0.4], color=INK, linewidth=1.4, zorder=3)
        row_text(axes, row, f"{number(shown.decode_ms)} ms")
    axes.set_xlim(0, longest * 1.2)
    label_axes(axes, "Self time in a decode step, recording taken off (ms; line: timed without the profiler)")
    plain_ticks(axes, "x")
    used = [piece for piece in PIECES if any(shown.pieces()[piece] > 0 for shown in group.shown)]
    legend(figure, [Patch(facecolor=PIECES[piece], label=piece) for piece in used], columns=2)
    figure.set_figheight(figure.get_figheight() + 0.18 * ((len(used) + 1) // 2))
    return figure


def gap_figure(shown: ShownProfile, dense: ShownProfile, gap: Gap) -> Figure:
    """Dense, the limit and the method, each split into the same components."""
    figure, axes = case_axes(f"What keeps {shown.label} from its limit", ["dense", "at the limit", shown.label])
    bars = (tuple(part * gap.limit for part in gap.at_limit), tuple(gap.at_limit), tuple(gap.method))
    trusted = not (shown.warnings or dense.warnings)
    for row, parts in enumerate(bars):
        left = 0.0
        for part, colour in zip(parts, COMPONENT_COLOURS if trusted else [UNTRUSTED] * len(parts), strict=True):
            width = max(part, 0.0)
            axes.barh(row, width, left=left, height=0.62, color=colour, edgecolor=MUTED, linewidth=0.4, zorder=2)
            left += width
        row_text(axes, row, f"{number(sum(parts))} ms, {number(sum(bars[0]) / sum(parts))}×")
    axes.set_xlim(0, max(sum(max(part, 0.0) for part in parts) for parts in bars) * 1.32)
    label_axes(axes, "Timed decode step (ms; × against dense)")
    plain_ticks(axes, "x")
    patches = [
        Patch(facecolor=colour, edgecolor=MUTED, linewidth=0.4, label=name)
        for name, colour in zip(COMPONENTS, COMPONENT_COLOURS, strict=True)
    ]
    legend(figure, patches, columns=2)
    figure.set_figheight(figure.get_figheight() + 0.5)
    return figure


def roofline_figure(group: ProfileGroup, phases: Sequence[str] = ("prefill", "decode")) -> Figure | None:
    """Families of kernels of every case under the roofs; None where nothing was counted."""
    found = [(shown, point) for shown in group.shown for point in points(shown.profile) if point.phase in phases]
    if not found:
        return None
    profile = group.first
    figure, axes = new_axes(f"Roofline of {profile.case.model}, {profile.case.dtype}", height=4.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    intensities = [point.intensity for _, point in found]
    low, high = min(intensities) / 3, max(intensities) * 3
    bandwidth = max(point.bound_gflop_per_s / point.intensity for _, point in found)
    peak = profile.matmul_tflop_per_s * 1e3
    ridge = peak / bandwidth
    roof = [low, min(max(ridge, low), high), high]
    axes.plot(roof, [min(peak, at * bandwidth) for at in roof], color=INK, linewidth=1.2, zorder=1.8)
    for shown, point in found:
        drawn = look(shown.profile.case.method)
        axes.plot(
            [point.intensity],
            [point.gflop_per_s],
            marker=FAMILY_MARKERS[point.family],
            markersize=4 + 9 * point.share**0.5,
            color=drawn.colour,
            markerfacecolor=drawn.colour if point.phase == "decode" else "white",
            alpha=0.85,
            linewidth=0,
            zorder=2,
        )
    label_axes(axes, "Intensity (FLOP per byte)", "Achieved (GFLOP/s)")
    plain_ticks(axes, "x", spaced=True)
    plain_ticks(axes, "y", spaced=True)
    axes.grid(visible=True, color=GRID)
    families = [family for family in FAMILY_MARKERS if any(point.family == family for _, point in found)]
    handles = [
        Line2D([], [], marker=FAMILY_MARKERS[family], color=MUTED, linewidth=0, label=family) for family in families
    ]
    methods = dict.fromkeys(shown.profile.case.method for shown, _ in found)
    handles += [Line2D([], [], color=look(method).colour, linewidth=3, label=method) for method in methods]
    legend(figure, handles, columns=4)
    return figure
