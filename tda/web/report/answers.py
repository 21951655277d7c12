"""Answers of tasks beside the results: ``items/<task>/<case>-<key of the case>.jsonl``, an `Item` a line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tda.cases import Case
from tda.records import Record
from tda.results import results_path
from tda.tasks import Item
from tda.tasks.outputs import FOLDER, read_items

KEY_LETTERS = 8
"""Letters of a case's key, at the least, that stand behind the last hyphen of a file's name."""


@dataclass(frozen=True)
class Answers:
    """The file of a task's items as one case answered them."""

    task: str
    key: str
    path: Path

    @classmethod
    def beside(cls, folder: Path) -> list["Answers"]:
        """Those that lie beside a results file, by name."""
        found = sorted((results_path(folder).parent / FOLDER).glob("*/*.jsonl"))
        return [cls(path.parent.name, path.stem.rpartition("-")[2], path) for path in found]

    def of(self, case: Case) -> bool:
        """Whether they are a case's."""
        return len(self.key) >= KEY_LETTERS and case.key.startswith(self.key)

    def read(self) -> tuple[list[Item], list[str]]:
        """Items in order of their numbers, and a sentence for each line that could not be read."""
        return read_items(self.path)


def last_of(answers: Sequence[Answers], groups: Sequence[Sequence[Record]]) -> Iterator[list[Answers]]:
    """For each group of records, the answers that are its own: of the last group that scored their case.

    A file is written anew when a case is scored again, so that it tells nothing of an earlier commit, nor of another
    machine: the group whose line began last is taken.
    """
    owner: dict[Answers, tuple[str, int]] = {}
    for place, records in enumerate(groups):
        scored = {task: [record for record in records if task in record.tasks] for task in _tasks(records)}
        for one in answers:
            began = max((record.started for record in scored.get(one.task, ()) if one.of(record.case)), default=None)
            if began is not None:
                owner[one] = max(owner.get(one, ("", 0)), (began, place))
    for place in range(len(groups)):
        yield [one for one in answers if one in owner and owner[one][1] == place]


def _tasks(records: Sequence[Record]) -> set[str]:
    return {task for record in records for task in record.tasks}
