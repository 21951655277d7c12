"""Two commits, case by case: installed and run in alternating processes, the older one twice.

What its two installs differ by is the between-process A/A noise of this very comparison.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tda.cases import Case
from tda.changes import detect
from tda.changes.detect import Candidate, Change, Pair, Rules
from tda.changes.effects import resolution
from tda.changes.floor import two_modes
from tda.changes.messages import fails, says_nothing, speed_sentence, why_failed, why_lost
from tda.changes.quality import QualityMove, quality_moves
from tda.changes.series import Blocks, Key, split_name
from tda.changes.workbench import CommitBench, quality_grid
from tda.config import BenchConfig
from tda.history.findings import Split
from tda.history.nights import Unit
from tda.history.repository import short
from tda.records import Record
from tda.statistics import BLIND, MIN_GROUPS

logger = logging.getLogger(__name__)

RULES = Rules()
CANNOT_TELL = "cannot tell"
"""Verdict on a series whose noise is not known, or hides what one would want to see."""


# What a comparison says.


@dataclass(frozen=True)
class ComparisonRow:
    """One series of a case: a ratio (new over old) for times and memory, a difference in nats a token for quality.

    `text` names the evaluation text where a case was measured on several, and `machine` the machine where two folders
    hold several; `low` and `high` bound the 95% interval;
    `floor` is the relative change that lies within the between-process A/A noise; `p` is corrected for all series
    together (commits only).
    """

    case: Case
    split: str
    text: str | None = None
    ratio: float | None = None
    nats: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    p: float | None = None
    verdict: str = "same"
    machine: str | None = None

    def __str__(self) -> str:
        return f"{self.split} of {self.case}"


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes
    ----------
    old, new : str
        What was compared, in a few words.
    rows : tuple of ComparisonRow
        Every series.
    messages : tuple of str
        Sentences: what moved, what could not be compared.
    worse : bool
        Whether something is worse beyond the noise, or fails that did not.
    unjudged : tuple of str
        Sentences: what could not be judged, and what to do about it.
    """

    old: str
    new: str
    rows: tuple[ComparisonRow, ...]
    messages: tuple[str, ...]
    worse: bool
    unjudged: tuple[str, ...] = ()


def speed_verdict(split: Split, up: bool) -> str:
    """What a table says of a series that moved."""
    words = ("more", "less") if split == "memory" else ("slower", "faster")
    return words[0] if up else words[1]


def unjudged(rows: Mapping[Key, ComparisonRow], modes: bool) -> Iterator[str]:
    """Why some series cannot be told: two modes of the machine, or noise that is not known or hides everything."""
    left = [key for key, row in rows.items() if row.verdict == CANNOT_TELL]
    if modes:
        yield "cannot tell: two modes. The machine ran at two speeds; times at one say nothing of times at the other"
        left = [key for key in left if key.relative]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        yield (
            f"cannot tell: {left[0]}{more}. The noise of this machine is not known there or over {BLIND:.0%}, or there "
            f"are fewer than {MIN_GROUPS} rounds"
        )


def quality_row(move: QualityMove) -> ComparisonRow:
    """What changed in the text of a case."""
    if move.nll is None:
        return ComparisonRow(
            move.case, "quality", verdict=f"other neurons in {move.sets} of {move.documents} documents"
        )
    nll = move.nll
    verdict = "worse" if nll.value > 0 else "better"
    return ComparisonRow(move.case, "quality", nats=nll.value, low=nll.low, high=nll.high, verdict=verdict)


def quality_is_worse(moves: Iterable[QualityMove]) -> bool:
    """A better text may keep other neurons; other neurons without a better text are a mistake."""
    return any(move.nll is None or move.nll.value > 0 for move in moves)


@dataclass(frozen=True)
class Failures:
    """What always fails in the newer of two, in sentences.

    Attributes
    ----------
    new : tuple of str
        Cases that did not fail before.
    unknown : tuple of str
        Cases of which nobody knows whether they fail: now, or before, their process was killed or their worker lost.
    """

    new: tuple[str, ...]
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, old: Iterable[Record], new: Iterable[Record]) -> "Failures":
        """Compare what failed in two sets of records, merged or not."""
        old = list(old)
        ran = {record.case.key for record in old if record.status == "ok"}
        before, found, unknown = failed_cases(old), [], []
        for key, record in failed_cases(new).items():
            told = f"{record.case} {fails(record, ran=key in ran)}: {why_failed(record)}"
            if says_nothing(record):
                unknown += [f"cannot tell: {record.case} {why_lost(record)}"] if key in ran else []
            elif key not in before:
                found.append(told)
            elif says_nothing(before[key]):
                unknown.append(f"cannot tell: {told}, and before it {why_lost(before[key])}")
        return cls(tuple(found), tuple(unknown))


