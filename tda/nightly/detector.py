"""From a night's units to its findings: candidates, confirmed changes, quality, and the sentences that say so."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tda.cases import Case
from tda.changes import detect, drift
from tda.changes.detect import Candidate, Change, Rules
from tda.changes.effects import Effect, Prior, resolution
from tda.changes.messages import speed_sentence, warning_sentence
from tda.changes.series import Blocks, Key
from tda.history.findings import Finding
from tda.history.nights import Seen
from tda.nightly.data import NightData
from tda.nightly.failures import FailureDetector
from tda.nightly.quality import quality_findings
from tda.statistics import BLIND


class ChangeDetector:
    """Finds what changed in one night.

    Parameters
    ----------
    data : NightData
        The night, with the commits' statuses, and those before it.
    """

    def __init__(self, data: NightData) -> None:
        self.data = data
        self.config = data.config
        self.rules = Rules(data.config.smallest_change)

    @cached_property
    def first(self) -> Blocks:
        """Series of the first blocks."""
        return Blocks(self.data.units(), "first")

    @cached_property
    def priors(self) -> dict[Key, Prior]:
        """Between-process noise."""
        return detect.noise(self.first, self.data.pairs, self.data.night.baseline_commit)

    # Candidates.

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Steps that the first blocks show, then what only the whole history shows."""
        steps = detect.candidates(self.first, self.data.pairs, self.priors, self.rules)
        earlier = [finding for night in self.data.earlier for finding in night.findings]
        known = {commit for finding in earlier if finding.verdict != "warning" for commit in self._range(finding)}
        asked = {(finding.good, finding.commit) for finding in earlier}
        search = drift.Search(
            self.data.line, self.data.night.baseline_commit, self.priors, self.config.blocks, self.rules
        )
        slow = search.candidates(self._blocks, steps, known)
        return steps + [candidate for candidate in slow if (candidate.pair.old, candidate.pair.new) not in asked]

    def _range(self, finding: Finding) -> list[str]:
        """Measured commits after the good one, up to the bad one."""
        place = {commit: number for number, commit in enumerate(self.data.line)}
        if finding.good not in place or finding.commit not in place:
            return [finding.commit]
        return self.data.line[place[finding.good] + 1 : place[finding.commit] + 1]

    def to_confirm(self) -> list[str]:
        """Commits of all candidates, oldest first."""
        wanted = {commit for candidate in self.candidates for commit in (candidate.pair.old, candidate.pair.new)}
        return [commit for commit in self.data.line if commit in wanted]

    @cached_property
    def _blocks(self) -> list[Blocks]:
        """First blocks of the earlier nights, oldest first, and of this one."""
        return [*(Blocks(units, "first") for units in self.data.earlier_units), self.first]

    # Findings.

    def findings(self) -> tuple[Finding, ...]:
        """Confirmed changes, candidates that fresh blocks did not confirm, and quality; alarms first."""
        fresh = Blocks(self.data.units(), "confirm")
        confirmed = detect.confirm(fresh, self.candidates, self.priors)
        changes = _without_parts(detect.changes(fresh, confirmed, self.priors, self.rules), self.data.line)
        found = [self._speed(change) for change in changes]
        held = {
            (one.candidate.pair.new, one.candidate.key.split, one.candidate.key.grid) for one in confirmed if one.holds
        }
        doubtful = [one.candidate for one in confirmed if not one.holds]
        once = {(one.pair, one.key._replace(relative=False)): one for one in doubtful}
        found += [self._warning(o) for o in once.values() if (o.pair.new, o.key.split, o.key.grid) not in held]
        found += quality_findings(self.data)
        found += FailureDetector(self.data).findings()
        rank = {"alarm": 0, "improvement": 1, "warning": 2}
        place = {commit: number for number, commit in enumerate(self.data.line)}
        return tuple(sorted(found, key=lambda one: (rank[one.verdict], place.get(one.commit, 0))))

    def unmeasured(self) -> tuple[str, ...]:
        """As `FailureDetector.unmeasured`."""
        return FailureDetector(self.data).unmeasured()

    def seen(self) -> tuple[Seen, ...]:
        """What the night could see of each series: the between-process A/A floor of its confirming blocks."""
        found = []
        for key in self.first.keys:
            noise = self.priors.get(key)
            floor = None if noise is None else resolution(noise, self.config.confirm_blocks).floor()
            told = floor if floor is not None and floor <= BLIND else None
            found.append(Seen(case=key.case, grid=key.grid, split=key.split, relative=key.relative, floor=told))
        return tuple(found)

    def _speed(self, change: Change) -> Finding:
        keys = [key for key in self.priors if (key.split, key.grid) == (change.split, change.grid)]
        moved = [self.priors[key] for key in keys if key.case in change.cases]
        floors = [resolution(noise, self.config.confirm_blocks).floor() for noise in moved]
        return self.data.finding(
            change.pair,
            change.grid,
            change.cases,
            **_sized(change.effect),
            verdict=change.verdict,
            split=change.split,
            scope=change.scope,
            p=change.p,
            floor=max(floors, default=None),
            sentence=speed_sentence(change, self.data.subject(change.pair.new), self._cases(change.grid)),
        )

    def _warning(self, candidate: Candidate) -> Finding:
        return self.data.finding(
            candidate.pair,
            candidate.key.grid,
            (candidate.key.case,),
            **_sized(candidate.effect),
            verdict="warning",
            split=candidate.key.split,
            scope="method",
            sentence=warning_sentence(candidate, self._cases(candidate.key.grid)),
        )

    def _cases(self, grid: str) -> set[Case]:
        """What was measured in a grid."""
        return {key.case for key in self.first.keys if key.grid == grid}


def _sized(effect: Effect) -> dict[str, Any]:
    """Size and bounds of a change of speed or memory."""
    low, high = effect.bounds()
    return {"size": effect.size, "unit": "ratio", "low": low, "high": high}


def _without_parts(changes: Sequence[Change], line: Sequence[str]) -> list[Change]:
    """Leave out the parts of a drift: changes of the same things within its range, in its direction."""
    place = {commit: number for number, commit in enumerate(line)}

    def covers(wide: Change, part: Change) -> bool:
        alike = (wide.grid, wide.split, wide.scope, wide.verdict) == (part.grid, part.split, part.scope, part.verdict)
        if wide is part or wide.pair.shape != "drift" or not alike:
            return False
        inside = place[wide.pair.old] <= place[part.pair.old] and place[part.pair.new] <= place[wide.pair.new]
        return inside and bool(set(wide.cases) & set(part.cases)) and wide.pair != part.pair

    return [change for change in changes if not any(covers(wide, change) for wide in changes)]
