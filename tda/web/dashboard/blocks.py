"""Levels of every metric by case and state of the code, in blocks across which nothing is ever joined.

A `SettingHistory` holds numbers of one source, machine and setting. Within it the processes that measured one state of
the code are pooled, clean and dirty states apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tda.changes.effects import MIN_BLOCKS, effect
from tda.derived import DERIVED
from tda.records import MEASUREMENTS, Measurement, MeasurementKind, measurement_kind
from tda.statistics import Estimate, Values, arithmetic, bootstrap, by_group, typical
from tda.web.theme.style import rank

RATIO, DELTA, KL, SETS = "decode_to_dense", "delta_nll_nats", "kl_to_dense_nats", "selection_digest"
SOURCES = {"nightly": "nightly runs", "bench": "tda bench", "asv": "asv", "micro": "micro-benchmarks"}
"""Sources in words, in the order in which they are shown: the one that compares commits best comes first."""
PAIRING = ("nightly", "bench")
"""Sources whose rounds hold every case once, dense too: rounds of equal number belong together."""
KINDS: Mapping[str, MeasurementKind] = {
    RATIO: MeasurementKind(unit="ratio", better="lower", meaning="decode step over the dense one of the same round"),
    DELTA: MeasurementKind(unit="nats/token", better="lower", meaning="NLL less dense NLL, paired by document"),
    **MEASUREMENTS,
    **DERIVED,
}
"""Known metrics in the order in which they are shown: two computed here, what is recorded, what follows from it."""


MAIN = (
    RATIO, "decode_ms", DELTA, KL, "prefill_ms", "selection_ms", "statistic_ms", "generation_ms", "peak_memory_bytes",
    "energy_j_per_token", "top1_disagreement", SETS,
)  # fmt: skip
"""Metrics that answer most questions; they are shown first."""


class Stop(NamedTuple):
    """A state of the code that was measured: a commit, or a commit with changes on top."""

    commit: str
    dirty: bool
    change: str = ""


@dataclass(frozen=True)
class MetricRun:
    """One metric of one case in one process.

    Attributes
    ----------
    process : tuple
        Equal for what ran in the same process.
    measurement : Measurement
        Raw samples, or why there are none; what is derived has none of its own.
    estimate : Estimate or None
        Over its rounds or documents; None without samples, for a hash, and for what is no number.
    """

    process: tuple[object, ...]
    measurement: Measurement
    estimate: Estimate | None

    @property
    def known(self) -> bool:
        """Whether it gave anything."""
        return bool(self.measurement.samples) or self.estimate is not None

    @cached_property
    def groups(self) -> dict[int, float]:
        """Median sample of each round or document."""
        return by_group(self.measurement)


@dataclass(frozen=True)
class Level:
    """One metric of one case at one stop.

    Attributes
    ----------
    estimate : Estimate or None
        Over processes where there are several, else over rounds or documents; None where missing.
    unit : str
        Of the estimate.
    missing : str
        Why there is no estimate.
    """

    estimate: Estimate | None
    unit: str
    missing: str = ""


@dataclass(frozen=True)
class CaseFacts:
    """What a case is.

    Attributes
    ----------
    series : str
        Equal for what is compared across commits.
    grid : str or None
        In which it was measured.
    key : str
        Key of the case itself, whatever it was measured on.
    label, short : str
        What people call it, with and without the model, which the setting names.
    method : str
        Its method.
    sparsity : float or None
        The requested one.
    """

    series: str
    grid: str | None
    key: str
    label: str
    short: str
    method: str
    sparsity: float | None

    @property
    def order(self) -> tuple[object, ...]:
        """Sorting key: methods in the order of legends, then sparsity."""
        return (*rank(self.method), self.sparsity or 0.0, self.label)


@dataclass
class SettingHistory:
    """All numbers of one source, machine and setting.

    Attributes
    ----------
    source, machine, machine_label, setting : str
        What it is; `machine` is a fingerprint.
    on_gpu : bool
        Whether it was measured on one.
    cases : dict
        By series, in the order of methods.
    stops : list of Stop
        In the order of history.
    failures : dict
        Why a case gave nothing at a stop.
    """

    source: str
    machine: str
    machine_label: str
    setting: str
    on_gpu: bool = False
    cases: dict[str, CaseFacts] = field(default_factory=dict)
    stops: list[Stop] = field(default_factory=list)
    failures: dict[tuple[str, Stop], str] = field(default_factory=dict)
    _runs: dict[tuple[str, str, Stop], list[MetricRun]] = field(default_factory=dict)
    _levels: dict[tuple[str, str, Stop], Level] = field(default_factory=dict)

    def add(self, case: str, metric: str, stop: Stop, run: MetricRun) -> None:
        """File what a process gave."""
        self._runs.setdefault((case, metric, stop), []).append(run)

    def runs(self, case: str, metric: str, stop: Stop) -> list[MetricRun]:
        """What all processes gave."""
        return self._runs.get((case, metric, stop), [])

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that some case has something of, main ones first."""
        found = {metric for (_, metric, _), runs in self._runs.items() if any(run.known for run in runs)}
        order = list(dict.fromkeys((*MAIN, *KINDS)))
        return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))

    @property
    def title(self) -> str:
        """Setting and source in words."""
        return " · ".join(part for part in (self.setting, SOURCES.get(self.source, self.source)) if part)

    def unit(self, metric: str) -> str:
        """Unit of a metric; empty where nothing was measured."""
        runs = (run for (_, name, _), held in self._runs.items() if name == metric for run in held)
        return next((run.measurement.unit for run in runs if run.known), "")

    def level(self, case: str, metric: str, stop: Stop) -> Level:
        """Level of a metric, worked out once."""
        key = (case, metric, stop)
        if key not in self._levels:
            self._levels[key] = _level(metric, self.runs(*key), self.failures.get((case, stop)))
        return self._levels[key]

    def last(self, case: str, metric: str, stop: Stop) -> MetricRun | None:
        """The last process with samples."""
        return next((run for run in reversed(self.runs(case, metric, stop)) if run.measurement.samples), None)

    def present(self, stop: Stop) -> list[str]:
        """Labels of the cases that a stop has something of, be it a failure."""
        seen = {case for case, _, at in self._runs if at == stop} | {case for case, at in self.failures if at == stop}
        return [case for case in self.cases if case in seen]

    def newest(self) -> Stop:
        """The last stop, a clean one where there is any."""
        return next((stop for stop in reversed(self.stops) if not stop.dirty), self.stops[-1])

    def before(self, stop: Stop) -> Stop | None:
        """The clean stop before one."""
        earlier = self.stops[: self.stops.index(stop)]
        return next((other for other in reversed(earlier) if not other.dirty and other.commit != stop.commit), None)

    def change(self, case: str, metric: str, new: Stop, old: Stop) -> Estimate | None:
        """Change between two stops: relative (.1 is 10% more), in its own unit for quality.

        Paired by process, by document for quality. Where the two share no process it has no interval.
        """
        if is_quality(metric):
            return _difference(self.last(case, metric, new), self.last(case, metric, old))
        return _relative(self.runs(case, metric, new), self.runs(case, metric, old))


