"""Recall of a name over hundreds of tokens, where it was measured."""

from tda.web.report.curves import draw_curves, over_sparsity, reach, sparsity_axis
from tda.web.report.gather import Group
from tda.web.report.sections import Block, Content, Plot, section
from tda.web.report.setting import Setting
from tda.web.theme.figures import INK, legend, log_scale, new_axes, plain_ticks

ACCURACY, NLL = "task_recall_accuracy", "task_recall_nll"


@section("recall", 75, "Recall over a distance")
def recall_section(group: Group) -> Content | None:
    """One block per setting that was asked to recall."""
    blocks = []
    for setting in group.settings:
        names = [name for name in (ACCURACY, NLL) if any(case.samples(name) for case in setting.cases)]
        if names:
            blocks.append(Block(setting.title, plots=tuple(_plot(setting, name) for name in names)))
    lead = (
        "A name stands early in the prompt and is asked for at least 256 tokens later. Perplexity hardly sees whether "
        "such a thing survives; this does. Intervals are over items."
    )
    return Content(lead, tuple(blocks)) if blocks else None


def _plot(setting: Setting, name: str) -> Plot:
    what, unit = ("Recall", "fraction of items right") if name == ACCURACY else ("NLL of the name", "nats per token")
    figure, axes = new_axes(f"{what} of {setting.model}", height=3.7)
    recalling = [case for case in setting.cases if not case.is_dense and case.samples(name)]
    points = over_sparsity(setting.with_gaps(recalling), lambda case: case.mean(name))
    handles = draw_curves(axes, points)
    if name == ACCURACY:
        axes.set_ylim(-0.05, 1.06)
        plain_ticks(axes, "y")
    elif points:
        log_scale(axes, reach(points))
    dense = setting.baseline.mean(name) if setting.baseline else None
    if dense is not None:
        axes.axhline(dense.value, color=INK, linewidth=1, linestyle="--", zorder=1.5)
    sparsity_axis(axes, setting.model, f"{what} of {setting.model} ({unit})")
    legend(figure, handles)
    caption = f"{what} of {setting.model} ({unit}) by method and asked sparsity, dense dashed."
    return Plot(name.replace("_", "-"), figure, caption)
