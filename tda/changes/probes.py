"""What follows one series of one case through a range of commits, and says whose side a commit is on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from tda.changes import detect
from tda.changes.alternate import GIVE_UP
from tda.changes.compare import ComparisonRow, quality_row
from tda.changes.detect import FAMILY, Pair
from tda.changes.effects import MIN_BLOCKS, Effect, Prior, effect
from tda.changes.messages import WHAT
from tda.changes.quality import QualityMove, quality_moves
from tda.changes.series import Blocks, Key
from tda.changes.workbench import CommitBench, NotMeasuredError, check_measured, speed_grid
from tda.config import BenchConfig
from tda.history.nights import Unit
from tda.history.repository import short
from tda.statistics import Values

LEVEL = 0.99
"""Level of the interval that must not hold the middle."""
CONTRAST = 0.75
"""Variance of a commit against the mean of both ends, over that of one commit against another."""
Side = Literal["good", "bad", "undecided"]


class Probe(Protocol):
    """Follows one series of one case through a range."""

    @property
    def what(self) -> str:
        """The series, in words."""
        ...

    @property
    def change(self) -> ComparisonRow:
        """What BAD differs from GOOD by."""
        ...

    def place(self, commit: str) -> ComparisonRow:
        """Whose side a commit is on, as its verdict, and what it differs from GOOD by.

        Raises NotMeasuredError if the commit does not build or run.
        """
        ...

    def step(self, before: str, found: str) -> ComparisonRow | None:
        """What two neighbours differ by, in fresh blocks; None if these do not show it."""
        ...


@dataclass(frozen=True)
class SpeedProbe:
    """Follows a time or a peak of memory.

    Attributes
    ----------
    bench : CommitBench
        Where commits are measured.
    good, bad : str
        The ends.
    config : BenchConfig
        What is measured: the case that is followed, and dense.
    key : Key
        The series.
    effect : Effect
        What BAD differs from GOOD by.
    noise : Prior
        Between-process noise of the series.
    blocks, most : int
        Processes of the commit that is found, and of one that is placed at most.
    """

    bench: CommitBench
    good: str
    bad: str
    config: BenchConfig
    key: Key
    effect: Effect
    noise: Prior
    blocks: int
    most: int

    @property
    def what(self) -> str:
        """As `Probe.what`."""
        return f"{WHAT[self.key.split]} of {self.key.case}{' relative to dense' if self.key.relative else ''}"

    @property
    def change(self) -> ComparisonRow:
        """As `Probe.change`."""
        return self._row(self.effect, "bad")

    def place(self, commit: str) -> ComparisonRow:
        """As `Probe.place`; blocks are added until it is decided."""
        commits = (self.good, commit, self.bad)
        builds = [self.bench.install(name) for name in commits]
        row = self._undecided
        for blocks in range(GIVE_UP, self.most + 1):
            units = self.bench.run("-".join(map(short, commits)), builds, speed_grid(self.config), blocks)
            self._check(units, commit)
            row = self._placed(_complete(units, commits), commit)
            if row.verdict != "undecided":
                break
        return row

    def _check(self, units: Sequence[Unit], commit: str) -> None:
        check_measured(units, commit)
        if not Blocks(units).of(self.key).get((commit, "commit")):
            raise NotMeasuredError(f"{short(commit)} gives no {self.key.split} of {self.key.case}")

    def _placed(self, blocks: Blocks, commit: str) -> ComparisonRow:
        to_good, to_bad = (detect.differences(blocks, self.key, Pair(commit, end)) for end in (self.good, self.bad))
        if min(len(to_good), len(to_bad)) < MIN_BLOCKS:
            return self._undecided
        return self._row(effect(to_good, self.noise), self._side((to_good + to_bad) / 2))

    def _side(self, from_middle: Values) -> Side:
        noise = Prior(CONTRAST * self.noise.variance, self.noise.dof)
        low, high = effect(from_middle, noise).bounds(LEVEL)
        if low <= 0 <= high:
            return "undecided"
        return "bad" if (low > 0) == (self.effect.log_ratio > 0) else "good"

    def step(self, before: str, found: str) -> ComparisonRow | None:
        """As `Probe.step`."""
        builds = [self.bench.install(name) for name in (before, found)]
        name = f"{short(before)}-{short(found)}"
        units = self.bench.run(name, builds, speed_grid(self.config), self.blocks, stage="confirm")
        values = detect.differences(Blocks(units, "confirm"), self.key, Pair(found, before))
        if len(values) < MIN_BLOCKS:
            return None
        change = effect(values, self.noise)
        holds = change.p <= FAMILY and change.log_ratio * self.effect.log_ratio > 0
        return self._row(change, "first bad") if holds else None

    @property
    def _undecided(self) -> ComparisonRow:
        return ComparisonRow(self.key.case, self.key.split, verdict="undecided")

    def _row(self, change: Effect, verdict: str) -> ComparisonRow:
        low, high = change.bounds()
        return ComparisonRow(
            self.key.case, self.key.split, ratio=1 + change.size, low=1 + low, high=1 + high, verdict=verdict
        )


def _complete(units: Sequence[Unit], commits: Sequence[str]) -> Blocks:
    """Series of the blocks in which every commit ran well: only these pair all of them."""
    good = {(unit.block, unit.commit) for unit in units if unit.status == "ok"}
    return Blocks(unit for unit in units if all((unit.block, commit) in good for commit in commits))


@dataclass(frozen=True)
class QualityProbe:
    """Follows the text of one case, which repeats exactly: once for each commit is enough.

    Attributes
    ----------
    bench, good, bad, config
        As for `SpeedProbe`.
    move : QualityMove
        What BAD differs from GOOD by.
    """

    bench: CommitBench
    good: str
    bad: str
    config: BenchConfig
    move: QualityMove

    @property
    def what(self) -> str:
        """As `Probe.what`."""
        return f"Quality of {self.move.case}"

    @property
    def change(self) -> ComparisonRow:
        """As `Probe.change`."""
        return quality_row(self.move)

    def place(self, commit: str) -> ComparisonRow:
        """As `Probe.place`: the end that it is as, or nearer to."""
        scored = [one.case for one in self.bench.text(commit, self.config) if one.samples("nll_nats")]
        if self.move.case not in scored:
            raise NotMeasuredError(f"{short(commit)} gives no quality of {self.move.case}")
        to_good, to_bad = (self._move(commit, end) for end in (self.good, self.bad))
        near, far = distance(to_good), distance(to_bad)
        side: Side = "undecided" if near == far else "good" if near < far else "bad"
        row = quality_row(to_good) if to_good is not None else ComparisonRow(self.move.case, "quality", nats=0.0)
        return replace(row, verdict=side)

    def step(self, before: str, found: str) -> ComparisonRow | None:
        """As `Probe.step`; what repeats exactly needs no fresh blocks."""
        move = self._move(found, before)
        return quality_row(move) if move is not None else None

    def _move(self, new: str, old: str) -> QualityMove | None:
        moves = quality_moves(*(self.bench.text(commit, self.config) for commit in (new, old)))
        return next((move for move in moves if move.case == self.move.case), None)


def distance(move: QualityMove | None) -> tuple[float, int]:
    """How far a text is from another: by its likelihood, then by its kept sets."""
    if move is None:
        return 0.0, 0
    return abs(move.nll.value) if move.nll is not None else 0.0, move.sets
