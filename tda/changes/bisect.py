"""Which commit of a range changed something: measure the ends, then only the commits in between that decide.

A commit between the ends runs in the same blocks as both of them, and blocks are added until its interval lies on one
side of the middle between them. The commit that is found is measured once more against the one before it, in fresh
blocks, which give its size. Commits that do not build or run are passed over for their neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from tda.bench.planning import only
from tda.cases import Case
from tda.changes import detect
from tda.changes.alternate import GIVE_UP
from tda.changes.compare import Judged, Row, quality_row
from tda.changes.detect import FAMILY, Pair
from tda.changes.effects import MIN_BLOCKS, Effect, Prior, Values, effect
from tda.changes.messages import WHAT
from tda.changes.quality import QualityMove, quality_moves
from tda.changes.series import Blocks, Key
from tda.changes.workbench import CommitBench, NotMeasuredError, check_measured, quality_grid, speed_grid
from tda.config import BenchConfig
from tda.history.findings import Split
from tda.history.nights import Unit
from tda.history.repository import short

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
    def change(self) -> Row:
        """What BAD differs from GOOD by."""
        ...

    def place(self, commit: str) -> Row:
        """Whose side a commit is on, as its verdict, and what it differs from GOOD by.

        Raises NotMeasuredError if the commit does not build or run.
        """
        ...

    def step(self, before: str, found: str) -> Row | None:
        """What two neighbours differ by, in fresh blocks; None if these do not show it."""
        ...


@dataclass(frozen=True)
class Bisected:
    """How it ended.

    Attributes
    ----------
    found : str or None
        The commit, where there is one.
    tried : tuple of (str, Row)
        Measured commits in history order; the verdict is "good", "bad", "first bad", "undecided" or why it is skipped.
    told : str
        The result in a sentence.
    """

    found: str | None
    tried: tuple[tuple[str, Row], ...]
    told: str


class Bisect:
    """A search over a line of commits.

    Parameters
    ----------
    line : sequence of str
        From GOOD to BAD, both included.
    probe : Probe
        What is followed.
    subject : callable
        First line of a commit's message.
    say : callable
        Told in a sentence what is going on.
    """

    def __init__(
        self, line: Sequence[str], probe: Probe, subject: Callable[[str], str], say: Callable[[str], None]
    ) -> None:
        self.line = line
        self.probe = probe
        self.subject = subject
        self.say = say
        self._tried = {line[-1]: replace(probe.change, verdict="bad")}

    def run(self) -> Bisected:
        """Narrow the range until one commit is left, or nothing more can be said."""
        good, bad = 0, len(self.line) - 1
        while (middle := self._middle(good, bad)) is not None:
            side = self._side(self.line[middle])
            if side == "undecided":
                return self._ended(f"undecided at {short(self.line[middle])}: between {self._range(good, bad)}")
            if side == "good":
                good = middle
            elif side == "bad":
                bad = middle
        if bad - good > 1:
            return self._ended(f"only skipped commits are left: between {self._range(good, bad)}")
        return self._confirmed(good, bad)

    def _range(self, good: int, bad: int) -> str:
        return f"{short(self.line[good])} (good) and {short(self.line[bad])} (bad)"

    def _middle(self, good: int, bad: int) -> int | None:
        """The commit nearest to the middle that was not passed over."""
        left = [place for place in range(good + 1, bad) if self.line[place] not in self._tried]
        return min(left, key=lambda place: abs(2 * place - good - bad), default=None)

    def _side(self, commit: str) -> str:
        try:
            row = self.probe.place(commit)
        except NotMeasuredError as error:
            row = Row(self.probe.change.case, self.probe.change.split, verdict=f"skipped: {error}")
        self.say(f"{short(commit)}: {row.verdict}")
        self._tried[commit] = row
        return row.verdict

    def _confirmed(self, good: int, bad: int) -> Bisected:
        before, found = self.line[good], self.line[bad]
        step = self.probe.step(before, found)
        if step is None:
            return self._ended(f"fresh blocks do not show a step: between {self._range(good, bad)}")
        self._tried[found] = replace(step, verdict="first bad")
        told = (
            f"{_size(step)} at {short(found)} ({self.subject(found)}); over the whole range {_size(self.probe.change)}"
        )
        return self._ended(told, found)

    def _ended(self, told: str, found: str | None = None) -> Bisected:
        order = {commit: place for place, commit in enumerate(self.line)}
        tried = sorted(self._tried.items(), key=lambda entry: order[entry[0]])
        return Bisected(found, tuple(tried), f"{self.probe.what}: {told}.")


def _size(row: Row) -> str:
    """A change in words."""
    if row.ratio is not None and row.low is not None and row.high is not None:
        return f"{row.ratio - 1:+.1%} [{row.low - 1:+.1%}, {row.high - 1:+.1%}]"
    if row.nats is None:
        return row.verdict
    interval = f" [{row.low:+.3g}, {row.high:+.3g}]" if row.low is not None and row.high is not None else ""
    return f"{row.nats:+.3g} nats a token{interval}"


# Times and memory.


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
    def change(self) -> Row:
        """As `Probe.change`."""
        return self._row(self.effect, "bad")

    def place(self, commit: str) -> Row:
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

    def _placed(self, blocks: Blocks, commit: str) -> Row:
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

    def step(self, before: str, found: str) -> Row | None:
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
    def _undecided(self) -> Row:
        return Row(self.key.case, self.key.split, verdict="undecided")

    def _row(self, change: Effect, verdict: str) -> Row:
        low, high = change.bounds()
        return Row(self.key.case, self.key.split, ratio=1 + change.size, low=1 + low, high=1 + high, verdict=verdict)


def _complete(units: Sequence[Unit], commits: Sequence[str]) -> Blocks:
    """Series of the blocks in which every commit ran well: only these pair all of them."""
    good = {(unit.block, unit.commit) for unit in units if unit.status == "ok"}
    return Blocks(unit for unit in units if all((unit.block, commit) in good for commit in commits))


# Quality.


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
    def change(self) -> Row:
        """As `Probe.change`."""
        return quality_row(self.move)

    def place(self, commit: str) -> Row:
        """As `Probe.place`: the end that it is as, or nearer to."""
        scored = [one.case for one in self.bench.text(commit, self.config) if one.samples("nll_nats")]
        if self.move.case not in scored:
            raise NotMeasuredError(f"{short(commit)} gives no quality of {self.move.case}")
        to_good, to_bad = (self._move(commit, end) for end in (self.good, self.bad))
        near, far = _distance(to_good), _distance(to_bad)
        side: Side = "undecided" if near == far else "good" if near < far else "bad"
        row = quality_row(to_good) if to_good is not None else Row(self.move.case, "quality", nats=0.0)
        return replace(row, verdict=side)

    def step(self, before: str, found: str) -> Row | None:
        """As `Probe.step`; what repeats exactly needs no fresh blocks."""
        move = self._move(found, before)
        return quality_row(move) if move is not None else None

    def _move(self, new: str, old: str) -> QualityMove | None:
        moves = quality_moves(*(self.bench.text(commit, self.config) for commit in (new, old)))
        return next((move for move in moves if move.case == self.move.case), None)


def _distance(move: QualityMove | None) -> tuple[float, int]:
    """How far a text is from another: by its likelihood, then by its kept sets."""
    if move is None:
        return 0.0, 0
    return abs(move.nll.value) if move.nll is not None else 0.0, move.sets


# The search.


@dataclass(frozen=True)
class Wanted:
    """What is looked for.

    Attributes
    ----------
    split : str
        What changed.
    blocks, most : int
        Processes of either end, and of a commit between them at most.
    """

    split: str
    blocks: int = 8
    most: int = 24

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}; got {self.split!r}")


def bisect(bench: CommitBench, good: str, bad: str, config: BenchConfig, wanted: Wanted) -> Bisected:
    """Find the commit at which something changed.

    Parameters
    ----------
    bench : CommitBench
        Where commits are measured and units are kept.
    good, bad : str
        Full hashes of the ends.
    config : BenchConfig
        What is measured of the ends; of the commits between them only the case that is followed.
    wanted : Wanted
        What is looked for.

    Raises
    ------
    ValueError
        If GOOD is no ancestor of BAD, or an option is wrong.
    NotMeasuredError
        If one of the ends does not build or run.
    """
    line = [good, *bench.repository.between(good, bad)]
    if len(line) < 2:
        raise ValueError(f"{short(good)} and {short(bad)} are one commit")
    follow = _follow_quality if wanted.split == "quality" else _follow_speed
    try:
        probe = follow(bench, good, bad, config, wanted)
    except AlikeError as error:
        return Bisected(None, (), f"{error} between {short(good)} and {short(bad)}.")
    return Bisect(line, probe, lambda commit: bench.repository.facts(commit).subject, bench.say).run()


class AlikeError(Exception):
    """The ends do not differ in what is looked for; the text says in what."""


def _is_asked(case: Case, config: BenchConfig, split: str) -> bool:
    """Whether a case is of a method that was named, if any was: dense runs beside them all, and has their prefill."""
    return not config.methods or split == "prefill" or case.method in {spec.name for spec in config.methods}


def _follow_speed(bench: CommitBench, good: str, bad: str, config: BenchConfig, wanted: Wanted) -> Probe:
    """The plainest change of a time or of memory, one for the worse if there is any."""
    judged = Judged(bench.against(good, bad, config, wanted.blocks), Pair(bad, good), "")
    split = wanted.split
    followed = [key for key in judged.effects if key.split == split and _is_asked(key.case, config, split)]
    sure = [one.suspect for one in judged.sure if one.suspect.key in followed]
    if not sure:
        floors = sorted(floor for floor in map(judged.floor, followed) if floor is not None)
        beyond = f" beyond floors of {floors[0]:.1%} to {floors[-1]:.1%}" if floors else ""
        raise AlikeError(f"{split} does not differ{beyond}")
    chosen = max(sure, key=lambda one: (one.effect.log_ratio > 0, -one.effect.p, abs(one.effect.log_ratio)))
    key, noise = chosen.key, judged.noise[chosen.key]
    narrow = only(config, [key.case])
    key = key._replace(grid=speed_grid(narrow).name)
    return SpeedProbe(bench, good, bad, narrow, key, chosen.effect, noise, wanted.blocks, wanted.most)


def _follow_quality(bench: CommitBench, good: str, bad: str, config: BenchConfig, wanted: Wanted) -> Probe:
    """The text that moved most."""
    if quality_grid(config) is None:
        raise ValueError("quality needs a trained model, e.g. --model ref:swiglu; shapes have random weights")
    moves = quality_moves(*(bench.text(commit, config) for commit in (bad, good)))
    moves = [move for move in moves if _is_asked(move.case, config, wanted.split)]
    if not moves:
        raise AlikeError("quality does not differ")
    return QualityProbe(bench, good, bad, config, max(moves, key=_distance))
