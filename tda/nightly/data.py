"""What is on disk of a night and of those before it, for its detectors."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tda.cases import Case
from tda.changes import detect
from tda.changes.detect import Pair
from tda.history.findings import Finding
from tda.history.nights import History, Night, Unit
from tda.history.repository import Repository
from tda.nightly.config import NightlyConfig, reproduce


class NightData:
    """A night, its units and those of the nights whose levels go on in its own.

    Parameters
    ----------
    history : History
        Its own units and those of earlier nights.
    night : Night
        Record of the night, with the commits' statuses.
    config : NightlyConfig
        Its settings.
    repository : Repository
        For subjects of commits.
    """

    def __init__(self, history: History, night: Night, config: NightlyConfig, repository: Repository) -> None:
        self.history = history
        self.night = night
        self.config = config
        self.repository = repository

    @cached_property
    def machine(self) -> str:
        """Fingerprint of the machine."""
        return self.night.machine.fingerprint if self.night.machine is not None else "unknown"

    def units(self) -> list[Unit]:
        """Units as they are now: fresh ones come while a detector is at work."""
        return [unit for unit in self.history.units(self.night.id)[0] if ran_on(unit, self.machine)]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each commit against the one before it."""
        return detect.step_pairs(self.night.measured)

    @cached_property
    def earlier(self) -> list[Night]:
        """Finished nights before this one, of the same baseline and machine: their levels go on in this one's."""
        nights = [night for night in self.history.nights()[0] if night.id < self.night.id and night.finished]
        same = [n for n in nights if n.machine is not None and n.machine.fingerprint == self.machine]
        return [night for night in same if night.baseline_commit == self.night.baseline_commit][
            -self.config.keep_nights :
        ]

    @cached_property
    def line(self) -> list[str]:
        """Measured commits of those nights and this one, oldest first."""
        known = {commit for night in (*self.earlier, self.night) for commit in night.measured}
        return [commit for commit in self.repository.between(None, self.night.commits[-1].hash) if commit in known]

    @cached_property
    def earlier_units(self) -> list[list[Unit]]:
        """Units of those nights, one list each: read once, since they are many."""
        return [self.history.units(night.id)[0] for night in self.earlier]

    def finding(self, pair: Pair, grid: str, cases: Sequence[Case], **told: Any) -> Finding:
        """A finding of this night, and what reproduces it."""
        return Finding(
            shape=pair.shape,
            machine=self.machine,
            grid=grid,
            cases=tuple(cases),
            good=pair.old,
            commit=pair.new,
            night=self.night.id,
            reproduce=reproduce(pair, self.config, grid, cases),
            **told,
        )

    def subject(self, commit: str) -> str:
        """First line of a commit's message."""
        return self.repository.facts(commit).subject


def ran_on(unit: Unit, machine: str) -> bool:
    """Whether a unit is of a machine; a failed one, without records, is of none."""
    return bool(unit.records) and unit.records[0].machine.fingerprint == machine
