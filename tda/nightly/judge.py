"""From a night's units to its findings: suspects, confirmed changes, quality, and the sentences that say so."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tda.cases import Case
from tda.changes import detect, drift
from tda.changes.detect import Change, Pair, Rules, Suspect
from tda.changes.effects import Effect, Prior, resolution
from tda.changes.messages import (
    FAILS,
    fails,
    failure_sentence,
    named,
    quality_sentence,
    says_nothing,
    speed_sentence,
    warning_sentence,
    why_failed,
    why_lost,
)
from tda.changes.quality import QualityMove, quality_moves, same_text, scope_of
from tda.changes.series import Blocks, Key
from tda.history.findings import Finding, Verdict
from tda.history.nights import History, Night, NightCommit, Seen, Unit
from tda.history.repository import Repository, short
from tda.nightly.config import NightlyConfig, reproduce
from tda.records import Record
from tda.statistics import BLIND

_Place = tuple[str, Case]
"""A case in its grid."""
_Told = tuple[str, str]
"""What a failed case does, and why."""


class Judge:
    """Judges one night.

    Parameters
    ----------
    history : History
        Its own units and those of earlier nights.
    night : Night
        Account of the night, with the commits' statuses.
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
        self.rules = Rules(config.smallest_change)

    # What is there.

    @cached_property
    def order(self) -> list[str]:
        """Measured commits of the night, oldest first."""
        return [commit.hash for commit in self.night.commits if commit.status == "measured"]

    @cached_property
    def machine(self) -> str:
        """Fingerprint of the machine."""
        return self.night.machine.fingerprint if self.night.machine is not None else "unknown"

    def _units(self) -> list[Unit]:
        """Units as they are now: fresh ones come while a judge is at work."""
        return [unit for unit in self.history.units(self.night.id)[0] if _ran_on(unit, self.machine)]

    @cached_property
    def first(self) -> Blocks:
        """Series of the first blocks."""
        return Blocks(self._units(), "first")

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each commit against the one before it."""
        return detect.step_pairs(self.order)

    @cached_property
    def priors(self) -> dict[Key, Prior]:
        """Between-process noise."""
        return detect.noise(self.first, self.pairs, self.night.anchor)

    # Suspects.

    @cached_property
    def suspects(self) -> list[Suspect]:
        """Steps that the first blocks show, then what only the whole history shows."""
        steps = detect.suspects(self.first, self.pairs, self.priors, self.rules)
        earlier = [finding for night in self._earlier for finding in night.findings]
        known = {commit for finding in earlier if finding.verdict != "warning" for commit in self._range(finding)}
        asked = {(finding.good, finding.commit) for finding in earlier}
        search = drift.Search(self._line, self.night.anchor, self.priors, self.config.blocks, self.rules)
        slow = search.suspects(self._blocks, steps, known)
        return steps + [suspect for suspect in slow if (suspect.pair.old, suspect.pair.new) not in asked]

    def _range(self, finding: Finding) -> list[str]:
        """Measured commits after the good one, up to the bad one."""
        place = {commit: number for number, commit in enumerate(self._line)}
        if finding.good not in place or finding.commit not in place:
            return [finding.commit]
        return self._line[place[finding.good] + 1 : place[finding.commit] + 1]

    def to_confirm(self) -> list[str]:
        """Commits of all suspects, oldest first."""
        wanted = {commit for suspect in self.suspects for commit in (suspect.pair.old, suspect.pair.new)}
        return [commit for commit in self._line if commit in wanted]

    @cached_property
    def _earlier(self) -> list[Night]:
        """Finished nights before this one, of the same anchor and machine: their levels go on in this one's."""
        nights = [night for night in self.history.nights()[0] if night.id < self.night.id and night.finished]
        same = [n for n in nights if n.machine is not None and n.machine.fingerprint == self.machine]
        return [night for night in same if night.anchor == self.night.anchor][-self.config.keep_nights :]

    @cached_property
    def _line(self) -> list[str]:
        """Measured commits of those nights and this one, oldest first."""
        known = {c.hash for night in (*self._earlier, self.night) for c in night.commits if c.status == "measured"}
        return [commit for commit in self.repository.between(None, self.night.commits[-1].hash) if commit in known]

    @cached_property
    def _earlier_units(self) -> list[list[Unit]]:
        """Units of those nights, one list each: read once, since they are many."""
        return [self.history.units(night.id)[0] for night in self._earlier]

    @cached_property
    def _blocks(self) -> list[Blocks]:
        """First blocks of the earlier nights, oldest first, and of this one."""
        return [*(Blocks(units, "first") for units in self._earlier_units), self.first]

    # Findings.

    def findings(self) -> tuple[Finding, ...]:
        """Confirmed changes, suspects that fresh blocks did not confirm, and quality; alarms first."""
        fresh = Blocks(self._units(), "confirm")
        confirmed = detect.confirm(fresh, self.suspects, self.priors)
        changes = _without_parts(detect.changes(fresh, confirmed, self.priors, self.rules), self._line)
        found = [self._speed(change) for change in changes]
        held = {(one.suspect.pair.new, one.suspect.key.split, one.suspect.key.grid) for one in confirmed if one.holds}
        doubtful = [one.suspect for one in confirmed if not one.holds]
        once = {(one.pair, one.key._replace(relative=False)): one for one in doubtful}
        found += [self._warning(o) for o in once.values() if (o.pair.new, o.key.split, o.key.grid) not in held]
        found += self._quality()
        found += self._failures()
        rank = {"alarm": 0, "improvement": 1, "warning": 2}
        place = {commit: number for number, commit in enumerate(self._line)}
        return tuple(sorted(found, key=lambda one: (rank[one.verdict], place.get(one.commit, 0))))

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
        return self._finding(
            change.pair,
            change.grid,
            change.cases,
            **_sized(change.effect),
            verdict=change.verdict,
            split=change.split,
            scope=change.scope,
            p=change.p,
            floor=max(floors, default=None),
            sentence=speed_sentence(change, self._subject(change.pair.new), self._cases(change.grid)),
        )

    def _warning(self, suspect: Suspect) -> Finding:
        return self._finding(
            suspect.pair,
            suspect.key.grid,
            (suspect.key.case,),
            **_sized(suspect.effect),
            verdict="warning",
            split=suspect.key.split,
            scope="method",
            sentence=warning_sentence(suspect, self._cases(suspect.key.grid)),
        )

    def _finding(self, pair: Pair, grid: str, cases: Sequence[Case], **told: Any) -> Finding:
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

    def _cases(self, grid: str) -> set[Case]:
        """What was measured in a grid."""
        return {key.case for key in self.first.keys if key.grid == grid}

    def _subject(self, commit: str) -> str:
        return self.repository.facts(commit).subject

    # What fails.

    def _failures(self) -> list[Finding]:
        """Cases that fail in every process of a commit and ran before it, and those that run again."""
        found: list[Finding] = []
        running: dict[_Place, str] = {}  # with the last commit where it ran
        down: dict[_Place, str] = {}  # with the last commit where it failed
        for commit in (commit for commit in self.night.commits if commit.status in ("measured", "crashed")):
            ran, failed = self._places(commit)
            if commit.status == "crashed":
                failed = dict.fromkeys(running, (FAILS, commit.reason or "no reason given"))
            broken = {place: good for place, good in running.items() if place in failed}
            again = {place: down[place] for place in ran if place in down}
            found += self._turned(commit.hash, broken, "alarm", failed)
            found += self._turned(commit.hash, again, "improvement", {})
            down = {one: at for one, at in (down | dict.fromkeys(failed, commit.hash)).items() if one not in ran}
            running = {one: at for one, at in (running | dict.fromkeys(ran, commit.hash)).items() if one not in failed}
        return found

    def _turned(
        self, commit: str, places: Mapping[_Place, str], verdict: Verdict, failed: Mapping[_Place, _Told]
    ) -> Iterator[Finding]:
        """A finding for the cases that were otherwise at one commit, and fail in one way now or run again."""
        held: dict[tuple[str, str], list[_Place]] = {}
        for place, before in places.items():
            held.setdefault((before, failed[place][0] if place in failed else ""), []).append(place)
        for (before, _), alike in held.items():
            yield self._failure(Pair(commit, before), alike, verdict, failed.get(alike[0]))

    def _seen(self, commit: NightCommit) -> list[tuple[_Place, Record]]:
        """Records of a commit's first processes, controls aside."""
        units = (unit for unit in self.history.units(self.night.id)[0] if unit.commit == commit.hash)
        own = [unit for unit in units if (unit.role, unit.stage) == ("commit", "first")]
        return [((unit.grid, one.case), one) for unit in own for one in unit.records if one.case.control is None]

    def _places(self, commit: NightCommit) -> tuple[list[_Place], dict[_Place, _Told]]:
        """Cases of a commit that ran in some process, and cases that failed in all of them: what they do, and why.

        Of a case that was only killed from outside or lost with its worker nothing is known: it is in neither.
        """
        seen = self._seen(commit)
        ran = dict.fromkeys(place for place, record in seen if record.status == "ok")
        failed = {
            place: (fails(record, ran=True), why_failed(record))
            for place, record in seen
            if place not in ran and not says_nothing(record)
        }
        return list(ran), failed

    def unmeasured(self) -> tuple[str, ...]:
        """A sentence for each commit and way in which cases were lost, so that nothing is known of them there."""
        found: dict[tuple[str, str], dict[Case, None]] = {}
        for commit in self.night.commits:
            ran, failed = self._places(commit)
            for place, record in self._seen(commit):
                if place not in ran and place not in failed:
                    found.setdefault((commit.hash, why_lost(record)), {})[record.case] = None
        return tuple(f"{named(cases)} at {short(commit)} {why}" for (commit, why), cases in found.items())

    def _failure(self, pair: Pair, places: Sequence[_Place], verdict: Verdict, told: _Told | None) -> Finding:
        grid, cases = places[0][0], list(dict.fromkeys(case for _, case in places))
        return self._finding(
            pair,
            grid,
            cases,
            verdict=verdict,
            split="failure",
            scope="method",
            size=None,
            unit="cases",
            sentence=failure_sentence(pair, cases, told, self._subject(pair.new)),
        )

    # Quality.

    def _quality(self) -> list[Finding]:
        texts: dict[str, dict[str, list[Record]]] = {grid.name: {} for grid in self.config.grids if not grid.repeated}
        for unit in itertools.chain(*self._earlier_units, self._units()):
            if unit.grid in texts and unit.status == "ok" and _ran_on(unit, self.machine):
                texts[unit.grid][unit.commit] = list(unit.records)
        found = []
        for (grid, held), pair in itertools.product(texts.items(), self.pairs):
            moves = quality_moves(held.get(pair.new, []), held.get(pair.old, []))
            if moves:
                found.append(self._quality_finding(pair, grid, moves, held))
        return found

    def _quality_finding(
        self, pair: Pair, grid: str, moves: Sequence[QualityMove], texts: Mapping[str, list[Record]]
    ) -> Finding:
        """The case that moved most speaks for all; text that was there first, and is no worse, is mended."""
        cases = [move.case for move in moves]
        line = [commit for commit in self._line[: self._line.index(pair.new)] if commit in texts]
        since, held = (
            next((place for place, known in enumerate(line) if same_text(texts[end], texts[known], cases)), len(line))
            for end in (pair.new, pair.old)
        )
        back = line[since] if since < len(line) else None
        worst = max(moves, key=lambda move: move.nll.value if move.nll is not None else 0.0)
        nll = worst.nll
        shifts = [move.nll.value if move.nll is not None and not move.sets else 0.0 for move in moves]
        better, worse = max(shifts) < 0, min(shifts) > 0
        return self._finding(
            pair,
            grid,
            cases,
            verdict="improvement" if (since < held and not worse) or better else "alarm",
            split="quality",
            scope=scope_of(moves, texts[pair.new]),
            size=nll.value if nll is not None else None,
            unit="nats/token" if nll is not None else "sets",
            low=nll.low if nll is not None else None,
            high=nll.high if nll is not None else None,
            back=back,
            sentence=quality_sentence(
                pair, worst, moves, back, self._subject(pair.new), [record.case for record in texts[pair.new]]
            ),
        )


def _sized(effect: Effect) -> dict[str, Any]:
    """Size and bounds of a change of speed or memory."""
    low, high = effect.bounds()
    return {"size": effect.size, "unit": "ratio", "low": low, "high": high}


def _ran_on(unit: Unit, machine: str) -> bool:
    """Whether a unit is of a machine; a failed one, without records, is of none."""
    return bool(unit.records) and unit.records[0].machine.fingerprint == machine


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
