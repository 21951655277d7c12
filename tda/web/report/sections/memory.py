"""Peak memory of each case."""

from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.report.sections import Block, Content, Plot, section
from tda.web.report.setting import Setting
from tda.web.theme.figures import INK, case_axes, label_axes, plain_ticks, row_text
from tda.web.theme.formatting import MISSING, size
from tda.web.theme.style import look

NAME = "peak_memory_bytes"


@section("memory", 60, "Peak memory")
def memory_section(group: Group) -> Content | None:
    """One figure per setting in which some case's peak is known."""
    blocks = []
    for setting in group.settings:
        cases = [case for case in setting.cases if case.timed and not case.is_control]
        if any(case.samples(NAME) for case in cases):
            blocks.append(Block(setting.title, plots=(_plot(setting, cases),)))
    lead = (
        "Peak while a request runs: the allocator's on CUDA, the resident set of the process on a CPU. A compact run "
        "holds the gathered weights beside the model's own."
    )
    return Content(lead, tuple(blocks)) if blocks else None


def _plot(setting: Setting, cases: list[ComparedCase]) -> Plot:
    figure, axes = case_axes(f"Peak memory of {setting.model}", [case.label for case in cases])
    peaks = [case.median(NAME) for case in cases]
    for row, (case, peak) in enumerate(zip(cases, peaks, strict=True)):
        if peak is not None:
            axes.barh(row, peak / 1e6, height=0.62, color=look(case.method).colour, alpha=0.8, zorder=2)
        row_text(axes, row, MISSING if peak is None else size(peak))
    dense = setting.baseline.median(NAME) if setting.baseline else None
    if dense is not None:
        axes.axvline(dense / 1e6, color=INK, linewidth=1, linestyle="--", zorder=3)
    axes.set_xlim(0, max(peak for peak in peaks if peak is not None) / 1e6 * 1.22)
    label_axes(axes, f"Peak memory of {setting.model} (MB; dashed: dense)")
    plain_ticks(axes, "x")
    return Plot("memory", figure, f"Peak memory of {setting.model} by case.")
