"""Changes, levels and findings in words and colours, the same on every page."""

from tda.history.findings import Alarm, Finding, Split
from tda.statistics import Estimate
from tda.web.dashboard.blocks import DELTA, KL, RATIO, SETS, Level, kind_of
from tda.web.theme.formatting import MISSING, interval, number

ACTIVE = ("open", "reopened", "acknowledged")
"""States of alarms that still want something of a person."""
COLOURS = {
    "open": "#c9302c",
    "reopened": "#c9302c",
    "acknowledged": "#d58512",
    "accepted": "#5b6570",
    "fixed": "#3c763d",
    "warning": "#d58512",
    "improvement": "#3c763d",
}
"""Of the states of an alarm, and of verdicts that are none."""
SPLITS: dict[Split, tuple[str, ...]] = {
    "prefill": ("prefill_ms",),
    "select": ("selection_ms", "statistic_ms"),
    "decode": ("decode_ms", RATIO),
    "memory": ("peak_memory_bytes",),
    "quality": (DELTA, "nll_nats", KL, "top1_disagreement", SETS),
    "failure": (),
}
"""Metrics in which a finding of a split shows."""
HEADINGS = {
    RATIO: "Decode, relative to dense",
    DELTA: "ΔNLL to dense",
    "prefill_ms": "Prefill",
    "selection_ms": "Selection",
    "statistic_ms": "Statistic",
    "prefill_overhead_ms": "Prefill overhead",
    "speedup": "Speed-up",
    "roofline_speedup": "Roofline speed-up",
    "speedup_efficiency": "Speed-up efficiency",
    "mbu": "MBU",
    "break_even_tokens": "Break-even",
    "ttft_ms": "Time to first token",
    "decode_ms": "Decode step",
    "generation_ms": "Generation",
    "peak_memory_bytes": "Peak memory",
    SETS: "Kept sets",
    KL: "KL to dense",
    "top1_disagreement": "Top-1 disagreement",
    "nll_nats": "NLL",
    "perplexity": "Perplexity",
    "energy_j_per_token": "Energy per token",
}
SCALES = {"B": (1e6, "MB"), "nats/token": (1.0, "nats per token"), "ratio": (1.0, "×"), "hash": (1.0, "")}
"""What a unit is divided by before it is shown, and what it is called then."""
ROUNDING = 1e-6
"""A level below it, e.g. the KL of a dense run to dense, is what the order of sums makes."""


def heading(metric: str) -> str:
    """What a metric is called in a heading."""
    return HEADINGS.get(metric) or metric.replace("_", " ")


def meaning(metric: str) -> str:
    """What a metric is, in a sentence; empty for one that is not known."""
    kind = kind_of(metric)
    return "" if kind is None else kind.meaning


def shown_unit(metric: str, unit: str) -> str:
    """The unit in which a metric is shown."""
    return "" if metric == "perplexity" else SCALES.get(unit, (1.0, unit))[1]


def headed(metric: str, unit: str) -> str:
    """What a metric is called, with the unit in which it is shown."""
    shown = shown_unit(metric, unit)
    return heading(metric) + (f" ({shown})" if shown else "")


def scaled(estimate: Estimate, unit: str) -> Estimate:
    """An estimate in the unit in which it is shown."""
    by = SCALES.get(unit, (1.0, unit))[0]
    low, high = (None if bound is None else bound / by for bound in (estimate.low, estimate.high))
    return Estimate(estimate.value / by, low, high, estimate.groups)


def level_text(level: Level, *, signed: bool = False) -> str:
    """A level with its interval, without the unit; a dash where it is missing."""
    if level.estimate is None:
        return MISSING
    if 0 < abs(level.estimate.value) < ROUNDING:
        return f"<{ROUNDING:f}"
    return interval(scaled(level.estimate, level.unit), signed=signed)


def percent(share: float) -> str:
    """A relative change, e.g. ``"+10%"``."""
    return f"{number(100 * share, 2, signed=True)}%"


def change_text(change: Estimate | None, *, relative: bool) -> str:
    """A change with its interval, in percent or in its own unit."""
    if change is None:
        return MISSING
    if change.value == 0 and not (change.low or change.high):
        return "same"
    if not relative:
        return interval(change, 2, signed=True)
    if change.low is None or change.high is None:
        return percent(change.value)
    low, high = (number(100 * bound, 2, signed=True) for bound in (change.low, change.high))
    return f"{percent(change.value)} [{low}, {high}]"


def size_text(finding: Finding) -> str:
    """How much a finding says that something changed."""
    if finding.size is None:
        return "kept sets differ"
    if finding.unit == "sets":
        return f"{number(finding.size)} kept sets differ"
    change = Estimate(finding.size, finding.low, finding.high, 0)
    relative = finding.unit == "ratio"
    return change_text(change, relative=relative) + ("" if relative else " nats per token")


def standing(finding: Finding, alarm: Alarm | None) -> str:
    """The state of an alarm; the verdict of what is none."""
    return alarm.state if alarm is not None else "open" if finding.verdict == "alarm" else finding.verdict
