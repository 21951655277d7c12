"""Which commits changed the speed or memory, judged in two steps that share no data.

The first blocks of a night name candidates, each step tested at a lenient level. Candidates are measured again, with
the commit before them, in fresh blocks; what these confirm, corrected for all candidates of the night together (Holm),
is a change. So the chance of any false alarm in a night is the level of that second test, whatever the number of
series, and a burst of foreign load that fooled the first blocks is not there in the second.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tda.cases import Case
from tda.changes.effects import MIN_BLOCKS, Effect, Prior, effect, holm, prior
from tda.changes.series import Blocks, Key
from tda.history.findings import FindingScope, FindingVerdict, Shape, Split
from tda.statistics import Values

CANDIDATE = 0.003
"""Level of the first test of one step of one series: about one false candidate a night of twenty commits."""
FAMILY = 0.01
"""Chance of any false alarm in a night, over all series and commits together."""
MEMBER = 0.01
"""Level at which another case of a confirmed change counts as having moved too."""
OWN_SHARE = 0.4
"""A method that moved this much more or less than dense did has a change of its own."""


@dataclass(frozen=True)
class Pair:
    """Two builds to compare: a commit and what it is held against."""

    new: str
    old: str
    shape: Shape = "step"


@dataclass(frozen=True)
class Candidate:
    """A series that moved between two builds in the first blocks."""

    pair: Pair
    key: Key
    effect: Effect


@dataclass(frozen=True)
class Rules:
    """What counts as a change.

    Attributes
    ----------
    smallest : float
        Relative changes below it are never alarms, however sure.
    """

    smallest: float = 0.01

    def matters(self, found: Effect) -> bool:
        """Whether an effect is large enough to speak of."""
        return abs(found.log_ratio) >= self.smallest


def step_pairs(order: Sequence[str]) -> list[Pair]:
    """Each measured commit against the one before it."""
    return [Pair(new, old) for old, new in itertools.pairwise(order)]


def noise(blocks: Blocks, pairs: Iterable[Pair], control: str) -> dict[Key, Prior]:
    """Between-process noise of each series, about each step's own mean; the baseline's second install is a step too."""
    pairs = list(pairs)
    found = {}
    for key in blocks.keys:
        steps: list[Values] = [differences(blocks, key, pair) for pair in pairs]
        steps.append(blocks.differences(key, (control, "control"), (control, "commit")))
        pooled = prior(steps)
        if pooled is not None:
            found[key] = pooled
    return found


def differences(blocks: Blocks, key: Key, pair: Pair) -> Values:
    """Block values of a pair."""
    return blocks.differences(key, (pair.new, "commit"), (pair.old, "commit"))


def effects(blocks: Blocks, pair: Pair, priors: Mapping[Key, Prior]) -> dict[Key, Effect]:
    """Effect of a pair on every series that has enough blocks."""
    values = {key: differences(blocks, key, pair) for key in blocks.keys}
    return {key: effect(held, priors.get(key)) for key, held in values.items() if len(held) >= MIN_BLOCKS}


def candidates(blocks: Blocks, pairs: Iterable[Pair], priors: Mapping[Key, Prior], rules: Rules) -> list[Candidate]:
    """Series that moved in the first blocks."""
    return [
        Candidate(pair, key, found)
        for pair in pairs
        for key, found in effects(blocks, pair, priors).items()
        if found.p < CANDIDATE and rules.matters(found)
    ]


@dataclass(frozen=True)
class Confirmed:
    """A candidate after the fresh blocks: its fresh effect, and the p-value corrected for the night."""

    candidate: Candidate
    effect: Effect | None
    p: float

    @property
    def holds(self) -> bool:
        """Whether the fresh blocks say the same."""
        same = self.effect is not None and self.effect.log_ratio * self.candidate.effect.log_ratio > 0
        return same and self.p <= FAMILY


def confirm(fresh: Blocks, candidates: Sequence[Candidate], priors: Mapping[Key, Prior]) -> list[Confirmed]:
    """Test every candidate on the fresh blocks; one without enough of them is not confirmed."""
    found = []
    for candidate in candidates:
        values = differences(fresh, candidate.key, candidate.pair)
        found.append(effect(values, priors.get(candidate.key)) if len(values) >= MIN_BLOCKS else None)
    corrected = holm([one.p if one is not None else 1.0 for one in found])
    return [Confirmed(*parts) for parts in zip(candidates, found, corrected, strict=True)]


@dataclass(frozen=True)
class Change:
    """What moved together between two builds, in one grid."""

    pair: Pair
    grid: str
    split: Split
    scope: FindingScope
    cases: tuple[Case, ...]
    effect: Effect
    p: float
    along: tuple[str, ...] = ()

    @property
    def verdict(self) -> FindingVerdict:
        """Whether it is for the worse."""
        return "alarm" if self.effect.log_ratio > 0 else "improvement"


def changes(fresh: Blocks, confirmed: Sequence[Confirmed], priors: Mapping[Key, Prior], rules: Rules) -> list[Change]:
    """Name what moved: everything alike, dense alone, or methods of their own; one for each grid, split and scope."""
    found = []
    for pair in dict.fromkeys(one.candidate.pair for one in confirmed if one.holds):
        sure = {one.candidate.key: one.p for one in confirmed if one.holds and one.candidate.pair == pair}
        held, ratios = effects(fresh, pair, priors), _ratios(fresh, pair)
        for grid in dict.fromkeys(key.grid for key in sure):
            own = {key: one for key, one in held.items() if key.grid == grid}
            found += _Naming(pair, grid, own, sure, rules, ratios).changes()
    return found


def _ratios(blocks: Blocks, pair: Pair) -> dict[Key, float]:
    """Decode of each method over dense in the older build: median over blocks."""
    held = {key: blocks.of(key).get((pair.old, "commit"), {}) for key in blocks.keys if key.relative}
    return {key: float(np.median(list(values.values()))) for key, values in held.items() if values}


def _absolute(key: Key) -> Key:
    """The series of the time whose ratio to dense a series is."""
    return key._replace(relative=False)


@dataclass(frozen=True)
class _Naming:
    pair: Pair
    grid: str
    effects: Mapping[Key, Effect]
    sure: Mapping[Key, float]
    rules: Rules
    ratios: Mapping[Key, float]

    def changes(self) -> list[Change]:
        found = self._decode()
        common = [change.effect for change in found if change.scope == "everything"]
        return found + self._plain("prefill") + self._plain("select", common) + self._plain("memory")

    def _moved(self, key: Key) -> Effect | None:
        found = self.effects.get(key)
        if found is None or not (key in self.sure or (found.p < MEMBER and self.rules.matters(found))):
            return None
        return found

    def _change(
        self, split: Split, scope: FindingScope, keys: Sequence[Key], along: Sequence[str] = ()
    ) -> list[Change]:
        """One change of some series; none where no series of it was confirmed."""
        sure = [key for key in keys if key in self.sure]
        if not sure:
            return []
        main = max(sure, key=lambda key: abs(self.effects[key].log_ratio) / (self.effects[key].error or 1e-9))
        cases = tuple(dict.fromkeys(key.case for key in keys))
        least = min(self.sure[key] for key in sure)
        return [Change(self.pair, self.grid, split, scope, cases, self.effects[main], least, tuple(along))]

    def _plain(self, split: Split, common: Sequence[Effect] = ()) -> list[Change]:
        """What moved of a split; what moved as everything did is no change of its own."""
        keys = [key for key in self.effects if key.split == split]
        moved = [key for key in keys if self._moved(key) and not any(self._follows(key, shift) for shift in common)]
        every = split == "prefill" or (split == "memory" and len(moved) == len(keys))
        return self._change(split, "everything" if every else "method", moved)

    def _decode(self) -> list[Change]:
        keys = [key for key in self.effects if key.split == "decode"]
        if not any(key in self.sure for key in keys):
            return []
        settings: dict[str, list[Key]] = {}
        for key in keys:
            settings.setdefault(key.case.setting, []).append(key)
        return [change for members in settings.values() for change in self._setting(members)]

    def _setting(self, keys: Sequence[Key]) -> list[Change]:
        """Decode of one model and request: common mode, dense alone, or methods."""
        absolute = [key for key in keys if not key.relative]
        relative = [key for key in keys if key.relative and _absolute(key) in absolute]
        own = [key for key in relative if self._moved(key) is not None]
        dense = next((key for key in absolute if key.case.is_baseline), None)
        shift = self._moved(dense) if dense is not None else None
        if shift is None or dense is None:
            moved = [key for key in relative if key in own or self._moved(_absolute(key)) is not None]
            if dense is not None and moved and not any(key in own or self._apart(key) for key in moved):
                return self._change("decode", "everything", [*map(_absolute, moved), dense])
            return self._change("decode", "method", [one for key in moved for one in (key, _absolute(key))])
        own = [key for key in own if not self._as_dense(key, shift)]
        still = [k for k in own if abs(self.effects[_absolute(k)].log_ratio) < OWN_SHARE * abs(shift.log_ratio)]
        if relative and len(still) == len(relative):
            return self._with_witness("dense", dense, [dense], still)
        alike = [key for key in absolute if key._replace(relative=True) not in own]
        prefill = self.effects.get(dense._replace(split="prefill"))
        along = ("prefill",) if prefill is not None and self._moved(dense._replace(split="prefill")) is not None else ()
        common = self._with_witness("everything", dense, alike, alike, along)
        return common + self._change("decode", "method", own)

    def _follows(self, key: Key, shift: Effect) -> bool:
        """Whether a series moved as everything did: the same way, and no more than that."""
        own = self.effects[key]
        low, _ = sorted(map(abs, own.bounds(1 - MEMBER)))
        return own.log_ratio * shift.log_ratio > 0 and low <= abs(shift.size)

    def _as_dense(self, key: Key, shift: Effect) -> bool:
        """Whether a method moved as dense did: by about the same share, or by as many milliseconds.

        The same time is a greater share of a shorter step, so its ratio to dense moves by something from 0 to that.
        """
        own = self.effects[key]
        if abs(own.log_ratio) <= OWN_SHARE * abs(shift.log_ratio):
            return True
        if key not in self.ratios:
            return False
        same_time = math.log(max(1 + shift.size / self.ratios[key], 1e-6)) - shift.log_ratio
        low, high = own.bounds(1 - MEMBER)
        return low <= math.expm1(max(same_time, 0.0)) and high >= math.expm1(min(same_time, 0.0))

    def _apart(self, key: Key) -> bool:
        """Whether a method's ratio to dense moved rather as the method did than not at all: dense stood still."""
        return abs(self.effects[key].log_ratio) > 0.5 * abs(self.effects[_absolute(key)].log_ratio)

    def _with_witness(
        self, scope: FindingScope, dense: Key, keys: Sequence[Key], witnesses: Sequence[Key], along: Sequence[str] = ()
    ) -> list[Change]:
        """A change whose size is dense's; sure if dense or any witness of it is."""
        sure = [self.sure[key] for key in (dense, *witnesses) if key in self.sure]
        if not sure:
            return []
        cases = tuple(dict.fromkeys(key.case for key in keys))
        return [Change(self.pair, self.grid, "decode", scope, cases, self.effects[dense], min(sure), tuple(along))]
