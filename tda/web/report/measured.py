"""One merged record: what it is, and every number of it alone, from raw samples."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tda.cases import Control, MethodSpec
from tda.derived import NOT_FINITE
from tda.records import SPEED, Record
from tda.statistics import Estimate, bootstrap, by_group, finite, item_score, standard_error, typical
from tda.web.report.tasks import headline, task_scores

NO_SPEED = "masked execution and the oracle skip nothing: no speed"


@dataclass(frozen=True)
class MeasuredCase:
    """All rounds of one series.

    Attributes
    ----------
    record : Record
        All rounds of one series, merged.
    """

    record: Record

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.record.case.method

    @property
    def sparsity(self) -> float | None:
        """Asked sparsity, or the mean achieved one where an error level was asked; None where nothing is left out."""
        requested = self.record.case.sparsity
        return requested if requested is not None else self.achieved or None

    @property
    def is_dense(self) -> bool:
        """Whether it is a dense run: baseline, other dense kernel or A/A control."""
        return self.method == "dense"

    @property
    def is_control(self) -> bool:
        """Whether it is the A/A control: dense once more."""
        return self.record.case.control == "a_a"

    @property
    def from_other_kind(self) -> bool:
        """Whether the set was selected on another kind of prompt: a control."""
        return self.record.case.control == "cross_domain"

    @property
    def identity(self) -> tuple[MethodSpec, Control | None]:
        """Equal for the same method at the same sparsity on two models."""
        return self.record.case.spec, self.record.case.control

    # What was measured.

    @property
    def timed(self) -> bool:
        """Whether it has a speed: masked runs skip nothing and the oracle is no method, so these never have one."""
        return (
            self.record.status == "ok"
            and self.method != "oracle"
            and "masked" not in (self.record.execution, self.record.case.execution)
            and bool(self.record.samples("decode_ms"))
            and finite(self.record, "decode_ms")
        )

    def samples(self, name: str) -> tuple[float, ...]:
        """Samples of a measurement; none where it failed, has no speed though this is one, or one is not finite."""
        if self.record.status != "ok" or (name in SPEED and not self.timed):
            return ()
        return self.record.samples(name) if finite(self.record, name) else ()

    def missing(self, name: str) -> str:
        """Why there are no samples of a measurement."""
        if self.record.status != "ok":
            return f"{self.record.outcome}: {self.record.reason}"
        found = self.record.measurements.get(name)
        if found is not None and found.missing:
            return found.missing
        if not finite(self.record, name):
            return NOT_FINITE
        if found is not None and name in SPEED:
            return NO_SPEED
        return self.record.reason or "not measured"

    def groups(self, name: str) -> dict[int, float]:
        """Median sample of each round or document; empty where missing."""
        return by_group(self.record.measurements[name]) if self.samples(name) else {}

    def median(self, name: str) -> float | None:
        """Median over all samples; None where missing."""
        return self.percentile(name, 50)

    def percentile(self, name: str, percent: float) -> float | None:
        """Percentile over all samples (for `decode_ms`: tokens of all rounds); None where missing."""
        samples = self.samples(name)
        return float(np.percentile(samples, percent)) if samples else None

    def mean(self, name: str) -> Estimate | None:
        """Mean over documents with its interval; None where missing."""
        groups = self.groups(name)
        return bootstrap(list(groups.values())) if groups else None

    def level(self, name: str) -> Estimate | None:
        """Mean of the rounds' medians (geometric, of what is positive), with its interval; None where missing."""
        groups = self.groups(name)
        return typical(list(groups.values())) if groups else None

    @cached_property
    def decode_ms(self) -> Estimate | None:
        """A decode step."""
        return self.level("decode_ms")

    @property
    def achieved(self) -> float | None:
        """Mean over layers of the share left out."""
        layers = self.record.achieved_sparsity
        return float(np.mean(layers)) if layers else None

    @property
    def cache_resident(self) -> str | None:
        """Why its latency says nothing of a model whose weights come from memory; None where it does."""
        flag = self.record.flags.get("cache_resident")
        return f"cache-resident: {flag.detail}" if flag is not None and flag.raised and self.timed else None

    # Tasks.

    @cached_property
    def tasks(self) -> dict[str, list[str]]:
        """Names of the measurements of each task that was scored."""
        return task_scores(self.record) if self.record.status == "ok" else {}

    def headline(self, task: str) -> str | None:
        """The measurement that stands for a task."""
        return headline(task, self.tasks.get(task, ()))

    def is_share(self, name: str) -> bool:
        """Whether a measurement is a share; a score that a task tells on another scale is none."""
        found = self.record.measurements.get(name)
        return found is not None and found.unit == "share" and all(0 <= sample <= 1 for sample in found.samples)

    def score(self, name: str | None) -> Estimate | None:
        """A task's score over its items; None where missing."""
        groups = self.groups(name) if name is not None else {}
        return item_score(list(groups.values()), share=self.is_share(name)) if name is not None and groups else None

    def score_error(self, name: str) -> float | None:
        """Standard error of a task's score; None where missing or of one item."""
        groups = self.groups(name)
        return standard_error(list(groups.values())) if groups else None

    def score_missing(self, task: str) -> str:
        """Why a task has no score."""
        name, facts = self.headline(task), self.record.tasks.get(task)
        if facts is not None and facts.failure is not None:
            return f"it failed: {facts.failure}"
        if name is not None or self.record.status != "ok":
            return self.missing(name or "")
        return "no score was measured" if task in self.tasks else "not run"
