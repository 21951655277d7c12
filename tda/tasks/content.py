"""What a task asks, before anything is computed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskItem:
    """One item as it is asked.

    Attributes
    ----------
    number : int
        Its place in the data set.
    prompt : str
        Everything before the answer, few-shot examples and chat template included.
    bare : str
        The same without few-shot examples.
    question : str
        The item's own part of it.
    choices : tuple of str
        Texts that are weighed, as they follow the prompt; empty where the answer is generated.
    target : str
        The right answer, or answers as JSON.
    answers : tuple of str
        Every choice, or every right answer.
    """

    number: int
    prompt: str
    bare: str
    question: str
    choices: tuple[str, ...]
    target: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TaskContent:
    """A task's items as they are asked.

    Attributes
    ----------
    name : str
        The task, as measurement names spell it.
    items : tuple of TaskItem
        In the order of the data set.
    others : tuple of (str, tuple of str)
        Questions and answers of different items from all over the data set, whether they are asked or not.
    """

    name: str
    items: tuple[TaskItem, ...]
    others: tuple[tuple[str, tuple[str, ...]], ...]
