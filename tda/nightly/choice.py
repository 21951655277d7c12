"""Which commits a night measures."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tda.history.nights import CommitStatus, History, Night, NightCommit
from tda.history.repository import Repository
from tda.nightly.config import NightlyConfig

logger = logging.getLogger(__name__)

UNIT_SECONDS = 20.0
"""What a process is expected to take before any has ended on this history."""


@dataclass(frozen=True)
class CommitChoice:
    """Chooses the commits of a new night.

    Attributes
    ----------
    repository, history, config, newest, since
        As for `tda.nightly.night.NightRun`.
    """

    repository: Repository
    history: History
    config: NightlyConfig
    newest: str
    since: str | None

    def night(self) -> Night | None:
        """A night over what is new and as much of what was left out as fits; None where there is nothing."""
        nights = self.history.nights()[0]
        newest = self.repository.resolve(self.newest)
        since = None if self.since is None else self.repository.resolve(self.since)
        begun = any(night.measured for night in nights)
        if begun and since is not None:
            logger.warning("--since is for the first nightly run that measures: this history has begun already")
        if begun or (nights and since is None):
            baseline_commit, seen = nights[-1].baseline_commit, self._newest_seen(nights, newest)
        else:
            baseline_commit, seen = since or newest, None
        after = self.repository.between(seen or baseline_commit, newest)
        fresh = after if seen else [baseline_commit, *after]
        skipped = self._skipped(nights, newest)
        if not fresh and not skipped:
            return None
        chosen = self._within_cap(fresh, skipped)
        base = self._base(nights, chosen, newest)
        order = [commit for commit in self.repository.between(None, newest) if commit in {*fresh, *chosen, *base}]
        commits = tuple(self._listed(commit, measured=commit in {*chosen, *base}) for commit in order)
        return Night(
            id=datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S"),
            started=now(),
            baseline_commit=baseline_commit,
            commits=commits,
        )

    def _newest_seen(self, nights: Sequence[Night], newest: str) -> str | None:
        """The newest commit that an earlier night listed and that this history still has."""
        listed = [commit.hash for night in reversed(nights) for commit in reversed(night.commits)]
        return next((commit for commit in listed if self.repository.is_ancestor(commit, newest)), None)

    def _skipped(self, nights: Sequence[Night], newest: str) -> list[str]:
        """Commits that every earlier night left out, those in the range of an alarm first, then newest first."""
        status = {commit.hash: commit.status for night in nights for commit in night.commits}
        for night in nights:
            status |= {commit.hash: "measured" for commit in night.commits if commit.status != "skipped"}
        left = [commit for commit in self.repository.between(None, newest) if status.get(commit) == "skipped"]
        wide = {finding.commit for night in nights for finding in night.findings if finding.verdict == "alarm"}
        inside = [c for c in left if any(self.repository.is_ancestor(c, end) for end in wide)]
        return [*reversed(inside), *(commit for commit in reversed(left) if commit not in inside)]

    def _within_cap(self, fresh: Sequence[str], skipped: Sequence[str]) -> list[str]:
        """As many commits as the time cap allows: the newest, then evenly spaced ones, then skipped ones."""
        room = self._room()
        if len(fresh) <= room:
            return [*fresh, *skipped[: room - len(fresh)]]
        stride = (len(fresh) - 1) / max(room - 1, 1)
        places = {round(len(fresh) - 1 - number * stride) for number in range(room)}
        logger.info(f"{len(fresh)} new commits, time for {room}: the others are left for later nights")
        return [fresh[place] for place in sorted(places)]

    def _room(self) -> int:
        """Commits that fit under the cap beside control, baseline commit and base, with a fifth kept for confirming."""
        repeated = sum(grid.repeated for grid in self.config.grids)
        each = self._unit_seconds() * (repeated * self.config.blocks + len(self.config.grids) - repeated)
        return max(int(0.8 * 60 * self.config.cap_minutes / each) - 3, 1)

    def _unit_seconds(self) -> float:
        nights = self.history.nights()[0]
        units = self.history.units(nights[-1].id)[0] if nights else []
        return sum(unit.seconds for unit in units) / len(units) if units else UNIT_SECONDS

    def _base(self, nights: Sequence[Night], chosen: Sequence[str], newest: str) -> list[str]:
        """Commits measured before that the chosen ones are compared with: the one before each, and the one after."""
        known = {commit for night in nights for commit in night.measured}
        line = [one for one in self.repository.between(None, newest) if one in known or one in chosen]
        places = [line.index(commit) for commit in chosen]
        beside = {line[place] for at in places for place in (at - 1, at + 1) if 0 <= place < len(line)}
        return sorted(beside - set(chosen))

    def _listed(self, commit: str, *, measured: bool) -> NightCommit:
        facts = self.repository.facts(commit)
        status: CommitStatus = "measured" if measured else "skipped"
        reason = None if measured else "no time that night; a later one measures it"
        return NightCommit(hash=commit, date=facts.date, subject=facts.subject, status=status, reason=reason)


def now() -> str:
    """The time as records of nights hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
