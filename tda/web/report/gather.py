"""Read results folders and part them into groups that may be shown together."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tda.records import FAKE, Commit, LeftOut, Machine, Record, turn
from tda.results import load, results_path
from tda.web.report.answers import Answers, last_of
from tda.web.report.setting import Setting, settings


@dataclass(frozen=True)
class Group:
    """Lines of one machine and one commit: nothing is drawn across groups.

    Attributes
    ----------
    number : int
        1, 2, … in the order of the page.
    lines : tuple of Record
        As read, one per round.
    problems : tuple of str
        What was skipped while reading, over all groups.
    left_out : tuple of LeftOut
        What budgets left no time for, over all groups.
    answers : tuple of Answers
        Files of what its cases answered in tasks, item by item.
    """

    number: int
    lines: tuple[Record, ...]
    problems: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    answers: tuple[Answers, ...] = ()

    @property
    def machine(self) -> Machine:
        """The machine that all lines were taken on."""
        return self.lines[0].machine

    @property
    def commit(self) -> Commit:
        """The state of the code that all lines were taken with."""
        return self.lines[0].commit

    @cached_property
    def settings(self) -> list[Setting]:
        """Comparable cases of the group."""
        return settings(self.lines)


def gather(folders: Sequence[Path]) -> list[Group]:
    """Read folders into groups of equal machine and commit, in order of first appearance.

    Raises
    ------
    ValueError
        If no folder is given, or no record can be used.
    FileNotFoundError
        If a folder holds no results.
    """
    if not folders:
        raise ValueError("no results folder given; `tda report FOLDER …` needs at least one")
    held_by: list[list[Record]] = []
    problems: list[str] = []
    left_out: list[LeftOut] = []
    answers: list[Answers] = []
    for folder in {results_path(folder).resolve(): folder for folder in folders}.values():
        loaded = load(folder)
        good, refused = _without_fakes(loaded.records, results_path(folder))
        held_by.append(good)
        problems += [*loaded.problems, *refused]
        left_out += loaded.left_out
        answers += Answers.beside(folder)
    problems += _repeats(held_by)
    records = [record for held in held_by for record in held]
    if not records:
        where = ", ".join(str(results_path(folder)) for folder in folders)
        raise ValueError(f"no readable record in {where}" + "".join(f"\n  {problem}" for problem in problems))
    held: dict[tuple[str | None, ...], list[Record]] = {}
    for record in records:
        state = (record.machine.fingerprint, record.commit.hash, str(record.commit.dirty), record.inputs.change)
        held.setdefault(state, []).append(record)
    lines = list(held.values())
    return [
        Group(number, tuple(own), tuple(problems), tuple(left_out), tuple(theirs))
        for number, (own, theirs) in enumerate(zip(lines, last_of(answers, lines), strict=True), start=1)
    ]


def _without_fakes(records: Iterable[Record], path: Path) -> tuple[list[Record], list[str]]:
    good: list[Record] = []
    fakes: Counter[str] = Counter()
    for record in records:
        if record.machine.gpu and FAKE in record.machine.gpu:
            fakes[record.machine.gpu] += 1
        else:
            good.append(record)
    return good, [
        f"{path}: {count} records refused, whose GPU {name!r} is a simulated device" for name, count in fakes.items()
    ]


def _repeats(folders: Iterable[Sequence[Record]]) -> list[str]:
    """Whether folders hold the same; within one, a round that was measured again takes the place of a torn one."""
    counts = Counter(
        place
        for records in folders
        for place in {
            (record.series, turn(record), record.machine.fingerprint, record.commit.hash)
            for record in records
            if record.status == "ok"
        }
    )
    repeated = sum(count - 1 for count in counts.values())
    text = f"{repeated} records repeat a case and round of the same machine and commit; of each the last counts"
    return [text] if repeated else []
