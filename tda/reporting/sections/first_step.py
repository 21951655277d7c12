"""What a method costs before its first decode step, and after how many tokens that is repaid."""

import numpy as np
from matplotlib.figure import Figure

from tda.reporting.comparison import Comparison, Setting
from tda.reporting.figures import (
    INK,
    MUTED,
    case_axes,
    curve_style,
    handle,
    label_axes,
    legend,
    new_axes,
    plain_ticks,
    row_text,
)
from tda.reporting.gather import Group
from tda.reporting.sections import Block, Content, Plot, section
from tda.reporting.style import look
from tda.reporting.text import MISSING, number, share

TOKENS = 4096
"""How far the time saved is followed."""
FLOOR_PERCENT = -60.0


@section("first_step", 40, "Cost before the first decode step")
def first_step_section(group: Group) -> Content | None:
    """Time to first token by case, and the time saved as tokens are generated."""
    blocks = []
    for setting in group.settings:
        cases = [case for case in setting.timed if case.samples("ttft_ms")]
        if cases:
            blocks.append(Block(setting.title, plots=(_before(setting, cases), *_saved(setting, cases))))
    lead = (
        "Selection happens once per prompt: select_ms is the time to first token less the dense prefill of the same "
        "round (below zero where the noise is larger than the cost). Beside each bar: what is added, "
        "and how many tokens repay it."
    )
    return Content(lead, tuple(blocks)) if blocks else None


def _before(setting: Setting, cases: list[Comparison]) -> Plot:
    figure, axes = case_axes(f"Before the first decode step of {setting.model}", [case.label for case in cases])
    widths = [case.median("ttft_ms") or 0.0 for case in cases]
    for row, (case, width) in enumerate(zip(cases, widths, strict=True)):
        axes.barh(row, width, height=0.62, color=look(case.method).colour, alpha=0.8, zorder=2)
        row_text(axes, row, _cost(case))
    prefill = setting.baseline.median("prefill_ms") if setting.baseline else None
    if prefill is not None:
        axes.axvline(prefill, color=INK, linewidth=1, linestyle="--", zorder=3)
    axes.set_xlim(0, max(widths) * 1.75)
    label_axes(axes, f"Prefill and selection of {setting.model} (ms, median over rounds; dashed: dense prefill)")
    plain_ticks(axes, "x")
    return Plot(
        "first-step", figure, f"Prefill plus selection of {setting.model}; text: select_ms, and its break-even."
    )


def _cost(case: Comparison) -> str:
    if case.is_dense:
        return "dense"
    added, tokens = case.median("select_ms"), case.break_even_tokens
    cost = MISSING if added is None else f"{number(added, 2, signed=True)} ms"
    return f"{cost}, {'not repaid' if tokens is None else f'repaid in {int(np.ceil(tokens)):,} tokens'}"


def _saved(setting: Setting, cases: list[Comparison]) -> list[Plot]:
    """Time saved against dense, one figure per asked sparsity."""
    if setting.baseline is None or setting.baseline.decode_ms is None:
        return []
    sparse = [case for case in cases if not case.is_dense]
    asked = sorted({case.sparsity for case in sparse if case.sparsity is not None})
    return [
        Plot(
            f"saved-{share(sparsity)}",
            _saved_figure(setting, [case for case in sparse if case.sparsity in (sparsity, None)], sparsity),
            f"Share of the dense time saved at sparsity {share(sparsity)}, from prompt to the n-th token, out of "
            "medians; right of the dotted line it is extrapolated.",
            f"Sparsity {share(sparsity)}",
        )
        for sparsity in asked
    ]


def _saved_figure(setting: Setting, cases: list[Comparison], sparsity: float) -> Figure:
    baseline = setting.baseline
    assert baseline is not None
    assert baseline.decode_ms is not None
    figure, axes = new_axes(f"Time saved on {setting.model}, sparsity {share(sparsity)}", height=3.7)
    tokens = np.unique(np.geomspace(1, TOKENS, 60).round())
    dense_ms = (baseline.median("ttft_ms") or 0.0) + tokens * baseline.decode_ms.value
    handles = []
    for case in cases:
        if case.decode_ms is None:
            continue
        spent = (case.median("ttft_ms") or 0.0) + tokens * case.decode_ms.value
        style = curve_style(case.method) | {"markevery": 10}
        axes.plot(tokens, 100 * (1 - spent / dense_ms), **style, zorder=3)
        handles.append(handle(case.series, case.method))
    measured = baseline.record.case.new_tokens
    axes.axvline(measured, color=MUTED, linestyle=":", linewidth=1.2)
    axes.axhline(0, color=INK, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    label_axes(
        axes,
        "Generated tokens (logarithmic; dotted: as many as measured)",
        f"Time saved on {setting.model} (% of dense)",
    )
    axes.set_ylim(bottom=max(axes.get_ylim()[0], FLOOR_PERCENT))
    plain_ticks(axes, "x", [1, 10, 100, 1000])
    plain_ticks(axes, "y")
    legend(figure, handles)
    return figure
