"""Two commits, case by case: installed and run in alternating processes, the older one twice.

What its two installs differ by is the between-process A/A noise of this very comparison.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tda.cases import Case
from tda.config import BenchConfig
from tda.records import Record
from tda.regression import detect
from tda.regression.detect import Change, Pair, Rules, Suspect
from tda.regression.effects import resolution
from tda.regression.findings import Split
from tda.regression.quality import QualityMove, quality_moves
from tda.regression.series import Blocks, Key, split_name
from tda.regression.units import Unit
from tda.regression.wording import short, speed_sentence
from tda.regression.workbench import CommitBench, quality_grid

RULES = Rules()
BLIND = 0.2
"""A floor above this is worth a sentence: "same" then says little."""


# What a comparison says.


@dataclass(frozen=True)
class Row:
    """One series of a case: a ratio (new over old) for times and memory, a difference in nats a token for quality.

    `low` and `high` bound the 95% interval; `floor` is the relative change that lies within the between-process A/A
    noise; `p` is corrected for all series together (commits only).
    """

    case: Case
    split: str
    ratio: float | None = None
    nats: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    p: float | None = None
    verdict: str = "same"


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes
    ----------
    old, new : str
        What was compared, in a few words.
    rows : tuple of Row
        Every series.
    told : tuple of str
        Sentences: what moved, what could not be compared.
    worse : bool
        Whether something is worse beyond the noise, or fails that did not.
    unjudged : tuple of str
        Sentences: what could not be judged, and what to do about it.
    """

    old: str
    new: str
    rows: tuple[Row, ...]
    told: tuple[str, ...]
    worse: bool
    unjudged: tuple[str, ...] = ()


def speed_verdict(split: Split, up: bool) -> str:
    """What a table says of a series that moved."""
    words = ("more", "less") if split == "memory" else ("slower", "faster")
    return words[0] if up else words[1]


def blind(rows: Iterable[Row]) -> list[str]:
    """A sentence where noise hides what one would want to see."""
    floors = [(row.floor, f"{row.split} of {row.case}") for row in rows if row.floor is not None and row.floor > BLIND]
    if not floors:
        return []
    worst, name = max(floors)
    return [f"this machine is noisy: in {name}, nothing under {worst:.0%} can be seen"]


def quality_row(move: QualityMove) -> Row:
    """What changed in the text of a case."""
    if move.nll is None:
        return Row(move.case, "quality", verdict=f"other neurons in {move.sets} of {move.documents} documents")
    nll = move.nll
    verdict = "worse" if nll.value > 0 else "better"
    return Row(move.case, "quality", nats=nll.value, low=nll.low, high=nll.high, verdict=verdict)


def quality_is_worse(moves: Iterable[QualityMove]) -> bool:
    """A better text may keep other neurons; other neurons without a better text are a mistake."""
    return any(move.nll is None or move.nll.value > 0 for move in moves)


def newly_failed(old: Iterable[Record], new: Iterable[Record]) -> list[str]:
    """A sentence for each case that always fails now and did not before."""
    before, now = failed_cases(old), failed_cases(new)
    return [
        f"{record.case} fails: {record.status}: {record.reason}" for key, record in now.items() if key not in before
    ]


def failed_cases(records: Iterable[Record]) -> dict[str, Record]:
    """Cases without a good record."""
    records = list(records)
    good = {record.case.key for record in records if record.status == "ok"}
    return {record.case.key: record for record in records if record.case.key not in good}


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
    bench.say(f"{3 * blocks} processes{' for speed, 2 for quality' if quality_grid(config) else ''}")
    before, after = (bench.text(commit, config) for commit in (old, new))
    units = bench.against(old, new, config, blocks)
    judged = Judged(units, Pair(new, old), bench.repository.facts(new).subject)
    moves = quality_moves(after, before)
    records = {
        commit: [*text, *(record for unit in units if unit.commit == commit for record in unit.records)]
        for commit, text in ((old, before), (new, after))
    }
    failed = newly_failed(records[old], records[new])
    rows = tuple(judged.rows())
    return Comparison(
        old=short(old),
        new=short(new),
        rows=(*rows, *map(quality_row, moves)),
        told=(*judged.told(), *failed, *blind(rows)),
        worse=judged.is_worse or quality_is_worse(moves) or bool(failed),
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
        every = [Suspect(pair, key, found) for key, found in self.effects.items()]
        self.tested = detect.confirm(self.blocks, every, self.noise)
        self.sure = [one for one in self.tested if one.holds and self._is_beyond(one.suspect.key)]

    def floor(self, key: Key) -> float | None:
        """Between-process A/A floor of a series with as many blocks as it has."""
        noise = self.noise.get(key)
        if noise is None:
            return None
        return resolution(noise, len(detect.differences(self.blocks, key, self.pair))).floor()

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

    def told(self) -> list[str]:
        """What moved, and which series have too few blocks with a sensible value."""
        left = [key for key in self.blocks.keys if key not in self.effects]
        names = [f"{key} has too few values to compare" for key in left]
        cases = {key.case for key in self.blocks.keys}
        return [*(speed_sentence(change, self.subject, cases) for change in self.changes), *names]

    def rows(self) -> Iterator[Row]:
        """Every series, moved or not."""
        moved = {one.suspect.key for one in self.sure}
        for one in self.tested:
            key, found = one.suspect.key, one.suspect.effect
            low, high = found.bounds()
            yield Row(
                case=key.case,
                split=split_name(key.split, key.relative),
                ratio=1 + found.size,
                low=1 + low,
                high=1 + high,
                floor=self.floor(key),
                p=one.p,
                verdict=speed_verdict(key.split, found.log_ratio > 0) if key in moved else "same",
            )
