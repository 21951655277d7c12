"""A scratch repository whose commits cost what a test says, measured without a process: quick, noisy, repeatable."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tda.bench.planning import plan_of
from tda.cases import Case
from tda.changes.alternate import Runner, Task
from tda.changes.builds import BuildFailedError, Builds
from tda.history.nights import Unit
from tda.records import FAILURES, Failure, FailureKind, Record
from tests import nights


@dataclass(frozen=True)
class Cost:
    """What a commit costs, beside what `nights.record` says.

    `factors` are by "METHOD MEASUREMENT", where METHOD may be "*"; `nats` and `digests` by method. `fails` names the
    methods whose case fails, `failure` how; a commit that is `broken` does not build, and one with a `crash` ends its
    processes so.
    """

    factors: Mapping[str, float] = field(default_factory=dict)
    nats: Mapping[str, float] = field(default_factory=dict)
    digests: Mapping[str, float] = field(default_factory=dict)
    fails: tuple[str, ...] = ()
    failure: FailureKind | None = None
    broken: str | None = None
    crash: str | None = None


class World:
    """Commits and their costs; installs and runs them in place of `Builds` and `Runner`.

    `ran` are the tasks in order, `paid` the name of each one's file of units and its place; Ctrl-C comes after
    `stop_after` tasks.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, noise: float = 0.004) -> None:
        self.folder = folder
        self.repository = nights.FakeRepository(folder / "repository")
        self.noise = noise
        self.costs: dict[str, Cost] = {}
        self.ran: list[Task] = []
        self.paid: list[tuple[str, str, str, str, str, int]] = []
        self.stop_after: int | None = None
        patch.setattr(Builds, "build", lambda builds, commit, folder: self.build(commit, folder))
        patch.setattr(Runner, "run", lambda runner, task: self.run(runner, task))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(self.repository.folder)

    def commit(self, cost: Cost | None = None, subject: str = "Change") -> str:
        """Commit something that costs this; without a cost, what the commit before it does."""
        made = self.repository.commit(subject, files={"count": str(len(self.costs))})
        self.costs[made] = cost or next(reversed(self.costs.values()), Cost())
        return made

    def _number(self, commit: str) -> str:
        """A commit by its place, so that equal histories made twice have equal noise."""
        places = (str(place) for place, made in enumerate(self.costs) if made.startswith(commit))
        return next(places, commit)

    def build(self, commit: str, folder: Path) -> None:
        reason = self.costs[commit].broken
        if reason is not None:
            raise BuildFailedError(reason)
        (folder / "site" / "tda").mkdir(parents=True)

    def run(self, runner: Runner, task: Task) -> Unit:
        if self.stop_after is not None and len(self.ran) >= self.stop_after:
            raise KeyboardInterrupt
        self.ran.append(task)
        self.paid.append((runner.night, *task.place))
        cost = self.costs.get(task.build.commit, Cost())
        place = [self._number(word) for word in (*runner.night.split("-"), task.build.commit)]
        kind = task.grid.name.partition("-")[0]  # behind it stands a digest of options and machine
        draw = random.Random(f"{place} {task.role} {kind} {task.stage} {task.block}")
        unit = nights.unit(
            task.build.commit,
            self._records(cost, task, draw),
            night=runner.night,
            role=task.role,
            grid=task.grid.name,
            stage=task.stage,
            block=task.block,
            order=task.order,
        )
        if cost.crash is None:
            return unit
        return unit.model_copy(update={"status": "crash", "reason": cost.crash, "records": ()})

    def _records(self, cost: Cost, task: Task, draw: random.Random) -> list[Record]:
        return [self._record(cost, case, draw) for case in plan_of(task.grid.options).cases()]

    def _record(self, cost: Cost, case: Case, draw: random.Random) -> Record:
        method = case.method

        def level(name: str, noise: float) -> float:
            factor = cost.factors.get(f"{method} {name}", 1.0) * cost.factors.get(f"* {name}", 1.0)
            return nights.LEVELS[name] * factor * (1 + noise * draw.gauss(0, 1))

        levels = {name: level(name, 0.0 if "memory" in name else self.noise) for name in nights.LEVELS}
        if case.model.startswith("ref:"):
            levels["nll"] = 3.0 + cost.nats.get(method, 0.0)
            if method in ("griffin", "tda"):
                levels["digest"] = cost.digests.get(method, 1.0)
        made = nights.record(case, **levels)
        if method in cost.fails:
            status = "error" if cost.failure is None else FAILURES[cost.failure].status
            told = None if cost.failure is None else Failure(kind=cost.failure)
            return made.model_copy(update={"status": status, "reason": "planted", "failure": told, "measurements": {}})
        return made


def factors(**changed: float) -> Cost:
    """A cost from "METHOD_MEASUREMENT" words: ``factors(griffin_decode_ms=1.1)``; "all" stands for every method."""
    named = {"*" + name[3:] if name.startswith("all_") else name: value for name, value in changed.items()}
    return Cost({name.replace("_", " ", 1): value for name, value in named.items()})
