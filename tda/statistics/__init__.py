"""Estimates from raw samples, each with a 95% interval: ratios and times by t on logarithms, quality by bootstrap.

The unit is a group (a round of timings, a document of quality, an item of a task), never a token or a repeat. An
interval says how well this process is known; what differs from process to process (memory layout, neighbours) is not
in it.
"""

from tda.records import MIN_GROUPS
from tda.statistics.estimates import (
    LEVEL,
    RESAMPLES,
    Estimate,
    Values,
    arithmetic,
    bootstrap,
    by_group,
    geometric,
    perplexity,
    typical,
)
from tda.statistics.items import MARGIN, Verdict, average, item_difference, item_score, standard_error, verdict
from tda.statistics.noise import BLIND, LOOKED_LEVEL, finite, floor, is_baseline, level_of, noise_floor, speedup
from tda.statistics.paired import fieller, paired_difference, paired_ratio, ratios, unpaired_ratio

__all__ = [
    "BLIND",
    "LEVEL",
    "LOOKED_LEVEL",
    "MARGIN",
    "MIN_GROUPS",
    "RESAMPLES",
    "Estimate",
    "Values",
    "Verdict",
    "arithmetic",
    "average",
    "bootstrap",
    "by_group",
    "fieller",
    "finite",
    "floor",
    "geometric",
    "is_baseline",
    "item_difference",
    "item_score",
    "level_of",
    "noise_floor",
    "paired_difference",
    "paired_ratio",
    "perplexity",
    "ratios",
    "speedup",
    "standard_error",
    "typical",
    "unpaired_ratio",
    "verdict",
]