def kind_of(metric: str) -> MeasurementKind | None:
    """What a metric is; None for one of a suite's own."""
    if metric.startswith("task_"):
        return measurement_kind(metric)
    return KINDS.get(metric)


def is_quality(metric: str) -> bool:
    """Whether a metric is an average over documents, and repeats exactly."""
    kind = kind_of(metric)
    return metric == "perplexity" or (kind is not None and kind.unit in ("nats/token", "share"))


def _level(metric: str, runs: Sequence[MetricRun], failure: str | None) -> Level:
    unit = next((run.measurement.unit for run in runs), "")
    good = [run.estimate for run in runs if run.estimate is not None]
    if not good:
        reasons = [run.measurement.missing or "no finite number" for run in runs]
        return Level(None, unit, reasons[-1] if reasons else failure or "not measured")
    single = is_quality(metric) or len(good) == 1
    pooled = good[-1] if single else typical([estimate.value for estimate in good])
    return Level(pooled, unit)


def _difference(one: MetricRun | None, other: MetricRun | None) -> Estimate | None:
    if one is None or other is None:
        return None
    values = [a - b for a, b in paired(one, other).values()]
    return bootstrap(values) if values and np.isfinite(values).all() else None


def _relative(new: Sequence[MetricRun], old: Sequence[MetricRun]) -> Estimate | None:
    above, below = (
        {run.process: run.estimate.value for run in runs if run.estimate is not None} for runs in (new, old)
    )
    scale = float(np.median(list(below.values()))) if below else 0.0
    if not above or scale <= 0:
        return None
    common = [at for at in above if at in below]
    if not common:
        return Estimate(float(np.median(list(above.values()))) / scale - 1, None, None, 0)
    if min(*above.values(), *below.values()) > 0:
        return _changed(np.log([above[at] / below[at] for at in common]))
    # A difference of two times may be zero or less in a process: then all are taken relative to the median.
    return arithmetic([(above[at] - below[at]) / scale for at in common])


def _changed(log_ratios: Values) -> Estimate:
    """The change that a night would tell of the same processes."""
    if len(log_ratios) < MIN_BLOCKS:
        return Estimate(float(np.expm1(log_ratios.mean())), None, None, len(log_ratios))
    found = effect(log_ratios)
    return Estimate(found.size, *found.bounds(), len(log_ratios))


def paired(one: MetricRun, other: MetricRun) -> dict[int, tuple[float, float]]:
    """Values of the rounds or documents that two runs share."""
    return {group: (value, other.groups[group]) for group, value in one.groups.items() if group in other.groups}
