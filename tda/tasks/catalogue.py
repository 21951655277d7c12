"""The tasks of the paper "First Activations Matter", and GSM8K, by our names.

Light: lm-eval is not imported here. A task that lm-eval scores as the field does is named by its name there. XSum,
CNN/DailyMail, CoQA and QASPER are configurations of our own:

* lm-eval has no XSum. Its CNN/DailyMail (``cnn_dailymail_abisee``) adds BERTScore, from a model of the hub, wherever
  that package is installed; ours has the same prompt and length, and ROUGE.
* lm-eval's CoQA imports a module that transformers no longer has. Ours has its prompt, its scores and its limits.
* lm-eval's ``qasper_freeform`` makes an item of each annotator's answer and leaves extractive answers out. Ours asks
  each question once, with the same prompt, and takes the best F1 over the annotators' free-form and extractive answers;
  questions that have only "yes", "no" or "unanswerable" are left out.
"""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tda.tasks.scores import coqa, qasper, rouge

TaskKind = Literal["choice", "generation"]
Spec = type | types.UnionType | tuple[object, ...] | list[Any] | dict[str, Any]
"""What a field holds: a type, some values, a list of things, or an object with fields."""
Scorer = Callable[[Sequence[str], str], dict[str, float]]
"""Right answers and the generated text to scores by name."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """About how large a task is, in tokens of a vocabulary of 32,000.

    Attributes
    ----------
    items : int
        Items of the split that is asked.
    requests : int
        Passes of an item: one for each choice.
    prompt_tokens, answer_tokens : int
        Of an item on average, without few-shot examples.
    shots : int
        Examples before each question, where no number is asked.
    megabytes : int
        Of the whole data set on disk.
    """

    items: int
    requests: int
    prompt_tokens: int
    answer_tokens: int
    shots: int = 0
    megabytes: int


@dataclass(frozen=True, kw_only=True)
class Own:
    """A generation task that is configured here.

    Attributes
    ----------
    rows : callable
        A line of the hub's data set to its items, each ``{"prompt": str, "answers": list of str}``.
    scorer : callable
        Scores of an answer.
    metrics : tuple of str
        Their names.
    stop : tuple of str
        An answer ends before the first of these.
    max_new_tokens : int
        Tokens of an answer at most.
    examples : str
        Split that few-shot examples are drawn from.
    version : float
        Raised when the prompt or the scoring changes.
    """

    rows: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]]
    scorer: Scorer
    metrics: tuple[str, ...]
    stop: tuple[str, ...]
    max_new_tokens: int
    examples: str
    version: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a task is.

    Attributes
    ----------
    kind : {"choice", "generation"}
        Whether choices are weighed, or an answer is generated.
    headline : str
        The score that is shown first.
    dataset, subset : str, str or None
        Id of the data set on the hub, and its configuration.
    split : str
        Split whose items are asked.
    size : Size
        About how large it is.
    fields : dict
        Fields of the data set that the task reads, and what they hold.
    harness, folder : str or None
        The task's name in lm-eval, and lm-eval's folder of it, so that its thousands of others need no reading.
    own : Own or None
        The configuration, where it is not lm-eval's.
    """

    kind: TaskKind
    headline: str
    dataset: str
    subset: str | None = None
    split: str
    size: Size
    fields: Mapping[str, Spec]
    harness: str | None = None
    folder: str | None = None
    own: Own | None = None


