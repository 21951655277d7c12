"""Series over commits: where each commit stands on an axis, what was measured there, and what nights found there."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tda.history.findings import Finding
from tda.statistics import Estimate
from tda.web.dashboard.blocks import RATIO, SETS, CaseFacts, SettingHistory, Stop
from tda.web.dashboard.evidence import Evidence, KnownCommit
from tda.web.dashboard.formatting import SPLITS, level_text, scaled

WINDOW = 60
"""Commits that a trend shows: the newest; asv's own graphs show all."""
FAILED = ("build failed", "crashed")


@dataclass(frozen=True)
class Slot:
    """A place on the axis: a commit as one machine saw it."""

    machine: str
    commit: KnownCommit


@dataclass(frozen=True)
class Dot:
    """One level: where on the axis, of what, how much, and in words."""

    place: int
    stop: Stop
    estimate: Estimate
    text: str


@dataclass(frozen=True)
class Trend:
    """Blocks of one source and setting on one kind of hardware: only software differs, with a break between.

    Attributes
    ----------
    evidence : Evidence
        Where they are from.
    blocks : tuple of SettingHistory
        In the order of their last commits. Each has slots of its own, so that a commit that was measured on both
        sides of a break stands on both.
    """

    evidence: Evidence
    blocks: tuple[SettingHistory, ...]

    @property
    def slug(self) -> str:
        """Name that is equal for the same trend in each publication."""
        first = self.blocks[0]
        text = repr((first.source, first.setting, self.evidence.hardware(first.machine)))
        return f"t{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def metrics(self) -> list[str]:
        """Metrics that some block has, in the order of the blocks."""
        return list(dict.fromkeys(metric for block in self.blocks for metric in block.metrics))

    @cached_property
    def slots(self) -> list[Slot]:
        """Measured commits, and between them those that failed."""
        found: list[Slot] = []
        for block in self.blocks:
            places = {self.evidence.places[stop.commit] for stop in block.stops}
            covered = {slot.commit.hash for slot in found}
            for place in range(min(places), max(places) + 1):
                commit = self.evidence.commits[place]
                if place in places or (commit.status in FAILED and commit.hash not in covered):
                    found.append(Slot(block.machine, commit))
        return found[-WINDOW:]

    @cached_property
    def places(self) -> dict[tuple[str, str], int]:
        """Place on the axis by machine and commit."""
        return {(slot.machine, slot.commit.hash): place for place, slot in enumerate(self.slots)}

    @cached_property
    def breaks(self) -> list[tuple[float, str]]:
        """Where the machine changed, and what did."""
        machines = [slot.machine for slot in self.slots]
        return [
            (place - 0.5, self._changed(machines[place - 1], machine))
            for place, machine in enumerate(machines)
            if place and machine != machines[place - 1]
        ]

    def _changed(self, old: str, new: str) -> str:
        known = self.evidence.machines
        if old not in known or new not in known:
            return "machine changed"
        before, after = known[old].model_dump(), known[new].model_dump()
        changes = [f"{name} {before[name]} → {after[name]}" for name in before if before[name] != after[name]]
        return ", ".join(changes[:2]) + (f" and {len(changes) - 2} more" if len(changes) > 2 else "")

    def unit(self, metric: str) -> str:
        """Unit of a metric; empty where nothing was measured."""
        return next(filter(None, (block.unit(metric) for block in self.blocks)), "")

    def cases(self, metric: str) -> list[CaseFacts]:
        """Cases with a level of the metric, in the order of methods."""
        held = {facts.series: facts for block in self.blocks for facts in block.cases.values()}
        seen = sorted(held.values(), key=lambda facts: facts.order)
        return [facts for facts in seen if any(self.dots(block, facts.series, metric) for block in self.blocks)]

    def dots(self, block: SettingHistory, case: str, metric: str) -> list[Dot]:
        """What is drawn of one block."""
        return list(self._sets(block, case) if metric == SETS else self._levels(block, case, metric))

    def _levels(self, block: SettingHistory, case: str, metric: str) -> Iterator[Dot]:
        for stop in block.stops:
            place = self.places.get((block.machine, stop.commit))
            level = block.level(case, metric, stop)
            if place is not None and level.estimate is not None:
                yield Dot(place, stop, scaled(level.estimate, level.unit), level_text(level))

    def _sets(self, block: SettingHistory, case: str) -> Iterator[Dot]:
        """Kept sets, numbered as they first appear: a step is a change."""
        numbers: dict[tuple[float, ...], int] = {}
        for stop in block.stops:
            place, found = self.places.get((block.machine, stop.commit)), block.last(case, SETS, stop)
            if place is not None and found is not None:
                number = numbers.setdefault(found.measurement.samples, len(numbers) + 1)
                yield Dot(place, stop, Estimate(number, None, None, 1), f"set {number}")

    def findings(self, facts: CaseFacts, metric: str) -> list[Finding]:
        """Findings about a case that show in a metric; nights alone find any."""
        return [
            finding
            for finding in self.evidence.findings
            if self.blocks[0].source == "nightly"
            and finding.grid in (facts.grid, None)
            and facts.key in {case.key for case in finding.cases}
            and shows_in(finding, metric)
            and (finding.machine, finding.commit) in self.places
        ]


def shows_in(finding: Finding, metric: str) -> bool:
    """Whether a metric is one that a finding is about; what moves dense too is no change of the ratio to it."""
    return metric in SPLITS[finding.split] and (metric != RATIO or finding.scope == "method")


def trends(evidence: Evidence) -> list[Trend]:
    """All trends, in the order of blocks."""
    held: dict[tuple[object, ...], list[SettingHistory]] = {}
    for block in evidence.blocks:
        held.setdefault((block.source, block.setting, evidence.hardware(block.machine)), []).append(block)
    last = {id(block): evidence.places[block.stops[-1].commit] for block in evidence.blocks}
    return [Trend(evidence, tuple(sorted(blocks, key=lambda block: last[id(block)]))) for blocks in held.values()]


def place_of(evidence: Evidence, finding: Finding) -> str | None:
    """Link from the pages' folder to the figure in which a finding shows; None where no figure has it."""
    for trend in trends(evidence):
        for metric in trend.metrics:
            if any(finding in trend.findings(facts, metric) for facts in trend.cases(metric)):
                return f"over_time.html#{trend.slug}-{metric}"
    return None
