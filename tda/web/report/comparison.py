"""A case beside the dense case of its setting: every number that the report shows, from raw samples."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tda.cases import CONTROLS, Case, describe
from tda.derived import UNLIKE, Derived, Missing, above_limit, derive, unlike_kernels
from tda.records import flag_words
from tda.statistics import (
    Estimate,
    finite,
    paired_difference,
    speedup,
)
from tda.web.report.scored import ScoredCase

A_A = CONTROLS["a_a"]
ABOVE_LIMIT, FEW_DOCUMENTS = "above its roofline", "few documents"
"""Kinds of warning that stand in no record: they follow from comparing."""
OF_QUALITY = frozenset({FEW_DOCUMENTS, "built in text"})
"""Warnings about a case's quality; all others are about its speed."""


@dataclass(frozen=True)
class ComparedCase(ScoredCase):
    """A case and the dense case that it is compared with.

    Attributes
    ----------
    among : tuple of Case
        The cases that its label must differ from.
    shared : frozenset of int
        Documents on which every case of the setting was scored.
    documents : int
        Documents of the case that was scored on most.
    floor : float or None
        What ratios of the setting stay within when nothing changes.
    spoiled : str
        Why no ratio of the setting can be trusted; empty where nothing says so.
    suffix : str
        What else tells it from others of its case: the calibration.
    """

    among: tuple[Case, ...] = ()
    shared: frozenset[int] = frozenset()
    documents: int = 0
    floor: float | None = None
    spoiled: str = ""
    suffix: str = ""

    @property
    def series(self) -> str:
        """What its curve is called: the method, and what tells it from other cases of the method."""
        return describe(self.record.case, self.among, sparsity=False, model=False) + self.suffix

    @property
    def label(self) -> str:
        """Series and sparsity, e.g. ``"griffin 0.5"``."""
        return describe(self.record.case, self.among, model=False) + self.suffix

    @cached_property
    def variant(self) -> int:
        """Its place among the series of its method that options make: 0 has the method's own look."""
        case = self.record.case
        alike = [one for one in self.among if (one.method, one.control) == (case.method, case.control)]
        names = [describe(one, self.among, sparsity=False, model=False) for one in (*alike, case)]
        return list(dict.fromkeys(names)).index(names[-1])

    @property
    def perplexity(self) -> float | None:
        """Exp of the mean NLL over the documents that every case of the setting shares."""
        groups = self.groups("perplexity")
        values = [groups[number] for number in groups if number in self.shared]
        return float(np.exp(np.mean(np.log(values)))) if values else None

    # Against dense.

    def derived(self, name: str) -> Derived:
        """One of `tda.derived.DERIVED`, or why it is missing."""
        if not self.timed:
            return Missing(self.missing("decode_ms"))
        return derive(name, self.record, self.dense)

    def estimate(self, name: str) -> Estimate | None:
        """One of `tda.derived.DERIVED`; None where it is missing."""
        found = self.derived(name)
        return None if isinstance(found, Missing) else found

    def faster(self, name: str) -> Estimate | None:
        """Dense time over this time, paired per round; None where either is missing."""
        if self.dense is None or not (self.samples(name) and finite(self.dense, name)):
            return None
        return speedup(self.record, self.dense, name)

    @cached_property
    def speedup(self) -> Estimate | None:
        """Speed-up of a decode step."""
        return self.estimate("speedup")

    @property
    def unlike_kernels(self) -> str | None:
        """Why a ratio of its times to dense's says more than what the method saves; None where it does not."""
        dense = self.dense_case
        if dense is None or not (self.timed and dense.timed):
            return None
        return unlike_kernels(self.record.backend, dense.record.backend)

    @cached_property
    def warning_details(self) -> dict[str, str]:
        """What speaks against its numbers: kinds of warning, most general first, each with its detail."""
        found = {A_A: self.spoiled} if self.spoiled else {}
        found |= {flag_words(name): flag.detail for name, flag in self.record.flags.items() if flag.raised}
        ratio, limit = self.speedup if self.timed else None, self.limit
        above = above_limit(ratio.value, limit, self.floor or 0.0) if ratio is not None and limit is not None else None
        scored = len(self.groups("nll_nats"))
        is_few = 0 < scored < self.documents / 2 and self.record.case.control is None  # a control needs no more
        few = f"quality of {scored} of {self.documents} documents" if is_few else None
        known = {ABOVE_LIMIT: above, UNLIKE: self.unlike_kernels, FEW_DOCUMENTS: few}
        return found | {kind: detail for kind, detail in known.items() if detail is not None}

    @property
    def warnings(self) -> list[str]:
        """Why its numbers cannot be trusted; empty where nothing is known against them."""
        return [f"{kind} ({detail})" for kind, detail in self.warning_details.items()]

    @cached_property
    def delta_nll(self) -> Estimate | None:
        """NLL less dense NLL in nats per token, paired per document; None where either is missing."""
        if self.dense is None or not (self.samples("nll_nats") and self.dense.samples("nll_nats")):
            return None
        if not finite(self.dense, "nll_nats"):
            return None
        return paired_difference(self.record.measurements["nll_nats"], self.dense.measurements["nll_nats"])

    @property
    def limit_ms(self) -> float | None:
        """The decode step that the roofline gives: dense's step over `roofline_speedup`."""
        dense = self.dense_case.decode_ms if self.dense_case is not None else None
        return dense.value / self.limit if dense and self.limit is not None else None

    @property
    def limit(self) -> float | None:
        """The speed-up that the bytes of a step allow."""
        found = self.estimate("roofline_speedup")
        return found.value if found else None
