"""Items side by side: what dense answered and what each method answered, on one page that asks nothing of a network."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tda.tasks import Item
from tda.web.report.answers import Answers
from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.theme.formatting import number

MOST_ITEMS = 500
"""Items of a task that the page holds: the first ones."""
MOST_WORDS = 2000
"""An answer that is longer is shown without marks: comparing takes the square of it."""
DiffPart = tuple[str, str]
"""``"same"``, ``"added"`` or ``"removed"``, and the words."""


@dataclass(frozen=True)
class _Answered:
    """A case's items of a task by number."""

    case: ComparedCase
    items: dict[int, Item]


def tasks_side_by_side(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What the page shows of each setting and task, as JSON can hold it; empty where no answers are kept."""
    return [sheet for group in groups for sheet in _of_group(group, len(groups))]


def _of_group(group: Group, groups: int) -> Iterator[dict[str, Any]]:
    for setting in group.settings:
        for task in dict.fromkeys(answers.task for answers in group.answers):
            problems: list[str] = []
            held = list(_answered(setting.cases, [one for one in group.answers if one.task == task], problems))
            if held:
                title = f"{task} · {setting.title}"
                if groups > 1:
                    title += f" · group {group.number}"
                yield _sheet(title, held, problems)


def _answered(cases: Iterable[ComparedCase], answers: Sequence[Answers], problems: list[str]) -> Iterator[_Answered]:
    for case in cases:
        own = next((one for one in answers if one.of(case.record.case)), None)
        if own is not None:
            items, damaged = own.read()
            problems += damaged
            yield _Answered(case, {item.number: item for item in items})


def _sheet(title: str, held: Sequence[_Answered], problems: Sequence[str]) -> dict[str, Any]:
    """Dense first, then methods in their order; items by number."""
    numbers = sorted({number for one in held for number in one.items})
    dense = next((one for one in held if one.case.record.case.is_baseline), None)
    notes = list(problems)
    if len(numbers) > MOST_ITEMS:
        kept = f"the first {MOST_ITEMS} of {len(numbers):,} items are here"
        notes.append(f"{kept}; all of them lie in the results folder under items")
    if dense is None:
        notes.append("dense's answers were not kept, so that no word is marked")
    shown = [_item(number, held, dense) for number in numbers[:MOST_ITEMS]]
    return {"title": title, "cases": [one.case.label for one in held], "items": shown, "notes": notes}


def _item(place: int, held: Sequence[_Answered], dense: _Answered | None) -> dict[str, Any]:
    reference = dense.items.get(place) if dense is not None else None
    first = reference or next(one.items[place] for one in held if place in one.items)
    answers = [_answer(one.items.get(place), None if one is dense else reference, first) for one in held]
    changed = any(answer is not None and answer["changed"] for answer in answers)
    return {"number": place, "prompt": first.prompt, "target": first.target, "answers": answers, "changed": changed}


def _answer(item: Item | None, dense: Item | None, question: Item) -> dict[str, Any] | None:
    """One answer in parts that are as dense's or not; one to another question is not held against it."""
    if item is None:
        return None
    is_same_question = (item.prompt, item.target) == (question.prompt, question.target)
    changed = dense is not None and is_same_question and item.output != dense.output
    return {
        "parts": marked(dense.output, item.output) if dense is not None and changed else [("same", item.output)],
        "changed": changed,
        "same_question": is_same_question,
        "scores": "\n".join(f"{name} {number(value)}" for name, value in item.scores.items()),
        "likelihoods": "\n".join(number(value) for value in item.likelihoods),
        "tokens": f"{item.sparse_tokens} of {item.tokens}",
    }


def marked(before: str, after: str) -> list[DiffPart]:
    """Words of one text with what was added to and removed from another, spaces kept."""
    old, new = _words(before), _words(after)
    if max(len(old), len(new)) > MOST_WORDS:
        return [("removed", before), ("added", after)]
    parts: list[DiffPart] = []
    for kind, start, end, first, last in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("same", "".join(new[first:last])))
            continue
        removed, added = "".join(old[start:end]), "".join(new[first:last])
        parts += [(name, words) for name, words in (("removed", removed), ("added", added)) if words]
    return parts


def _words(text: str) -> list[str]:
    return re.findall(r"\S+|\s+", text)
