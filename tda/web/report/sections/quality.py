"""Quality of each trained model: ΔNLL, KL, top-1 disagreement and perplexity over the sparsity."""

from collections.abc import Callable
from dataclasses import dataclass

from tda.statistics import Estimate
from tda.web.report.comparison import ComparedCase
from tda.web.report.curves import draw_curves, over_sparsity, reach, sparsity_axis
from tda.web.report.gather import Group
from tda.web.report.sections import Block, Content, Plot, section
from tda.web.report.setting import Setting
from tda.web.theme.figures import INK, legend, log_scale, new_axes, plain_ticks, symlog


@dataclass(frozen=True)
class QualityMetric:
    """A quality figure: its value of a case, its unit, and how its axis is scaled ("symlog", "linear" or "log")."""

    slug: str
    name: str
    unit: str
    value: Callable[[ComparedCase], Estimate | None]
    scale: str


def _perplexity(case: ComparedCase) -> Estimate | None:
    value = case.perplexity
    return None if value is None else Estimate(value, None, None, len(case.shared))


METRICS = (
    QualityMetric("delta-nll", "ΔNLL to dense", "nats per token", lambda case: case.delta_nll, "symlog"),
    QualityMetric("kl", "KL(dense ‖ method)", "nats per token", lambda case: case.mean("kl_to_dense_nats"), "symlog"),
    QualityMetric(
        "top1", "Top-1 disagreement", "fraction of tokens", lambda case: case.mean("top1_disagreement"), "linear"
    ),
    QualityMetric("perplexity", "Perplexity", "exp of nats per token, logarithmic", _perplexity, "log"),
)


@section("quality", 70, "Quality in detail")
def quality_section(group: Group) -> Content | None:
    """One block per trained model."""
    blocks = [
        Block(
            setting.title,
            f"{setting.documents} documents; intervals over documents, not tokens.",
            tuple(_plot(setting, metric) for metric in METRICS),
        )
        for setting in group.settings
        if setting.scored
    ]
    lead = (
        "All four over the asked sparsity, dense dashed. The scale of ΔNLL and KL is linear up to 0.001 and "
        "logarithmic above, so that a thousandth and several nats can both be read. The oracle is a bound, no "
        "method; another kind's prompt is a control."
    )
    return Content(lead, tuple(blocks)) if blocks else None


def _plot(setting: Setting, metric: QualityMetric) -> Plot:
    figure, axes = new_axes(f"{metric.name} of {setting.model}", height=3.9)
    points = over_sparsity(setting.with_gaps(setting.scored), metric.value)
    handles = draw_curves(axes, points)
    if metric.scale == "symlog":
        symlog(axes, reach(points))
    elif metric.scale == "log" and points:
        log_scale(axes, reach(points))
    else:
        axes.set_ylim(bottom=0)
        plain_ticks(axes, "y")
    dense = metric.value(setting.baseline) if setting.baseline else None
    if dense is not None:
        axes.axhline(dense.value, color=INK, linewidth=1, linestyle="--", zorder=1.5)
    sparsity_axis(axes, setting.model, f"{metric.name} of {setting.model} ({metric.unit})")
    legend(figure, handles)
    caption = (
        f"{metric.name} of {setting.model} ({metric.unit}) by method and asked sparsity; points set slightly apart."
    )
    return Plot(f"quality-{metric.slug}", figure, caption)
