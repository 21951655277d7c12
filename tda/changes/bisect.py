"""Which commit of a range changed something: measure the ends, then only the commits in between that decide.

A commit between the ends runs in the same blocks as both of them, and blocks are added until its interval lies on one
side of the middle between them. The commit that is found is measured once more against the one before it, in fresh
blocks, which give its size. Commits that do not build or run are passed over for their neighbours.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from tda.bench.planning import only
from tda.cases import Case
from tda.changes.compare import ComparisonRow, Judged
from tda.changes.detect import Pair
from tda.changes.probes import Probe, QualityProbe, SpeedProbe, distance
from tda.changes.quality import quality_moves
from tda.changes.workbench import CommitBench, NotMeasuredError, quality_grid, speed_grid
from tda.config import BenchConfig
from tda.history.findings import Split
from tda.history.repository import short

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bisected:
    """How it ended.

    Attributes
    ----------
    found : str or None
        The commit, where there is one.
    tried : tuple of (str, ComparisonRow)
        Measured commits in history order; the verdict is "good", "bad", "first bad", "undecided" or why it is skipped.
    message : str
        The result in a sentence.
    """

    found: str | None
    tried: tuple[tuple[str, ComparisonRow], ...]
    message: str


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
    """

    def __init__(self, line: Sequence[str], probe: Probe, subject: Callable[[str], str]) -> None:
        self.line = line
        self.probe = probe
        self.subject = subject
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
            row = ComparisonRow(self.probe.change.case, self.probe.change.split, verdict=f"skipped: {error}")
        logger.info(f"{short(commit)}: {row.verdict}")
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


def _size(row: ComparisonRow) -> str:
    """A change in words."""
    if row.ratio is not None and row.low is not None and row.high is not None:
        return f"{row.ratio - 1:+.1%} [{row.low - 1:+.1%}, {row.high - 1:+.1%}]"
    if row.nats is None:
        return row.verdict
    interval = f" [{row.low:+.3g}, {row.high:+.3g}]" if row.low is not None and row.high is not None else ""
    return f"{row.nats:+.3g} nats a token{interval}"


@dataclass(frozen=True)
class BisectTarget:
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


def bisect(bench: CommitBench, good: str, bad: str, config: BenchConfig, target: BisectTarget) -> Bisected:
    """Find the commit at which something changed.

    Parameters
    ----------
    bench : CommitBench
        Where commits are measured and units are kept.
    good, bad : str
        Full hashes of the ends.
    config : BenchConfig
        What is measured of the ends; of the commits between them only the case that is followed.
    target : BisectTarget
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
    follow = _follow_quality if target.split == "quality" else _follow_speed
    try:
        probe = follow(bench, good, bad, config, target)
    except AlikeError as error:
        return Bisected(None, (), f"{error} between {short(good)} and {short(bad)}.")
    return Bisect(line, probe, lambda commit: bench.repository.facts(commit).subject).run()


class AlikeError(Exception):
    """The ends do not differ in what is looked for; the text says in what."""


def _is_requested(case: Case, config: BenchConfig, split: str) -> bool:
    """Whether a case is of a method that was named, if any was: dense runs beside them all, and has their prefill."""
    return not config.methods or split == "prefill" or case.method in {spec.name for spec in config.methods}


def _follow_speed(bench: CommitBench, good: str, bad: str, config: BenchConfig, target: BisectTarget) -> Probe:
    """The plainest change of a time or of memory, one for the worse if there is any."""
    judged = Judged(bench.against(good, bad, config, target.blocks), Pair(bad, good), "")
    split = target.split
    followed = [key for key in judged.effects if key.split == split and _is_requested(key.case, config, split)]
    sure = [one.candidate for one in judged.sure if one.candidate.key in followed]
    if not sure:
        floors = sorted(floor for floor in map(judged.floor, followed) if floor is not None)
        beyond = f" beyond floors of {floors[0]:.1%} to {floors[-1]:.1%}" if floors else ""
        raise AlikeError(f"{split} does not differ{beyond}")
    chosen = max(sure, key=lambda one: (one.effect.log_ratio > 0, -one.effect.p, abs(one.effect.log_ratio)))
    key, noise = chosen.key, judged.noise[chosen.key]
    narrow = only(config, [key.case])
    key = key._replace(grid=speed_grid(narrow).name)
    return SpeedProbe(bench, good, bad, narrow, key, chosen.effect, noise, target.blocks, target.most)


def _follow_quality(bench: CommitBench, good: str, bad: str, config: BenchConfig, target: BisectTarget) -> Probe:
    """The text that moved most."""
    if quality_grid(config) is None:
        raise ValueError("quality needs a trained model, e.g. --model ref:swiglu; shapes have random weights")
    moves = quality_moves(*(bench.text(commit, config) for commit in (bad, good)))
    moves = [move for move in moves if _is_requested(move.case, config, target.split)]
    if not moves:
        raise AlikeError("quality does not differ")
    return QualityProbe(bench, good, bad, config, max(moves, key=distance))
