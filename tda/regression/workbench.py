"""Where builds are measured for a comparison or a bisection: what is asked, and processes whose units are kept."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tda.records import Machine, Record, label
from tda.regression import alternate
from tda.regression.alternate import Grid, Runner
from tda.regression.builds import Build, BuildFailedError, Builds
from tda.regression.floor import Floors
from tda.regression.repository import Repository
from tda.regression.units import History, Role, Stage, Unit
from tda.regression.wording import short

if TYPE_CHECKING:
    from tda.bench.plan import Plan

SPEED_DOCUMENTS = 2
"""Documents scored by a process whose times are wanted: quality is measured once, apart."""


class NotMeasuredError(Exception):
    """A commit that does not build, or whose processes fail; the text says why."""


@dataclass(frozen=True)
class Asked:
    """What is measured of a commit: keyword arguments of `tda.run_bench`."""

    options: Mapping[str, Any]

    @cached_property
    def plan(self) -> "Plan":
        """The matrix that they stand for; ValueError where one is wrong."""
        from tda.bench.plan import plan_of

        return plan_of(**self.options)

    @cached_property
    def machine(self) -> Machine:
        """The machine that measures it here and now."""
        from tda.device import machine

        return machine(self.plan.device)

    @cached_property
    def _digest(self) -> str:
        """Name of the options on this machine: units of others are never taken for theirs."""
        text = json.dumps([self.options, self.machine.fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def speed(self) -> Grid:
        """What runs in every block."""
        few = {"documents": SPEED_DOCUMENTS} if self.quality else {}
        return Grid(f"speed-{self._digest}", {**self.options, **few})

    @property
    def quality(self) -> Grid | None:
        """What runs once for a commit; None for models with random weights alone."""
        if not any(subject.quality for subject in self.plan.subjects):
            return None
        return Grid(f"quality-{self._digest}", {**self.options, "rounds": 1}, repeated=False)

    def narrowed(self, case: str) -> "Asked":
        """The same for one case alone, and the dense run that it is compared with.

        Raises
        ------
        ValueError
            If the case is not among what is asked.
        """
        cells = {
            label(self.plan.case(subject, built)): (subject, built)
            for subject in self.plan.subjects
            for built in self.plan.build()
        }
        if case not in cells:
            raise ValueError(f"no case {case!r} in what is measured; there are: {', '.join(cells)}")
        subject, built = cells[case]
        chosen: dict[str, Any] = {"method": [built.name]}
        if built.name != "dense":
            chosen["sparsity"] = [built.sparsity]
        if subject.layer_profile is None:  # else the model whose sparsity it imitates must run before it
            chosen |= {name: getattr(subject, name) for name in ("prompt_tokens", "new_tokens", "dtype")}
            chosen["model"] = [subject.model]
        return Asked({**self.options, **chosen})


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Where installed builds are measured.

    Attributes
    ----------
    out : Path
        Folder of the units: an interrupted measurement goes on with them.
    work : Path
        Folder for builds and children; safe to delete.
    timeout_s : float
        After this a process is ended.
    floors : Floors
        Told what every control shows.
    say : callable
        Told in a sentence what is going on.
    """

    out: Path
    work: Path
    timeout_s: float = 900.0
    floors: Floors = field(default_factory=Floors)
    say: Callable[[str], None] = print

    def run(self, name: str, builds: Sequence[Build], grid: Grid, blocks: int, stage: Stage = "first") -> list[Unit]:
        """Units of some builds in so many blocks; what an earlier run finished is not paid again, what failed is."""
        history = History(self.out)
        kept, problems = history.units(name)
        for problem in problems:
            self.say(f"{problem}; what it held is measured again")
        done = [unit for unit in kept if unit.status == "ok"]
        roles: list[tuple[Build, Role]] = [(one, "control" if one.copy == "control" else "commit") for one in builds]
        tasks = list(alternate.design(roles, grid, stage, blocks))
        runner = Runner(name, self.work / "children", self.timeout_s)
        return alternate.measure(tasks, runner, done, history.keep, self.say)

    def learn(self, source: str, units: Sequence[Unit], commit: str) -> None:
        """Keep what the processes of one commit differ by; a cache that cannot be written stops nothing."""
        try:
            self.floors.learn(source, units, commit)
        except OSError as error:
            self.say(f"the noise of this machine is not kept: {error}")


@dataclass(frozen=True, kw_only=True)
class CommitBench(Workbench):
    """Where commits of a repository are installed and measured."""

    repository: Repository

    def install(self, commit: str, copy: str = "commit") -> Build:
        """Install a commit; NotMeasuredError if it does not build."""
        try:
            return Builds(self.repository, self.work / "builds").install(commit, copy)
        except BuildFailedError as error:
            raise NotMeasuredError(f"{short(commit)} does not build: {error}") from None

    def against(self, old: str, new: str, asked: Asked, blocks: int) -> list[Unit]:
        """Units of two commits in the same blocks, with a control; their noise is learnt."""
        builds = [self.install(old, "control"), self.install(old), self.install(new)]
        name = f"{short(old)}-{short(new)}"
        units = self.run(name, builds, asked.speed, blocks)
        self.learn(f"{name}-{asked.speed.name}", units, old)
        for commit in (old, new):
            check_measured(units, commit)
        return units

    def text(self, commit: str, asked: Asked) -> list[Record]:
        """Quality records of a commit, measured once; empty where nothing has a quality."""
        if asked.quality is None:
            return []
        units = self.run("quality", [self.install(commit)], asked.quality, 1)
        check_measured(units, commit)
        return list(units[0].records)


def check_measured(units: Iterable[Unit], commit: str) -> None:
    """Raise NotMeasuredError if no process of a commit ended well."""
    own = [unit for unit in units if unit.commit == commit]
    if not any(unit.status == "ok" for unit in own):
        last = own[-1]
        raise NotMeasuredError(f"{short(commit)} cannot be measured: {last.status}: {last.reason}")
