"""The main figure: quality against decode latency, speed-up or weight bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from tda.statistics import Estimate
from tda.web.report.comparison import ComparedCase
from tda.web.report.curves import (
    GAP,
    Point,
    draw_curves,
    draw_limits,
    exact,
    label_points,
    limit_handle,
    over_sparsity,
    reach,
    sparsity_axis,
)
from tda.web.report.gather import Group
from tda.web.report.sections import Block, Content, Plot, section
from tda.web.report.setting import Setting
from tda.web.report.tradeoff import Tradeoff, tradeoffs
from tda.web.theme.figures import INK, label_axes, legend, new_axes, plain_ticks, symlog
from tda.web.theme.formatting import share


@dataclass(frozen=True)
class SpeedAxis:
    """A quantity of speed that the figure can be switched to.

    Attributes
    ----------
    name : str
        What the switch says.
    slug : str
        Part of file names.
    unit : str
        As the axis says it.
    value, limit : callable
        The quantity of a case, and the roofline on it; None where missing.
    """

    name: str
    slug: str
    unit: str
    value: Callable[[ComparedCase], Estimate | None]
    limit: Callable[[ComparedCase], float | None]

    def label(self, model: str) -> str:
        """Axis label: quantity, model, unit."""
        return f"{self.name} of {model} ({self.unit})"


def _megabytes(case: ComparedCase) -> Estimate | None:
    count = case.median("weight_bytes_per_token")
    return None if count is None else exact(count / 1e6)


AXES = (
    SpeedAxis("Decode latency", "latency", "ms per token", lambda case: case.decode_ms, lambda case: case.limit_ms),
    SpeedAxis(
        "Decode speed-up",
        "speedup",
        "dense time / time",
        lambda case: case.speedup,
        lambda case: case.limit,
    ),
    SpeedAxis("Weight bytes", "bytes", "MB read per token", _megabytes, lambda case: None),
)


@section("tradeoff", 20, "Quality against speed")
def tradeoff_section(group: Group) -> Content | None:
    """One block per timed setting, and a second one where quality is projected from another model."""
    found = tradeoffs(group.settings)
    if not found:
        return None
    blocks = [block for tradeoff in found for block in _blocks(tradeoff)]
    lead = (
        "Whiskers are 95% intervals over documents (ΔNLL) and over rounds (times): within one process, unless "
        "Conditions tell of several; what differs from process to process is not in them. Speed-up and ΔNLL are paired "
        "with dense, the absolute time is the geometric mean over rounds. The roofline is what reading weights and "
        "KV cache allows. Masked runs and the oracle have no speed, and appear on quality axes only."
    )
    return Content(lead, tuple(block for block in blocks if block.plots))


def _blocks(tradeoff: Tradeoff) -> list[Block]:
    speed, quality = tradeoff.speed, tradeoff.quality
    if quality is None:
        note = f"No trained model goes with {speed.model}: its speed is shown alone, over the asked sparsity."
        if speed.tasks:
            note = f"{speed.model} was scored on tasks, shown below; here is its speed over the asked sparsity."
        return [Block(speed.title, note, tuple(_speed_panels(speed)))]
    joint = tuple(_joint(tradeoff, axis) for axis in AXES if tradeoff.pairs)
    if tradeoff.joint:
        note = "Both axes are of this model. Down and to the fast side is better; numbers at points are asked sparsity."
        return [Block(speed.title, note, joint)]
    panels = (_quality_panel(quality), *_speed_panels(speed))
    note = (
        f"Two models over one axis: the quality of {quality.model}, and the speed of {speed.model}, which was run with "
        f"the sparsity per layer of {quality.model} where the method's counts differ by layer."
    )
    warning = (
        f"PROJECTION: quality of {quality.model}, speed of {speed.model}. No single model was measured on both axes; "
        f"whether {speed.model}, were it trained, would lose as little is not known."
    )
    return [
        Block(f"{quality.model} and {speed.title}", note, panels),
        Block(f"Projection: {quality.model} × {speed.model}", warning, joint, projection=True),
    ]


# One plane: quality against speed.


def _joint(tradeoff: Tradeoff, axis: SpeedAxis) -> Plot:
    assert tradeoff.quality is not None
    speed, quality = tradeoff.speed.model, tradeoff.quality.model
    title = f"{speed}: quality against {axis.name.lower()}"
    warning = f"PROJECTION: quality of {quality}, speed of {speed}"
    figure, axes = new_axes(title if tradeoff.joint else warning, height=4.3)
    points = _plane(tradeoff, axis)
    handles = draw_curves(axes, points)
    symlog(axes, reach(points))
    if draw_limits(axes, points, "x"):
        handles.append(limit_handle("x"))
    _dense_line(axes, tradeoff.speed, axis, "x")
    label_axes(axes, axis.label(speed), f"ΔNLL of {quality} to dense (nats per token)")
    axes.margins(x=0.09)
    plain_ticks(axes, "x")
    if not tradeoff.joint:
        _hatch(axes)
    legend(figure, handles)
    label_points(figure, axes, points)
    caption = (
        f"{axis.name} of {speed} against ΔNLL of {quality} to dense, one curve per method; labels are asked sparsity."
    )
    caption = (caption if tradeoff.joint else f"{warning}. {caption}") + tradeoff.speed.warning
    name = f"tradeoff-{'joint' if tradeoff.joint else 'projection'}-{axis.slug}"
    return Plot(name, figure, caption, axis.name)


def _plane(tradeoff: Tradeoff, axis: SpeedAxis) -> list[Point]:
    """A point for each case that was both timed and scored, and gaps between them."""
    found = {timed.identity: scored.delta_nll for timed, scored in tradeoff.pairs}
    return [
        Point(
            case.series,
            case.method,
            case.from_other_kind,
            axis.value(case) or GAP,
            found.get(case.identity) or GAP,
            _short(case.sparsity),
            axis.limit(case),
            not case.warnings,
            case.variant,
        )
        for case in tradeoff.speed.with_gaps(timed for timed, _ in tradeoff.pairs)
    ]


def _hatch(axes: Axes) -> None:
    """Make it plain that the plane is no measurement."""
    axes.set_facecolor("#f1f1f1")
    axes.patch.set_hatch("//")
    axes.patch.set_edgecolor("#dcdcdc")
    axes.grid(visible=False)
    axes.set_title(axes.get_title(loc="left"), color="#a11", pad=10)


def _dense_line(axes: Axes, setting: Setting, axis: SpeedAxis, which: str) -> None:
    """Draw dense: a line, and on a plane with ΔNLL the point at zero."""
    value = axis.value(setting.baseline) if setting.baseline else None
    if value is None:
        return
    line: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": "--", "zorder": 1.5}
    word: dict[str, Any] = {"textcoords": "offset points", "color": INK, "fontsize": 8}
    if which == "x":
        axes.axvline(value.value, **line)
        axes.plot([value.value], [0], marker="s", markersize=6.5, color=INK, zorder=3.5)
        place = (value.value, 0.98)
        word |= {"xycoords": ("data", "axes fraction"), "xytext": (-4, 0), "ha": "right", "va": "top", "rotation": 90}
    else:
        axes.axhline(value.value, **line)
        place = (0.01, value.value)
        word |= {"xycoords": ("axes fraction", "data"), "xytext": (0, 2), "va": "bottom"}
    axes.annotate("dense", place, **word)


# Two panels: each model over the sparsity.


def _quality_panel(setting: Setting) -> Plot:
    points = over_sparsity(setting.with_gaps(setting.scored), lambda case: case.delta_nll)
    figure, axes = new_axes(f"Quality of {setting.model}", height=4.0)
    handles = draw_curves(axes, points)
    symlog(axes, reach(points))
    sparsity_axis(axes, setting.model, f"ΔNLL of {setting.model} to dense (nats per token)")
    legend(figure, handles)
    caption = f"ΔNLL of {setting.model} to dense over asked sparsity. Points of one sparsity stand slightly apart."
    return Plot("tradeoff-quality", figure, caption)


def _speed_panels(setting: Setting) -> list[Plot]:
    return [_speed_panel(setting, axis) for axis in AXES if any(axis.value(case) for case in setting.timed)]


def _speed_panel(setting: Setting, axis: SpeedAxis) -> Plot:
    cases = setting.with_gaps(case for case in setting.timed if not case.is_dense)
    points = over_sparsity(cases, axis.value, axis.limit)
    figure, axes = new_axes(f"{axis.name} of {setting.model}", height=4.0)
    handles = draw_curves(axes, points)
    caption = f"{axis.name} of {setting.model} ({axis.unit}) over asked sparsity, dense dashed"
    if draw_limits(axes, points, "y"):
        handles.append(limit_handle("y"))
        caption += "; bars mark the roofline of each point"
    axes.margins(y=0.1)
    _dense_line(axes, setting, axis, "y")
    plain_ticks(axes, "y")
    sparsity_axis(axes, setting.model, axis.label(setting.model))
    legend(figure, handles)
    return Plot(f"tradeoff-{axis.slug}", figure, f"{caption}.{setting.warning}", axis.name)


def _short(sparsity: float | None) -> str:
    return "" if sparsity is None else share(sparsity)
