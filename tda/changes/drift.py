"""Changes that no single step shows: slow drift, and steps below what one night resolves.

Each commit's level is its change against the baseline, which ran in the same blocks. Levels of one machine form a
series over commits, cut at the steps that are plain. Within such a stretch nothing should move. A change-point search
(squared cost with a penalty, Killick et al. 2012, from the ruptures library) proposes that something does; the better
of a step and a ramp says what, fitted by generalised least squares, since the baseline's own noise is common to all
levels of a night and would look like a step between nights. What passes is a candidate like any other: fresh blocks
decide. `benchmarks/records/changepoints.csv` is the trial that chose library, cost and penalty.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import ruptures
from numpy.typing import NDArray

from tda.changes.detect import Candidate, Pair, Rules, differences
from tda.changes.effects import MIN_BLOCKS, Effect, Prior, effect, resolution
from tda.changes.series import Blocks, Key
from tda.statistics import Values

SHORTEST = 3
"""Commits that a stretch must have."""
LONGEST = 120
"""Commits that are looked back at."""
PLAIN = 1e-5
"""A candidate with a smaller p-value is plain: the search does not go across it."""


@dataclass(frozen=True)
class BaselineChange:
    """Change of a commit against the baseline commit: log ratio, and the number of the night that measured it."""

    value: float
    night: int


@dataclass(frozen=True)
class Fit:
    """A shape of a stretch: `start` is the last commit at the old level, `stop` the first at the new one."""

    start: int
    stop: int

    @property
    def is_ramp(self) -> bool:
        """Whether it takes more than one commit."""
        return self.stop - self.start > 1


def penalty(commits: int) -> float:
    """Gain in squared error that 1% of still series of unit noise reach, for 4 to 200 commits."""
    return 9.0 + float(np.log(commits))


def change_points(signal: Values) -> list[int]:
    """Where the level of a series [commits] of unit noise changes: numbers of the first commits at a new level."""
    if len(signal) < SHORTEST:
        return []
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(signal.reshape(-1, 1))
    return [int(place) for place in search.predict(pen=penalty(len(signal)))[:-1]]


def shape(levels: Sequence[BaselineChange], error: float) -> Fit | None:
    """The best single step or ramp of a stretch in which something moves; None where nothing does.

    Parameters
    ----------
    levels : sequence of BaselineChange
        In order of commits.
    error : float
        Standard error of the difference of two builds in the same blocks.
    """
    if len(levels) < SHORTEST or error <= 0:
        return None
    signal = np.array([level.value for level in levels]) / (error / 2**0.5)
    if not change_points(signal):
        return None
    forms, fits = _forms(len(levels))
    nights = np.array([level.night for level in levels])
    # Noise: each commit's own, and the baseline commit's, which is common to a night.
    covariance = np.eye(len(levels)) + (nights[:, None] == nights[None, :])
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    flat = whiten @ np.ones(len(levels))
    flat /= np.linalg.norm(flat)
    y, moved = whiten @ signal, forms @ whiten.T
    y, moved = y - flat * (flat @ y), moved - np.outer(moved @ flat, flat)
    norms = (moved**2).sum(1)
    gains = np.where(norms > 1e-9, (moved @ y) ** 2 / np.maximum(norms, 1e-9), 0.0)
    costs = np.array([float(np.log(len(levels))) if fit.is_ramp else 0.0 for fit in fits])
    best = int(np.argmax(gains - costs))
    return fits[best] if gains[best] > penalty(len(levels)) else None


@cache
def _forms(commits: int) -> tuple[NDArray[np.float64], list[Fit]]:
    """All steps and ramps from 0 to 1 over so many commits: [forms, commits], and where each begins and ends."""
    fits = [Fit(start, stop) for start in range(commits - 1) for stop in range(start + 1, commits)]
    places = np.arange(commits, dtype=np.float64)
    return np.array([np.clip((places - fit.start) / (fit.stop - fit.start), 0.0, 1.0) for fit in fits]), fits


@dataclass(frozen=True)
class Search:
    """What a search for slow changes is about.

    Attributes
    ----------
    line : sequence of str
        Measured commits, oldest first.
    baseline : str
        What levels are relative to.
    priors : mapping
        Noise of each series.
    blocks : int
        Blocks that a level comes from.
    rules : Rules
        What is large enough.
    """

    line: Sequence[str]
    baseline: str
    priors: Mapping[Key, Prior]
    blocks: int
    rules: Rules

    def candidates(
        self, nights: Sequence[Blocks], steps: Sequence[Candidate], known: Collection[str]
    ) -> list[Candidate]:
        """Changes within stretches without a plain step.

        Parameters
        ----------
        nights : sequence of Blocks
            First blocks of each night, oldest first.
        steps : sequence of Candidate
            Single steps that are candidates already.
        known : collection of str
            Commits at which earlier nights found a change.
        """
        tested = {(candidate.pair, candidate.key) for candidate in steps}
        found = []
        for key, noise in self.priors.items():
            levels = self.levels(nights, key)
            plain = {*known, *(one.pair.new for one in steps if one.key == key and one.effect.p < PLAIN)}
            error = resolution(noise, self.blocks).error
            for pair in self._pairs(levels, error, plain):
                size = levels[pair.new].value - levels[pair.old].value
                if (pair, key) not in tested and abs(size) >= self.rules.smallest:
                    found.append(Candidate(pair, key, Effect(size, error, noise.dof)))
        return found

    def levels(self, nights: Sequence[Blocks], key: Key) -> dict[str, BaselineChange]:
        """Level of each commit, as the night that measured it last has it."""
        found = {}
        for number, blocks in enumerate(nights):
            for commit in self.line[-LONGEST:]:
                values = differences(blocks, key, Pair(commit, self.baseline))
                if len(values) >= MIN_BLOCKS:
                    found[commit] = BaselineChange(effect(values).log_ratio, number)
        return found

    def _pairs(self, levels: Mapping[str, BaselineChange], error: float, plain: Collection[str]) -> Iterator[Pair]:
        for stretch in stretches([commit for commit in self.line if commit in levels], plain):
            fit = shape([levels[commit] for commit in stretch], error)
            if fit is not None:
                yield Pair(stretch[fit.stop], stretch[fit.start], "drift" if fit.is_ramp else "step")


def stretches(order: Sequence[str], plain: Collection[str]) -> list[list[str]]:
    """Runs of commits without a plain step; the commit of a step begins a new one."""
    found: list[list[str]] = [[]]
    for commit in order:
        if commit in plain and found[-1]:
            found.append([])
        found[-1].append(commit)
    return found