def failed_cases(records: Iterable[Record]) -> dict[str, Record]:
    """Cases without a good record, each with its last failure; one that says something of the case comes first."""
    records = list(records)
    good = {record.case.key for record in records if record.status == "ok"}
    failed = (record for record in records if record.case.key not in good)
    return {record.case.key: record for record in sorted(failed, key=lambda one: not says_nothing(one))}


# Commits.


def compare_commits(bench: CommitBench, old: str, new: str, config: BenchConfig, blocks: int) -> Comparison:
    """Measure two commits against each other.

    Parameters
    ----------
    old, new : str
        Full hashes.
    blocks : int
        Processes of each build.

    Raises
    ------
    ValueError
        If both are one commit, or an option is wrong.
    NotMeasuredError
        If one of them does not build or run.
    """
    if old == new:
        raise ValueError(f"{short(old)} and {short(new)} are one commit")
    logger.info(f"{3 * blocks} processes{' for speed, 2 for quality' if quality_grid(config) else ''}")
    before, after = (bench.text(commit, config) for commit in (old, new))
    units = bench.against(old, new, config, blocks)
    judged = Judged(units, Pair(new, old), bench.repository.facts(new).subject)
    moves = quality_moves(after, before)
    records = {
        commit: [*text, *(record for unit in units if unit.commit == commit for record in unit.records)]
        for commit, text in ((old, before), (new, after))
    }
    failures = Failures.of(records[old], records[new])
    return Comparison(
        old=short(old),
        new=short(new),
        rows=(*judged.rows.values(), *map(quality_row, moves)),
        messages=(*judged.messages(), *failures.new),
        worse=judged.is_worse or quality_is_worse(moves) or bool(failures.new),
        unjudged=(*unjudged(judged.rows, judged.modes), *failures.unknown),
    )


class Judged:
    """What the blocks of two commits say, all series tested together.

    Parameters
    ----------
    units : sequence of Unit
        Of both commits and of the older one's second install.
    pair : Pair
        The commits.
    subject : str
        First line of the newer one's message.
    """

    def __init__(self, units: Sequence[Unit], pair: Pair, subject: str) -> None:
        self.blocks = Blocks(units)
        self.pair = pair
        self.subject = subject
        # The control alone: the steps' own spread is in their effects already.
        self.noise = detect.noise(self.blocks, (), pair.old)
        self.effects = detect.effects(self.blocks, pair, self.noise)
        every = [Candidate(pair, key, found) for key, found in self.effects.items()]
        self.tested = detect.confirm(self.blocks, every, self.noise)
        self.sure = [one for one in self.tested if one.holds and self._is_beyond(one.candidate.key)]

    def floor(self, key: Key) -> float | None:
        """Between-process A/A floor of a series with as many blocks as it has."""
        noise = self.noise.get(key)
        if noise is None:
            return None
        floor = resolution(noise, len(detect.differences(self.blocks, key, self.pair))).floor()
        return floor if floor <= BLIND else None

    @property
    def modes(self) -> bool:
        """Whether the processes ran at two speeds."""
        decode = (key for key in self.blocks.keys if key.split == "decode" and key.case.is_baseline)
        return any(two_modes([v for build in self.blocks.of(key).values() for v in build.values()]) for key in decode)

    def _is_beyond(self, key: Key) -> bool:
        floor, found = self.floor(key), self.effects[key]
        return floor is not None and abs(found.log_ratio) > np.log1p(floor) and RULES.matters(found)

    @cached_property
    def changes(self) -> list[Change]:
        """What moved, named: everything alike, dense alone, or methods of their own."""
        return detect.changes(self.blocks, self.sure, self.noise, RULES)

    @property
    def is_worse(self) -> bool:
        """Whether something that moved is for the worse; a faster dense alone is not, though ratios to it rise."""
        return any(change.verdict == "alarm" for change in self.changes)

    def messages(self) -> list[str]:
        """What moved, and which series have too few blocks with a sensible value."""
        left = [key for key in self.blocks.keys if key not in self.effects]
        names = [f"{key} has too few values to compare" for key in left]
        cases = {key.case for key in self.blocks.keys}
        return [*(speed_sentence(change, self.subject, cases) for change in self.changes), *names]

    @cached_property
    def rows(self) -> dict[Key, ComparisonRow]:
        """Every series, moved or not."""
        moved = {one.candidate.key for one in self.sure}
        return {one.candidate.key: self._row(one.candidate, one.p, moved) for one in self.tested}

    def _row(self, candidate: Candidate, p: float, moved: Collection[Key]) -> ComparisonRow:
        key, found, floor = candidate.key, candidate.effect, self.floor(candidate.key)
        low, high = found.bounds()
        verdict = speed_verdict(key.split, found.log_ratio > 0) if key in moved else "same"
        return ComparisonRow(
            case=key.case,
            split=split_name(key.split, key.relative),
            ratio=1 + found.size,
            low=1 + low,
            high=1 + high,
            floor=floor,
            p=p,
            verdict=CANNOT_TELL if floor is None else verdict,
        )
