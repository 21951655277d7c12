"""Where each kind of work stands under the machine's two roofs: stream bandwidth and matmul peak."""

from collections import defaultdict
from statistics import median
from typing import NamedTuple

from tda.profiler.parts import FFN_PARTS
from tda.profiler.records import Profile


class RooflinePoint(NamedTuple):
    """One family of kernels in one phase.

    Attributes
    ----------
    phase, family : str
        "FFN", "attention", "projections", "head" or "other".
    intensity : float
        FLOPs per byte.
    gflop_per_s : float
        Achieved.
    bound_gflop_per_s : float
        What the roofs allow at that intensity.
    share : float
        Of the phase's time.
    """

    phase: str
    family: str
    intensity: float
    gflop_per_s: float
    bound_gflop_per_s: float
    share: float

    @property
    def of_bound(self) -> float:
        """Achieved over allowed."""
        return self.gflop_per_s / self.bound_gflop_per_s


FAMILIES = {**dict.fromkeys(FFN_PARTS, "FFN"), "projection": "projections", "attention": "attention", "head": "head"}


def points(profile: Profile) -> list[RooflinePoint]:
    """Every family of kernels that computes matrix products, by phase."""
    bandwidth = median(profile.timed.stream_gb_per_s)
    peak = profile.matmul_tflop_per_s * 1e3
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for row in profile.kernels:
        if row.flops and row.bytes:
            held = sums[row.phase, FAMILIES.get(row.part, "other")]
            for place, value in enumerate((row.flops, row.bytes, row.self_ms, row.share)):
                held[place] += value
    return [
        RooflinePoint(phase, family, flops / moved, flops / ms / 1e6, min(peak, flops / moved * bandwidth), share)
        for (phase, family), (flops, moved, ms, share) in sums.items()
        if ms > 0
    ]
