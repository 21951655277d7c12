"""Cases that a night saw fail where they ran before, or run again, and those that it knows nothing of."""

from collections.abc import Iterator, Mapping, Sequence

from tda.cases import Case
from tda.changes.detect import Pair
from tda.changes.messages import FAILS, fails, failure_sentence, named, says_nothing, why_failed, why_lost
from tda.history.findings import Finding, FindingVerdict
from tda.history.nights import NightCommit
from tda.history.repository import short
from tda.nightly.data import NightData
from tda.records import Record

_Place = tuple[str, Case]
"""A case in its grid."""
_FailureReason = tuple[str, str]
"""What a failed case does, and why."""


class FailureDetector:
    """Judges what fails in a night.

    Parameters
    ----------
    data : NightData
        The night.
    """

    def __init__(self, data: NightData) -> None:
        self.data = data

    def findings(self) -> list[Finding]:
        """Cases that fail in every process of a commit and ran before it, and those that run again."""
        found: list[Finding] = []
        running: dict[_Place, str] = {}  # with the last commit where it ran
        down: dict[_Place, str] = {}  # with the last commit where it failed
        for commit in (commit for commit in self.data.night.commits if commit.status in ("measured", "crashed")):
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
        self,
        commit: str,
        places: Mapping[_Place, str],
        verdict: FindingVerdict,
        failed: Mapping[_Place, _FailureReason],
    ) -> Iterator[Finding]:
        """A finding for the cases that were otherwise at one commit, and fail in one way now or run again."""
        held: dict[tuple[str, str], list[_Place]] = {}
        for place, before in places.items():
            held.setdefault((before, failed[place][0] if place in failed else ""), []).append(place)
        for (before, _), alike in held.items():
            yield self._failure(Pair(commit, before), alike, verdict, failed.get(alike[0]))

    def _seen(self, commit: NightCommit) -> list[tuple[_Place, Record]]:
        """Records of a commit's first processes, controls aside."""
        units = (unit for unit in self.data.history.units(self.data.night.id)[0] if unit.commit == commit.hash)
        own = [unit for unit in units if (unit.role, unit.stage) == ("commit", "first")]
        return [((unit.grid, one.case), one) for unit in own for one in unit.records if one.case.control is None]

    def _places(self, commit: NightCommit) -> tuple[list[_Place], dict[_Place, _FailureReason]]:
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
        for commit in self.data.night.commits:
            ran, failed = self._places(commit)
            for place, record in self._seen(commit):
                if place not in ran and place not in failed:
                    found.setdefault((commit.hash, why_lost(record)), {})[record.case] = None
        return tuple(f"{named(cases)} at {short(commit)} {why}" for (commit, why), cases in found.items())

    def _failure(
        self, pair: Pair, places: Sequence[_Place], verdict: FindingVerdict, told: _FailureReason | None
    ) -> Finding:
        grid, cases = places[0][0], list(dict.fromkeys(case for _, case in places))
        return self.data.finding(
            pair,
            grid,
            cases,
            verdict=verdict,
            split="failure",
            scope="method",
            size=None,
            unit="cases",
            sentence=failure_sentence(pair, cases, told, self.data.subject(pair.new)),
        )
