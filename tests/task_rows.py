"""A line of each task's data set with the hub's own fields, what is asked of it, by hand, and a played model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from tda.tasks.tally import Tally


@dataclass(frozen=True)
class Expected:
    """A line of a data set, the item that it is, and the score of its last right answer."""

    row: dict[str, Any]
    prompt: str
    choices: tuple[str, ...]
    target: str
    best: float = 1.0


ROWS: Mapping[str, Expected] = {
    "xsum": Expected(
        {"document": "A cat sat on a mat.\nIt slept.", "summary": "A cat slept.", "id": "1"},
        "Summarize the following article in one sentence:\n\nA cat sat on a mat.\nIt slept.\n\nSummary:",
        (),
        "A cat slept.",
    ),
    "cnn_dailymail": Expected(
        {"article": "(CNN) -- A cat sat on a mat.", "highlights": "Cat sits .\nMat is soft .", "id": "1"},
        "Summarize the following article:\n\n(CNN) -- A cat sat on a mat.\n\nSummary:",
        (),
        "Cat sits .\nMat is soft .",
    ),
    "coqa": Expected(
        {
            "id": "1",
            "source": "mctest",
            "story": "Ann went home.",
            "questions": {"input_text": ["Who went?", "Where?"], "turn_id": [1, 2]},
            "answers": {"input_text": ["Ann", "home"], "turn_id": [1, 2], "span_start": [0, 9]},
            "additional_answers": {"0": {"input_text": ["Ann", "to her home"]}, "1": {"input_text": ["Ann", "Home"]}},
        },
        "Ann went home.\n\nQ: Who went?\n\nA: Ann\n\nQ: Where?\n\nA:",
        (),
        '["home", "to her home"]',
        0.75,  # of "to her home": 1 beside itself, and 2 * 1 / (3 + 1) beside "home"
    ),
    "qasper": Expected(
        {
            "id": "1",
            "title": "On cats",
            "abstract": "We study cats.",
            "full_text": {"section_name": ["Intro"], "paragraphs": [["We study."]]},
            "qas": {
                "question": ["Is it good?", "What is studied?"],
                "question_id": ["a", "b"],
                "answers": [
                    {
                        "answer": [
                            {
                                "unanswerable": False,
                                "extractive_spans": [],
                                "yes_no": True,
                                "free_form_answer": "",
                                "evidence": [],
                            }
                        ]
                    },
                    {
                        "answer": [
                            {
                                "unanswerable": False,
                                "extractive_spans": ["cats", "mats"],
                                "yes_no": None,
                                "free_form_answer": "",
                                "evidence": [],
                            },
                            {
                                "unanswerable": False,
                                "extractive_spans": [],
                                "yes_no": None,
                                "free_form_answer": "The cats",
                                "evidence": ["We study cats."],
                            },
                            {
                                "unanswerable": True,
                                "extractive_spans": [],
                                "yes_no": None,
                                "free_form_answer": "",
                                "evidence": [],
                            },
                        ]
                    },
                ],
            },
        },
        "TITLE: On cats\nABSTRACT: We study cats.\n\nQ: What is studied?\n\nA:",
        (),
        '["cats, mats", "The cats"]',
    ),
    "gsm8k": Expected(
        {"question": "What is six times seven?", "answer": "It is <<6*7=42>>42.\n#### 42"},
        "Question: What is six times seven?\nAnswer:",
        (),
        "It is <<6*7=42>>42.\n#### 42",
    ),
    "hellaswag": Expected(
        {
            "ind": 4,
            "activity_label": "Canoeing",
            "ctx_a": "A man sits [step] in a canoe.",
            "ctx_b": "he",
            "endings": ["rows it.", "eats it [title] all."],
            "label": "0",
        },
        "Canoeing: A man sits in a canoe. He",
        (" rows it.", " eats it. all."),
        "rows it.",
    ),
    "piqa": Expected(
        {"goal": "Open a jar", "sol1": "Sing to it.", "sol2": "Turn the lid.", "label": 1},
        "Question: Open a jar\nAnswer:",
        (" Sing to it.", " Turn the lid."),
        "Turn the lid.",
    ),
    "copa": Expected(
        {
            "premise": "The man broke his toe.",
            "choice1": "He got a hole in his sock.",
            "choice2": "He dropped a hammer.",
            "question": "cause",
            "idx": 0,
            "label": 1,
        },
        "The man broke his toe because",
        ("  he got a hole in his sock.", "  he dropped a hammer."),
        "he dropped a hammer.",
    ),
    "arc_challenge": Expected(
        {
            "id": "1",
            "question": "Which is a mammal?",
            "choices": {"text": ["a cat", "a fly", "a trout"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        },
        "Question: Which is a mammal?\nAnswer:",
        (" a cat", " a fly", " a trout"),
        "a cat",
    ),
    "boolq": Expected(
        {"passage": "Cats are mammals.", "question": "is a cat a mammal", "idx": 0, "label": 1},
        "Cats are mammals.\nQuestion: is a cat a mammal?\nAnswer:",
        (" no", " yes"),
        "yes",
    ),
}
"""By task."""


class Played(LM):
    """A model whose answers are given: a likelihood for a choice, a text for a prompt."""

    def __init__(
        self, likelihood: Callable[[str, str], float] | None = None, answer: Callable[[str], str] | None = None
    ) -> None:
        super().__init__()
        self.likelihood, self.answer = likelihood, answer
        self.tally = Tally()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        assert self.likelihood is not None
        return [(self.likelihood(*request.args), self._tell(request)) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        assert self.answer is not None
        return [self.answer(request.args[0]) for request in requests if not self._tell(request)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        assert self.likelihood is not None
        return [self.likelihood("", request.args[0]) for request in requests if not self._tell(request)]

    def _tell(self, request: Instance) -> bool:
        self.tally.by_request[request.task_name, request.doc_id, request.idx] = (4, 3)
        return False


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
