"""Why a decode step takes what it takes, and what keeps a method from its limit."""

from statistics import median
from typing import NamedTuple

from tda.profiler.records import Profile

COMPONENTS = (
    "weight bytes at stream bandwidth",
    "weight operators beyond it",
    "other operators",
    "framework",
    "not explained",
)
"""Components of a decode step, from what no code can save to what no profile shows."""


class StepComponents(NamedTuple):
    """Milliseconds of a decode step by component, in the order of `COMPONENTS`; they sum to the timed step."""

    bandwidth: float
    weights: float
    other: float
    framework: float
    unexplained: float

    @property
    def total(self) -> float:
        """The timed step."""
        return sum(self)


class Gap(NamedTuple):
    """What keeps a method's decode step from the limit that its bytes set, in ms by component.

    At the limit a method's step is the dense one over `limit`; each component is held against the dense one's share of
    that, so the components sum to the whole gap.
    """

    speedup: float
    limit: float
    at_limit: StepComponents
    method: StepComponents

    @property
    def components(self) -> tuple[float, ...]:
        """Method less limit, by component."""
        return tuple(own - bound for own, bound in zip(self.method, self.at_limit, strict=True))


def split(profile: Profile) -> StepComponents:
    """Split the timed decode step of a profile.

    The weights' bytes over the stream bandwidth around the timed steps come first; then what the profile shows of the
    operators that read weights beyond that, of other operators and of the framework; the rest is what the profile and
    the clock disagree on.
    """
    timed = median(profile.timed.decode_ms)
    bound = profile.weight_bytes / median(profile.timed.stream_gb_per_s) / 1e6
    spent = dict.fromkeys(("weights", "other", "framework"), 0.0)
    for row in profile.rows("decode"):
        spent[row.role] += row.self_ms
    return StepComponents(
        bound, spent["weights"] - bound, spent["other"], spent["framework"], timed - sum(spent.values())
    )


def gap(method: Profile, dense: Profile) -> Gap:
    """Hold a method's decode step against the dense one of the same run."""
    own, base = split(method), split(dense)
    limit = dense.step_bytes / method.step_bytes
    return Gap(base.total / own.total, limit, StepComponents(*(part / limit for part in base)), own)
