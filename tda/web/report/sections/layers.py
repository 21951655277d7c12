"""Achieved sparsity of each layer beside the asked one."""

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.report.sections import Block, Content, Plot, section
from tda.web.report.setting import Setting
from tda.web.theme.figures import INK, curve_style, handle, label_axes, legend, new_axes, plain_ticks
from tda.web.theme.formatting import listed, share

CLOSE = 0.005
"""A layer within this of the asked share counts as exact."""


@section("layers", 50, "Achieved sparsity per layer")
def layers_section(group: Group) -> Content | None:
    """One figure per setting."""
    blocks = [Block(setting.title, plots=(_plot(setting),)) for setting in group.settings if _cases(setting)]
    lead = (
        "Thresholds are calibrated on other text, and some methods give each layer another sparsity on "
        "purpose. Dashed is what was asked of the model as a whole."
    )
    return Content(lead, tuple(blocks)) if blocks else None


def _cases(setting: Setting) -> list[ComparedCase]:
    """Cases that were asked a share, and left out some."""
    return [
        case
        for case in setting.cases
        if case.record.status == "ok"
        and case.record.achieved_sparsity
        and case.record.case.sparsity
        and not case.from_other_kind
    ]


def _is_exact(case: ComparedCase) -> bool:
    requested = case.record.case.sparsity or 0.0
    return all(abs(part - requested) < CLOSE for part in case.record.achieved_sparsity)


def _plot(setting: Setting) -> Plot:
    cases = _cases(setting)
    varied = dict.fromkeys(case.series for case in cases if not _is_exact(case))
    exact = [series for series in dict.fromkeys(case.series for case in cases) if series not in varied]
    figure, axes = new_axes(f"Achieved sparsity of {setting.model}", height=4.2)
    handles = {
        case.series: handle(case.series, case.method, variant=case.variant) for case in cases if case.series in varied
    }
    for case in cases:
        if case.series in varied:
            shares = case.record.achieved_sparsity
            axes.plot(range(len(shares)), shares, **curve_style(case.method, variant=case.variant) | {"markersize": 5})
    layers = max(len(case.record.achieved_sparsity) for case in cases)
    _requested(axes, sorted({case.record.case.sparsity or 0.0 for case in cases}), layers)
    label_axes(axes, f"Layer of {setting.model}", "Fraction of neurons left out")
    legend(figure, [Line2D([], [], color=INK, linewidth=1, linestyle="--", label="asked"), *handles.values()])
    caption = f"Fraction of neurons left out in each layer of {setting.model}, one line per asked sparsity."
    if exact:
        caption += f" As asked in every layer, and not drawn: {listed(exact)}."
    return Plot("layers", figure, caption)


def _requested(axes: Axes, levels: list[float], layers: int) -> None:
    for level in levels:
        axes.axhline(level, color=INK, linewidth=1, linestyle="--", zorder=1.5)
        axes.annotate(
            share(level), (layers - 0.55, level), xytext=(0, 2), textcoords="offset points", ha="right", fontsize=7.5
        )
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.5, layers - 0.5)
    plain_ticks(axes, "x", range(0, layers, max(1, layers // 8)))
    plain_ticks(axes, "y")