def _xsum(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    prompt = f"Summarize the following article in one sentence:\n\n{row['document']}\n\nSummary:"
    yield {"prompt": prompt, "answers": [row["summary"]]}


def _cnn_dailymail(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    prompt = f"Summarize the following article:\n\n{row['article']}\n\nSummary:"
    yield {"prompt": prompt, "answers": [row["highlights"]]}


def _coqa(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The last question of a conversation, after the others with their answers."""
    questions, answers = row["questions"]["input_text"], row["answers"]["input_text"]
    before = "".join(f"Q: {asked}\n\nA: {told}\n\n" for asked, told in zip(questions[:-1], answers, strict=False))
    last = len(questions) - 1
    more = (given["input_text"][last] for given in (row.get("additional_answers") or {}).values() if given)
    different: dict[str, str] = {}
    for answer in (answers[last], *more):
        different.setdefault(answer.lower(), answer)
    prompt = f"{row['story']}\n\n{before}Q: {questions[-1]}\n\nA:"
    yield {"prompt": prompt, "answers": list(different.values())}


def _qasper(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Questions of a paper that some annotator answered in words of their own or of the paper."""
    for question, given in zip(row["qas"]["question"], row["qas"]["answers"], strict=True):
        answers = dict.fromkeys(answer for blob in given["answer"] for answer in _qasper_answer(blob))
        if answers:
            prompt = f"TITLE: {row['title']}\nABSTRACT: {row['abstract']}\n\nQ: {question}\n\nA:"
            yield {"prompt": prompt, "answers": list(answers)}


def _qasper_answer(blob: Mapping[str, Any]) -> Iterator[str]:
    """The data set's own order: unanswerable, extractive, free-form, yes or no."""
    if blob["unanswerable"]:
        return
    if blob["extractive_spans"]:
        yield ", ".join(blob["extractive_spans"])
    elif blob["free_form_answer"]:
        yield blob["free_form_answer"]


_QASPER_BLOB = {
    "unanswerable": bool,
    "extractive_spans": [str],
    "free_form_answer": str,
}

CATALOGUE: Mapping[str, Entry] = {
    "xsum": Entry(
        kind="generation",
        headline="rougeL",
        dataset="EdinburghNLP/xsum",
        split="test",
        size=Size(items=11_334, requests=1, prompt_tokens=540, answer_tokens=50, megabytes=530),
        fields={"document": str, "summary": str},
        # HELM gives a summary of XSum 64 tokens; a blank line ends an answer and an example, as lm-eval has it.
        own=Own(
            rows=_xsum,
            scorer=rouge,
            metrics=("rouge1", "rouge2", "rougeL"),
            stop=("\n\n",),
            max_new_tokens=64,
            examples="validation",
        ),
    ),
    "cnn_dailymail": Entry(
        kind="generation",
        headline="rougeL",
        dataset="abisee/cnn_dailymail",
        subset="3.0.0",
        split="test",
        size=Size(items=11_490, requests=1, prompt_tokens=950, answer_tokens=110, megabytes=1_300),
        fields={"article": str, "highlights": str},
        # HELM and lm-eval give a summary of CNN/DailyMail 128 tokens.
        own=Own(
            rows=_cnn_dailymail,
            scorer=rouge,
            metrics=("rouge1", "rouge2", "rougeL"),
            stop=("\n\n",),
            max_new_tokens=128,
            examples="validation",
        ),
    ),
    "coqa": Entry(
        kind="generation",
        headline="f1",
        dataset="EleutherAI/coqa",
        split="validation",
        size=Size(items=500, requests=1, prompt_tokens=750, answer_tokens=20, megabytes=60),
        fields={"story": str, "questions": {"input_text": [str]}, "answers": {"input_text": [str]}},
        # lm-eval's: up to the next question, and its default of 256 tokens.
        own=Own(rows=_coqa, scorer=coqa, metrics=("em", "f1"), stop=("\nQ:",), max_new_tokens=256, examples="train"),
    ),
    "qasper": Entry(
        kind="generation",
        headline="f1",
        dataset="allenai/qasper",
        split="validation",
        size=Size(items=900, requests=1, prompt_tokens=270, answer_tokens=40, megabytes=60),
        fields={
            "title": str,
            "abstract": str,
            "qas": {"question": [str], "answers": [{"answer": [_QASPER_BLOB]}]},
        },
        # lm-eval's qasper_freeform: up to a line's end, and its default of 256 tokens.
        own=Own(rows=_qasper, scorer=qasper, metrics=("f1",), stop=("\n",), max_new_tokens=256, examples="train"),
    ),
    "gsm8k": Entry(
        kind="generation",
        headline="exact_match_strict_match",
        dataset="openai/gsm8k",
        subset="main",
        split="test",
        size=Size(items=1_319, requests=1, prompt_tokens=150, answer_tokens=150, shots=5, megabytes=7),
        fields={"question": str, "answer": str},
        harness="gsm8k",
        folder="gsm8k",
    ),
    "hellaswag": Entry(
        kind="choice",
        headline="acc_norm",
        dataset="Rowan/hellaswag",
        split="validation",
        size=Size(items=10_042, requests=4, prompt_tokens=80, answer_tokens=30, megabytes=70),
        fields={"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": [str], "label": int | str},
        harness="hellaswag",
        folder="hellaswag",
    ),
    "piqa": Entry(
        kind="choice",
        headline="acc",
        dataset="baber/piqa",
        split="validation",
        size=Size(items=1_838, requests=2, prompt_tokens=15, answer_tokens=25, megabytes=5),
        fields={"goal": str, "sol1": str, "sol2": str, "label": (0, 1)},
        harness="piqa",
        folder="piqa",
    ),
    "copa": Entry(
        kind="choice",
        headline="acc",
        dataset="aps/super_glue",
        subset="copa",
        split="validation",
        size=Size(items=100, requests=2, prompt_tokens=10, answer_tokens=8, megabytes=1),
        fields={"premise": str, "choice1": str, "choice2": str, "question": ("cause", "effect"), "label": (0, 1)},
        harness="copa",
        folder="super_glue/copa",
    ),
    "arc_challenge": Entry(
        kind="choice",
        headline="acc_norm",
        dataset="allenai/ai2_arc",
        subset="ARC-Challenge",
        split="test",
        size=Size(items=1_172, requests=4, prompt_tokens=35, answer_tokens=6, megabytes=1),
        fields={"question": str, "choices": {"text": [str], "label": [str]}, "answerKey": str},
        harness="arc_challenge",
        folder="arc",
    ),
    "boolq": Entry(
        kind="choice",
        headline="acc",
        dataset="aps/super_glue",
        subset="boolq",
        split="validation",
        size=Size(items=3_270, requests=2, prompt_tokens=145, answer_tokens=1, megabytes=9),
        fields={"passage": str, "question": str, "label": (0, 1)},
        harness="boolq",
        folder="super_glue/boolq",
    ),
}
"""Tasks by our names."""
