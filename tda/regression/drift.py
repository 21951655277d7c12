"""Changes that no single step shows: slow drift, and steps below what one night resolves.

Each commit's level is its change against the anchor, which ran in the same blocks. Levels of one machine form a
series over commits, cut at the steps that are plain. Within such a stretch nothing should move; a change-point search
(PELT with a squared cost, Killick et al. 2012, from the ruptures library) says whether something does, and the better
of a step and a ramp says what. What it finds is a suspect like any other: fresh blocks decide.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ruptures

from tda.regression.detect import Pair, Rules, Suspect, differences
from tda.regression.effects import MIN_BLOCKS, Effect, Prior, Values, effect, resolution
from tda.regression.series import Blocks, Key

PENALTY = 3.0
"""PELT's penalty per change point, in units of log(commits) of a series with unit noise."""
SHORTEST = 3
"""Commits that a stretch must have."""
PLAIN = 1e-5
"""A suspected step with a smaller p-value is plain: the search does not go across it."""


@dataclass(frozen=True)
class Fit:
    """How well a shape explains a stretch: `start` is the last commit before it, `stop` the first at the new level."""

    start: int
    stop: int
    criterion: float

    @property
    def is_ramp(self) -> bool:
        """Whether it takes more than one commit."""
        return self.stop - self.start > 1


def change_points(levels: Values, error: float) -> list[int]:
    """Places where the level of a series changes: each is the number of the first commit at a new level.

    Parameters
    ----------
    levels : array [commits]
        Mean log ratio to the anchor.
    error : float
        Standard error of one level.
    """
    if len(levels) < SHORTEST or error <= 0:
        return []
    signal = (levels / error).reshape(-1, 1)
    search = ruptures.Pelt(model="l2", min_size=1, jump=1).fit(signal)
    return [int(place) for place in search.predict(pen=PENALTY * np.log(len(levels)))[:-1]]


def shape(levels: Values, error: float) -> Fit | None:
    """The best single step or ramp of a stretch in which something moves; None where nothing does.

    The Bayesian information criterion chooses: a ramp costs one parameter more than a step.
    """
    if not change_points(levels, error):
        return None
    fits = list(_fits(levels / error))
    return min(fits, key=lambda fit: fit.criterion)


def _fits(levels: Values) -> Iterator[Fit]:
    count = len(levels)
    places = np.arange(count, dtype=np.float64)
    for start in range(count - 1):
        for stop in range(start + 1, count):
            form = np.clip((places - start) / (stop - start), 0.0, 1.0)
            design = np.column_stack([np.ones(count), form])
            residual = levels - design @ np.linalg.lstsq(design, levels, rcond=None)[0]
            free = 3 if stop == start + 1 else 4
            yield Fit(start, stop, float(residual @ residual) + free * float(np.log(count)))


@dataclass(frozen=True)
class Search:
    """What a search for slow changes is about.

    Attributes
    ----------
    line : sequence of str
        Measured commits, oldest first.
    anchor : str
        What levels are relative to.
    priors : mapping
        Noise of each series.
    blocks : int
        Blocks that a level comes from.
    rules : Rules
        What is large enough.
    """

    line: Sequence[str]
    anchor: str
    priors: Mapping[Key, Prior]
    blocks: int
    rules: Rules

    def suspects(self, nights: Sequence[Blocks], steps: Sequence[Suspect], known: Collection[str]) -> list[Suspect]:
        """Changes within stretches without a plain step.

        Parameters
        ----------
        nights : sequence of Blocks
            First blocks of each night, oldest first.
        steps : sequence of Suspect
            Single steps that are suspected already.
        known : collection of str
            Commits at which earlier nights found a change.
        """
        tested = {(suspect.pair, suspect.key) for suspect in steps}
        found = []
        for key, noise in self.priors.items():
            levels = self.levels(nights, key)
            plain = {*known, *(one.pair.new for one in steps if one.key == key and one.effect.p < PLAIN)}
            error = resolution(noise, self.blocks).error
            for pair in self._pairs(levels, error, plain):
                size = levels[pair.new] - levels[pair.old]
                if (pair, key) not in tested and abs(size) >= self.rules.smallest:
                    found.append(Suspect(pair, key, Effect(size, error * 2**0.5, noise.dof)))
        return found

    def levels(self, nights: Sequence[Blocks], key: Key) -> dict[str, float]:
        """Change of each commit against the anchor, as the night that measured it last has it."""
        found = {}
        for blocks in nights:
            for commit in self.line:
                values = differences(blocks, key, Pair(commit, self.anchor))
                if len(values) >= MIN_BLOCKS:
                    found[commit] = effect(values).log_ratio
        return found

    def _pairs(self, levels: Mapping[str, float], error: float, plain: Collection[str]) -> Iterator[Pair]:
        for stretch in stretches([commit for commit in self.line if commit in levels], plain):
            fit = shape(np.array([levels[commit] for commit in stretch]), error)
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
