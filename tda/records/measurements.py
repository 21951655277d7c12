"""What is measured: names, units and meanings, and the raw samples of one quantity."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from tda.cases import Frozen

MIN_GROUPS = 5
"""Fewer rounds or documents than this give no interval."""
Better = Literal["lower", "higher"]


class MeasurementKind(Frozen):
    """What a measurement name stands for.

    `speed` marks what only an execution that really skips can have, `positive` what cannot take no time at all.
    """

    unit: str
    better: Better | None
    meaning: str
    speed: bool = False
    positive: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """What a sample lies within; anything else was not measured."""
        low, high = RANGES.get(self.unit, (0.0, 1e18))
        return (1e-6 if self.positive else low), high


RANGES: Mapping[str, tuple[float, float]] = {
    "ms": (0.0, 1e9),
    "GB/s": (1e-6, 1e9),
    "B": (1.0, 1e18),
    "%": (0.0, 100.0),
    "share": (0.0, 1.0),
    "nats/token": (-1e-3, 1e9),
    "ratio": (0.99, 1e300),
}
"""By unit. A likelihood or a divergence may be below zero by what rounding makes of a tiny one."""


def _kind(
    unit: str, better: Better | None, meaning: str, *, speed: bool = False, positive: bool = False
) -> MeasurementKind:
    return MeasurementKind(unit=unit, better=better, meaning=meaning, speed=speed, positive=positive)


MEASUREMENTS: dict[str, MeasurementKind] = {
    "prefill_ms": _kind(
        "ms",
        "lower",
        "one pass of the prompt with the method attached, its statistic included",
        speed=True,
        positive=True,
    ),
    "ttft_ms": _kind(
        "ms", "lower", "time to the first token: prefill, and the token read from it", speed=True, positive=True
    ),
    "statistic_ms": _kind("ms", "lower", "what the method's statistic takes within prefill, all layers", speed=True),
    "selection_ms": _kind("ms", "lower", "once per prompt, after its first token: choice, lists, gather", speed=True),
    "choice_ms": _kind("ms", "lower", "the part of selection that decides what is kept", speed=True),
    "gather_ms": _kind("ms", "lower", "the part of selection that makes lists or copies of weights", speed=True),
    "decode_ms": _kind("ms", "lower", "one decode step, one sample per token and round", speed=True, positive=True),
    "generation_ms": _kind("ms", "lower", "end to end through the model's own generate", speed=True, positive=True),
    "attach_ms": _kind(
        "ms", "lower", "attaching the method: checks, layout, kernels, and on CUDA a step captured and a first request"
    ),
    "peak_memory_bytes": _kind("B", "lower", "peak memory while a request runs: allocator and graphs, or RSS on a CPU"),
    "weight_bytes_per_token": _kind("B", "lower", "weight bytes that one decode step must read", speed=True),
    "bytes_per_token": _kind("B", "lower", "bytes that one decode step must read: weights and KV cache", speed=True),
    "stream_gb_per_s": _kind("GB/s", "higher", "stream bandwidth just before and just after the decode steps"),
    "selection_digest": _kind("hash", None, "hash of the kept sets, as the integer of 48 of its bits"),
    "gpu_utilization_percent": _kind("%", "higher", "fraction of time in which some kernel ran"),
    "gpu_memory_bytes": _kind("B", "lower", "device memory in use, as the driver reports it"),
    "power_w": _kind("W", "lower", "board power, the driver's one-second mean"),
    "energy_j_per_token": _kind("J", "lower", "energy counter difference over decode, per token", speed=True),
    "perplexity": _kind("ratio", "lower", "exp of nll_nats of one document"),
    "nll_nats": _kind("nats/token", "lower", "mean negative log likelihood of one document's sparse tokens"),
    "kl_to_dense_nats": _kind("nats/token", "lower", "mean KL(dense || method) of one document's sparse tokens"),
    "top1_disagreement": _kind(
        "share", "lower", "fraction of sparse tokens whose most likely token differs from dense"
    ),
}
SPEED = tuple(name for name, kind in MEASUREMENTS.items() if kind.speed)
"""Measurements of speed: a masked execution has none of them."""


def _number(value: object) -> object:
    """A number, or JSON's words for those that it lacks; true is not 1."""
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity")):
        raise ValueError("expected a number")
    return value


class Measurement(Frozen):
    """Raw samples of one quantity, or the reason why there are none.

    `groups` names for each sample what it belongs to (a document's number, a round): the unit of resampling.
    """

    unit: str
    better: Better | None = None
    samples: tuple[Annotated[float, BeforeValidator(_number)], ...] = ()
    groups: tuple[Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)], ...] = ()
    missing: str | None = None

    @model_validator(mode="after")
    def _samples_or_reason(self) -> "Measurement":
        if bool(self.samples) == (self.missing is not None):
            raise ValueError("a measurement has samples or a reason why they are missing, and not both")
        if self.groups and len(self.groups) != len(self.samples):
            raise ValueError(f"{len(self.groups)} groups for {len(self.samples)} samples")
        return self

    @classmethod
    def of(cls, name: str, samples: Iterable[float], groups: Iterable[int] = ()) -> "Measurement":
        """Samples of the measurement called `name`, with its unit and direction."""
        kind = measurement_kind(name)
        return cls(unit=kind.unit, better=kind.better, samples=tuple(samples), groups=tuple(groups))

    @classmethod
    def absent(cls, name: str, reason: str) -> "Measurement":
        """No samples of the measurement called `name`, and why."""
        kind = measurement_kind(name)
        return cls(unit=kind.unit, better=kind.better, missing=reason)


TASK_SHARE = MeasurementKind(unit="share", better="higher", meaning="a task's score, one sample per item")
TASK_SCORES: Mapping[str, MeasurementKind] = {
    "nll": _kind("nats/token", "lower", "negative log likelihood of an item's answer"),
    "bits_per_byte": _kind("bits/byte", "lower", "negative log likelihood of an item's text"),
    "output_tokens": _kind("tokens", None, "tokens generated for an item, the stop string's included"),
}
"""Scores of a task that are no share, by the end of their name."""


def measurement_kind(name: str) -> MeasurementKind:
    """Look up a measurement name.

    Raises
    ------
    ValueError
        If the name is neither in `MEASUREMENTS` nor of the form ``task_<name>_<score>``.
    """
    if name in MEASUREMENTS:
        return MEASUREMENTS[name]
    if name.startswith("task_"):
        return next((kind for ending, kind in TASK_SCORES.items() if name.endswith(f"_{ending}")), TASK_SHARE)
    raise ValueError(f"unknown measurement {name!r}; known: {', '.join(MEASUREMENTS)}, task_<name>_<score>")
