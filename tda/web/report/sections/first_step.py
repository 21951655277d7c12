"""What a request costs before its first decode step, and after how many tokens that is repaid."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.report.sections import Block, Content, Plot, section
from tda.web.report.setting import Setting
from tda.web.theme.figures import (
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
from tda.web.theme.formatting import MISSING, number, share
from tda.web.theme.style import UNTRUSTED, look

TOKENS = 4096
"""How far the time saved is followed."""
FLOOR_PERCENT = -60.0


@section("first_step", 40, "Cost before the first decode step")
def first_step_section(group: Group) -> Content | None:
    """Prefill and selection by case, and the time saved as tokens are generated."""
    blocks = []
    for setting in group.settings:
        cases = [case for case in setting.timed if case.samples("prefill_ms")]
        if cases:
            blocks.append(Block(setting.title, plots=(_before(setting, cases), *_saved(setting, cases))))
    lead = (
        "Prefill is dense and gives the first token; a method may add its statistic to it. What it adds is the "
        "difference to the dense prefill of the same round, which noise may take below zero. Selection comes after the "
        "first token, once per prompt, and is clocked by itself. Beside each bar: what prefill takes over dense, what "
        "selection takes, and how many tokens repay both."
    )
    return Content(lead, tuple(blocks)) if blocks else None


def _before(setting: Setting, cases: list[ComparedCase]) -> Plot:
    figure, axes = case_axes(f"Before the first decode step of {setting.model}", [case.label for case in cases])
    for row, case in enumerate(cases):
        bar: Any = {"height": 0.62, "color": UNTRUSTED if case.warnings else look(case.method).colour, "zorder": 2}
        axes.barh(row, _level(case, "prefill_ms"), alpha=0.8, **bar)
        axes.barh(row, _level(case, "selection_ms"), left=_level(case, "prefill_ms"), **bar)
        row_text(axes, row, _cost(case))
    if setting.baseline is not None:
        axes.axvline(_level(setting.baseline, "prefill_ms"), color=INK, linewidth=1, linestyle="--", zorder=3)
    axes.set_xlim(0, max(map(_ready_ms, cases)) * 2.9)
    label_axes(axes, f"Prefill and selection of {setting.model} (ms, mean over rounds; dashed: dense prefill)")
    plain_ticks(axes, "x")
    caption = (
        f"Prefill of {setting.model}, and selection (full colour) after it; text: what prefill takes over dense's, "
        f"what selection takes, and the tokens that repay both.{setting.warning}"
    )
    return Plot("first-step", figure, caption)


def _level(case: ComparedCase, name: str) -> float:
    """Height of a bar, or of its part; what a method does not do has none."""
    found = case.level(name)
    return found.value if found else 0.0


def _ready_ms(case: ComparedCase) -> float:
    """From the prompt to readiness for the first decode step."""
    return _level(case, "prefill_ms") + _level(case, "selection_ms")


def _cost(case: ComparedCase) -> str:
    if case.is_dense:
        return "dense"
    added, chosen, tokens = (
        case.estimate("prefill_overhead_ms"),
        case.level("selection_ms"),
        case.estimate("break_even_tokens"),
    )
    parts = [f"{number(added.value, 2, signed=True)}" if added else MISSING]
    parts += [number(chosen.value, 2, signed=True)] if chosen else []
    if tokens is None:
        return f"{' and '.join(parts)} ms, not repaid"
    sure = "" if tokens.high is None or np.isfinite(tokens.high) else ", if at all"
    return f"{' and '.join(parts)} ms, repaid in {int(np.ceil(tokens.value)):,} tokens{sure}"


def _saved(setting: Setting, cases: list[ComparedCase]) -> list[Plot]:
    """Time saved against dense, one figure per asked sparsity."""
    if setting.baseline is None or setting.baseline.decode_ms is None:
        return []
    sparse = [case for case in cases if not case.is_dense]
    requested = sorted({case.sparsity for case in sparse if case.sparsity is not None})
    return [
        Plot(
            f"saved-{share(sparsity)}",
            _saved_figure(setting, [case for case in sparse if case.sparsity in (sparsity, None)], sparsity),
            f"Fraction of the dense time saved at sparsity {share(sparsity)}, from prompt to the n-th token, out of "
            f"means over rounds; right of the dotted line it is extrapolated.{setting.warning}",
            f"Sparsity {share(sparsity)}",
        )
        for sparsity in requested
    ]


def _saved_figure(setting: Setting, cases: list[ComparedCase], sparsity: float) -> Figure:
    baseline = setting.baseline
    assert baseline is not None
    assert baseline.decode_ms is not None
    figure, axes = new_axes(f"Time saved on {setting.model}, sparsity {share(sparsity)}", height=3.7)
    tokens = np.unique(np.geomspace(1, TOKENS, 60).round())
    dense_ms = _ready_ms(baseline) + tokens * baseline.decode_ms.value
    handles = []
    for case in cases:
        if case.decode_ms is None:
            continue
        spent = _ready_ms(case) + tokens * case.decode_ms.value
        style = curve_style(case.method, variant=case.variant) | {"markevery": 10}
        axes.plot(tokens, 100 * (1 - spent / dense_ms), **style, zorder=3)
        handles.append(handle(case.series, case.method, variant=case.variant))
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
