"""Items with their answers, stored to be read side by side: ``items/<task>/<case>.jsonl``, one item a line."""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tda.cases import Case, first_problem
from tda.results import write_whole
from tda.tasks import Item

FOLDER = "items"
"""In a results folder."""
_LINE = TypeAdapter(Item)


def items_path(folder: Path, task: str, case: Case) -> Path:
    """File of a case's items of a task within a results folder; the task as measurement names spell it."""
    label = re.sub(r"[^0-9A-Za-z.=]+", "-", f"{case.spec} {case.execution}").strip("-")
    return folder / FOLDER / task / f"{label}-{case.key}.jsonl"


def save_items(path: Path, items: Iterable[Item]) -> None:
    """Write items to a file, whole or not at all."""
    lines = (json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in items)
    write_whole(path, "".join(lines).encode(errors="backslashreplace"))  # half a surrogate pair as JSON escapes it


def read_items(path: Path) -> tuple[list[Item], list[str]]:
    """Items of a file in order of their numbers, and a sentence for each line that could not be read."""
    items: dict[int, Item] = {}
    problems = []
    for place, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            item = _LINE.validate_json(line)
        except ValidationError as error:
            told = f"line {place} skipped: {first_problem(error)}"
            problems.append(f"{FOLDER}/{path.parent.name}/{path.name}, {told}")
        else:
            items[item.number] = item
    return [items[number] for number in sorted(items)], problems
