"""One night: find the new commits, measure them, judge, and write down what was found.

Everything that is decided follows from the units and the night's account on disk, so a night that was killed goes on
where it stopped and ends as it would have ended.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tda.changes import alternate
from tda.changes.alternate import Grid, Runner, Task
from tda.changes.builds import Build, BuildFailedError, Builds
from tda.changes.floor import Floors
from tda.history.nights import CommitStatus, History, Night, NightCommit, Role, Unit
from tda.history.profiles import PROFILES_FOLDER, ProfileStore
from tda.history.repository import Repository
from tda.nightly.config import Extra, NightlyConfig
from tda.nightly.explain import explainable, options_of
from tda.nightly.judge import Judge
from tda.nightly.profiling import ProfileRequest, capture
from tda.process import alone
from tda.records import Machine

UNIT_SECONDS = 20.0
"""What a process is expected to take before any has ended on this history."""
PROFILE_SECONDS = 30.0
"""What a process is expected to take that profiles one case beside dense."""


@dataclass
class NightRun:
    """A night being run.

    Attributes
    ----------
    repository : Repository
        Whose commits are measured.
    history : History
        Where units and accounts are kept.
    config : NightlyConfig
        What is measured.
    work : Path
        Folder for builds and children; safe to delete between nights.
    newest : str
        Commit up to which to measure.
    since : str or None
        On a first night: the commit to begin with, which becomes the anchor; else only the newest is measured.
    say : callable
        Told in a sentence what is going on.
    """

    repository: Repository
    history: History
    config: NightlyConfig
    work: Path
    newest: str = "HEAD"
    since: str | None = None
    say: Callable[[str], None] = print
    _deadline: float = field(init=False, default=0.0)

    def run(self) -> Night | None:
        """Measure and judge; None where there is nothing new."""
        with alone(self.history.folder), alone(self.work):
            self._deadline = time.monotonic() + 60 * self.config.cap_minutes
            night = self._unfinished() or self._new()
            if night is None:
                return None
            self.say(f"nightly run {night.id}: {len(night.commits)} commits, baseline commit {night.anchor[:10]}")
            night = self._measured(night)
            self.history.write(night)
            self._explain(night)
            self._extras(night)
            night = night.model_copy(update={"finished": _now()})
            self.history.write(night)
            self.history.thin(self.config.keep_nights)
            alternate.clear(self._children(night))
            return night

    # Which commits.

    def _unfinished(self) -> Night | None:
        nights = self.history.nights()[0]
        return next((night for night in reversed(nights) if night.finished is None), None)

    def _new(self) -> Night | None:
        nights = self.history.nights()[0]
        newest = self.repository.resolve(self.newest)
        if nights:
            anchor, seen = nights[-1].anchor, self._newest_seen(nights, newest)
        else:
            anchor, seen = self.repository.resolve(self.since or self.newest), None
        after = self.repository.between(seen or anchor, newest)
        fresh = after if seen else [anchor, *after]
        skipped = self._skipped(nights, newest)
        if not fresh and not skipped:
            return None
        chosen = self._within_cap(fresh, skipped)
        base = self._base(nights, chosen, newest)
        order = [commit for commit in self.repository.between(None, newest) if commit in {*fresh, *chosen, *base}]
        commits = tuple(self._listed(commit, measured=commit in {*chosen, *base}) for commit in order)
        night = Night(id=datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S"), started=_now(), anchor=anchor, commits=commits)
        self.history.write(night)
        return night

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
        self.say(f"{len(fresh)} new commits, time for {room}: the others are left for later nights")
        return [fresh[place] for place in sorted(places)]

    def _room(self) -> int:
        """Commits that fit under the cap beside control, anchor and base, with a fifth kept for confirming."""
        repeated = sum(grid.repeated for grid in self.config.grids)
        each = self._unit_seconds() * (repeated * self.config.blocks + len(self.config.grids) - repeated)
        return max(int(0.8 * 60 * self.config.cap_minutes / each) - 3, 1)

    def _unit_seconds(self) -> float:
        nights = self.history.nights()[0]
        units = self.history.units(nights[-1].id)[0] if nights else []
        return sum(unit.seconds for unit in units) / len(units) if units else UNIT_SECONDS

    def _base(self, nights: Sequence[Night], chosen: Sequence[str], newest: str) -> list[str]:
        """Commits measured before that the chosen ones are compared with: the one before each, and the one after."""
        known = {commit.hash for night in nights for commit in night.commits if commit.status == "measured"}
        line = [one for one in self.repository.between(None, newest) if one in known or one in chosen]
        places = [line.index(commit) for commit in chosen]
        beside = {line[place] for at in places for place in (at - 1, at + 1) if 0 <= place < len(line)}
        return sorted(beside - set(chosen))

    def _listed(self, commit: str, *, measured: bool) -> NightCommit:
        facts = self.repository.facts(commit)
        status: CommitStatus = "measured" if measured else "skipped"
        reason = None if measured else "no time that night; a later one measures it"
        return NightCommit(hash=commit, date=facts.date, subject=facts.subject, status=status, reason=reason)

    # Measuring.

    def _measured(self, night: Night) -> Night:
        builds, night = self._build(night)
        runner = Runner(night.id, self._children(night), timeout_s=self.config.unit_timeout_s)
        night = self._anchored(night, builds)
        if not any(commit.status == "measured" for commit in night.commits):
            return night
        control, anchor = builds.install(night.anchor, "control"), builds.install(night.anchor)
        order = [commit.hash for commit in night.commits if commit.status == "measured"]
        design: list[tuple[Build, Role]] = [(control, "control"), (anchor, "commit")]
        design += [(builds.install(commit), "commit") for commit in order if commit != night.anchor]
        tasks: list[Task] = []
        grids = sorted(self._grids(), key=lambda grid: grid.repeated)  # quality is cheap, and exact at once
        for grid in grids:
            who = design if grid.repeated else [entry for entry in design if entry[1] == "commit"]
            tasks += alternate.design(who, grid, "first", self.config.blocks)
        self._measure(runner, night, tasks)
        self._learn(night)
        night = self._statuses(night)
        night = night.model_copy(update={"machine": self._machine(night)})
        self.history.write(night)
        judge = Judge(self.history, night, self.config, self.repository)
        wanted = judge.to_confirm()
        if wanted:
            self.say(f"candidates at {', '.join(commit[:10] for commit in wanted)}: measuring again")
            again: list[tuple[Build, Role]] = [(builds.install(commit), "commit") for commit in wanted]
            fresh: list[Task] = []
            for grid in grids:
                if grid.repeated:
                    fresh += alternate.design(again, grid, "confirm", self.config.confirm_blocks)
            self._measure(runner, night, fresh)
        notes = (*night.notes, *judge.unmeasured())
        return night.model_copy(update={"findings": judge.findings(), "seen": judge.seen(), "notes": notes})

    def _build(self, night: Night) -> tuple[Builds, Night]:
        builds = Builds(self.repository, self.work / "builds")
        commits = []
        for commit in night.commits:
            if commit.status == "measured":
                try:
                    builds.install(commit.hash)
                except BuildFailedError as error:
                    self.say(f"{commit.hash[:10]} does not build: {error}")
                    commit = commit.model_copy(update={"status": "build failed", "reason": str(error)})
            commits.append(commit)
        return builds, night.model_copy(update={"commits": tuple(commits)})

    def _anchored(self, night: Night, builds: Builds) -> Night:
        """The night with an anchor that builds: where its own no longer does, the oldest commit that it measures."""
        try:
            builds.install(night.anchor)
        except BuildFailedError as error:
            told = f"the baseline commit {night.anchor[:10]} no longer builds ({error})"
        else:
            return night
        measured = [commit.hash for commit in night.commits if commit.status == "measured"]
        if measured:
            told += f"; {measured[0][:10]} takes its place, and slow changes are looked for from it on"
        self.say(told)
        update = {"anchor": measured[0] if measured else night.anchor, "notes": (*night.notes, told)}
        night = night.model_copy(update=update)
        self.history.write(night)
        return night

    def _measure(self, runner: Runner, night: Night, tasks: Sequence[Task]) -> None:
        alternate.measure(tasks, runner, self.history.units(night.id)[0], self.history.keep, self.say)

    def _learn(self, night: Night) -> None:
        """Let comparisons of folders know what processes of one build differ by on this machine."""
        try:
            Floors().learn(night.id, self.history.units(night.id)[0], night.anchor)
        except OSError as error:
            self.say(f"the noise of this machine is not kept: {error}")

    def _statuses(self, night: Night) -> Night:
        """What became of each commit, and which measured one it is compared with."""
        units = self.history.units(night.id)[0]
        commits, before = [], None
        for commit in night.commits:
            commits.append(_after(commit, units).model_copy(update={"parent": before}))
            if commits[-1].status == "measured":
                before = commit.hash
        return night.model_copy(update={"commits": tuple(commits)})

    def _machine(self, night: Night) -> Machine | None:
        records = (record for unit in self.history.units(night.id)[0] for record in unit.records)
        return next((record.machine for record in records), None)

    def _grids(self) -> list[Grid]:
        return [Grid(grid.name, grid.options, grid.repeated) for grid in self.config.grids]

    def _children(self, night: Night) -> Path:
        return self.work / f"night-{night.id}"

    # What is measured beside it, when there is time.

    def _explain(self, night: Night) -> None:
        """Profile both commits of each alarm of time or memory, in turn, until the cap."""
        if not self.config.alarm_processes or night.machine is None:
            return
        store, builds = (
            ProfileStore(self.history.folder / PROFILES_FOLDER),
            Builds(self.repository, self.work / "builds"),
        )
        for finding in filter(explainable, night.findings):
            if time.monotonic() + 2 * self.config.alarm_processes * PROFILE_SECONDS > self._deadline:
                self.say(f"no time left to profile what changed at {finding.commit[:10]}")
                continue
            self.say(f"profiling {finding.cases[0]} at {finding.good[:10]} and {finding.commit[:10]}")
            question = ProfileRequest(
                "alarm", options_of(finding), self.config.alarm_processes, self.config.unit_timeout_s
            )
            pair = [builds.install(commit) for commit in (finding.good, finding.commit)]
            capture(store, question, pair, night.machine.fingerprint, self.say)

    def _extras(self, night: Night) -> None:
        """Run the extra commands, newest commit first, until the cap; one that fails is named and not tried again."""
        builds = Builds(self.repository, self.work / "builds")
        for listed in reversed([commit for commit in night.commits if commit.status == "measured"]):
            for extra in self.config.extras:
                names = {
                    "python": sys.executable,
                    "commit": listed.hash,
                    "parent": listed.parent or listed.hash,
                    "site": str(builds.install(listed.hash).site.resolve()),
                    "history": str(self.history.folder.resolve()),
                }
                if not self._ran(extra, names):
                    self._extra(extra, names)

    def _ran(self, extra: Extra, names: Mapping[str, str]) -> bool:
        pattern = Path(extra.produces.format(**names))
        return any(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))

    def _extra(self, extra: Extra, names: Mapping[str, str]) -> None:
        commit = names["commit"][:10]
        if time.monotonic() + 60 * extra.minutes > self._deadline:
            self.say(f"no time left for {extra.name} of {commit}; a later night runs it")
            return
        self.say(f"{extra.name} of {commit}")
        produced = Path(extra.produces.format(**names))
        if "*" not in str(produced.parent):
            produced.parent.mkdir(parents=True, exist_ok=True)
        command = [word.format(**names) for word in extra.command]
        done = subprocess.run(command, cwd=self.repository.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if done.returncode:
            self.say(f"{extra.name} of {commit} ended with exit code {done.returncode}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _after(commit: NightCommit, units: Sequence[Unit]) -> NightCommit:
    """A commit's status once its units are in: it is measured if one of them is good."""
    own = [unit for unit in units if unit.commit == commit.hash and unit.role == "commit"]
    if commit.status != "measured" or any(unit.status == "ok" for unit in own):
        return commit
    last = own[-1].reason if own else "nothing ran"
    return commit.model_copy(update={"status": "crashed", "reason": last})
