"""lm-eval's requests: where one belongs, what it is called, and what it asks."""

from collections.abc import Iterable

from lm_eval.api.instance import Instance

from tda.quality.documents import SURROGATE
from tda.tasks.content import TaskContent, TaskItem

RequestPlace = tuple[str | None, int | None, int]
"""Name of a task, number of a document, and number of a request within it."""


def place(request: Instance) -> RequestPlace:
    """Where a request belongs."""
    return request.task_name, request.doc_id, request.idx


def named(request: Instance) -> str:
    """A request in words."""
    return f"{request.task_name or 'task'}, document {request.doc_id}, request {request.idx}"


def check_text(request: Instance, *texts: str) -> None:
    """Raise ValueError if a text of a request is no Unicode."""
    for text in texts:
        if (broken := SURROGATE.search(text)) is not None:
            raise ValueError(
                f"{named(request)}: expected Unicode text, got U+{ord(broken[0]):04X}, half of a surrogate pair, as "
                f"character {broken.start() + 1}"
            )


def contents_of(requests: Iterable[Instance]) -> list[TaskContent]:
    """What lm-eval's requests ask, by task, where nothing else is known of them: a prompt is all question."""
    items: dict[str, list[TaskItem]] = {}
    for request in requests:
        first, second = (*request.args, None)[:2]
        prompt, answer = (first, second if isinstance(second, str) else "") if second is not None else ("", first)
        name, number = request.task_name or "task", request.doc_id or 0
        items.setdefault(name, []).append(TaskItem(number, prompt, prompt, prompt, (), answer, (answer,)))
    return [TaskContent(name, tuple(found), ()) for name, found in items.items()]
