"""Calibration text that holds what a task asks is refused, wherever it was planted; other text is not."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_tokenizers
from hypothesis import given
from hypothesis import strategies as st
from task_rows import write_lines

from tda.quality.documents import encode
from tda.tasks import Ask, leaks
from tda.tasks.content import TaskContent, TaskItem
from tda.tasks.local import examples_path
from tda.tasks.run import prepare
from tda.thresholds import ModelIdentity, Thresholds, hash_text

INSTRUCTION = "Read the following question with care and then choose the one answer that suits it best of all."


def text(seed: str, count: int) -> str:
    """Made-up words, none of which stands in a text of another seed."""
    draw = random.Random(seed)
    return " ".join(f"{seed}{draw.randrange(10**9)}" for _ in range(count))


def asked(number: int, question: str = "", answer: str = "", shot: str = "") -> TaskItem:
    question = question or f"{INSTRUCTION} {text(f'q{number}n', 30)}"
    answer = answer or text(f"a{number}n", 20)
    return TaskItem(number, f"System. {shot}{question}", f"System. {question}", question, (), answer, (answer,))


def task_of(items: list[TaskItem]) -> TaskContent:
    return TaskContent("tales", tuple(items), tuple(dict.fromkeys((item.question, item.answers) for item in items)))


CLEAN = [asked(number) for number in range(6)]


def around(passage: str) -> list[str]:
    """A passage in the middle of a long document, after another document."""
    return [text("other", 50), f"{text('before', 500)} {passage} {text('behind', 500)}"]


@pytest.mark.parametrize(
    ("item", "passage", "place"),
    [
        (asked(3, question=f"{INSTRUCTION} {text('x', 30)}"), text("x", 30), "the question"),
        (asked(3, answer=text("y", 20)), text("y", 20), "an answer"),
        (asked(3, shot=f"{INSTRUCTION} {text('z', 40)}\n\n"), text("z", 40), "a few-shot example"),
    ],
)
def test_planted(item: TaskItem, passage: str, place: str) -> None:
    task = task_of([*CLEAN[:3], item, *CLEAN[4:]])
    words = leaks.words(passage)[:13]
    for planted in (passage, passage.upper().replace(" ", " - ") + "!"):
        with pytest.raises(ValueError, match=f'task tales asks in item 3, in {place}: "{" ".join(words)}"'):
            leaks.check(around(planted), [task])
    leaks.check(around(" ".join(passage.split()[:12])), [task])
    leaks.check(around(" ".join(reversed(passage.split()))), [task])
    leaks.check([], [task])
    leaks.check(["", "short"], [task])


def test_an_instruction_is_no_evidence() -> None:
    """It stands in every question; few-shot examples and the text have it too."""
    assert len(leaks.words(INSTRUCTION)) > leaks.RUN
    shots = [asked(number, shot=f"{INSTRUCTION} {text(f's{number}n', 30)}\n\n") for number in range(6)]
    for items in (CLEAN, shots):
        leaks.check(around(INSTRUCTION), [task_of(items)])
    with pytest.raises(ValueError, match="item 0, in the question"):  # three items do not show what all share
        leaks.check(around(INSTRUCTION), [task_of(CLEAN[:3])])
    unlike = [asked(number, question=text(f"u{number}n", 30)) for number in range(4)]
    with pytest.raises(ValueError, match="item 4, in the question"):  # not in every question
        leaks.check(around(INSTRUCTION), [task_of([*unlike, CLEAN[4]])])


def test_a_passage_that_all_items_share_is_evidence() -> None:
    passage = text("passage", 80)
    items = [asked(number, question=f"{passage} {text(f'w{number}n', 10)}") for number in range(6)]
    with pytest.raises(ValueError, match="item 0, in the question"):
        leaks.check(around(passage), [task_of(items)])


def test_choices_that_are_always_the_same_are_no_evidence() -> None:
    agree = "I agree with all of what is said above"
    same = [asked(number, answer=agree) for number in range(5)]
    leaks.check(around(agree), [task_of(same)])
    with pytest.raises(ValueError, match='item 0, in an answer: "i agree with all of what is said above"'):
        leaks.check(around(agree), [task_of([asked(0, answer=agree), *CLEAN[1:]])])


@pytest.mark.parametrize("count", [7, 8, 12])
def test_a_short_question_leaks_whole(count: int) -> None:
    question = text("short", count)
    task = task_of([asked(0, question=question), *CLEAN[1:]])
    leaks.check(around(" ".join(question.split()[:-1])), [task])
    if count < leaks.SHORTEST:
        leaks.check(around(question), [task])
    else:
        with pytest.raises(ValueError, match=f'in the question: "{" ".join(leaks.words(question))}"'):
            leaks.check(around(question), [task])


@given(data=st.data())
def test_against_a_plain_search(data: st.DataObject) -> None:
    """On few different words, so that runs overlap and repeat: exactly those texts that share a run are refused."""
    word = st.sampled_from("abc")
    question = data.draw(st.lists(word, min_size=13, max_size=40))
    document = data.draw(st.lists(word, max_size=40))
    start, count = data.draw(st.integers(0, len(question) - 1)), data.draw(st.integers(0, 14))
    document += question[start : start + count]
    runs = {tuple(document[at : at + 13]) for at in range(len(document) - 12)}
    leaked = any(tuple(question[at : at + 13]) in runs for at in range(len(question) - 12))
    task = task_of([asked(0, question=" ".join(question), answer="none")])
    try:
        leaks.check([" ".join(document)], [task])
    except ValueError:
        assert leaked
    else:
        assert not leaked


def test_words() -> None:
    found = leaks.words("It’s the “Straße”, don't: well-known_1 ﬁx!")
    assert found == ["its", "the", "strasse", "dont", "well", "known", "1", "fix"]


def test_documents_are_read_once() -> None:
    def documents() -> Iterator[str]:
        yield from around(text("x", 30))

    stream = documents()
    with pytest.raises(ValueError, match="item 1"):
        leaks.check(stream, [task_of(CLEAN), task_of([CLEAN[0], asked(1, question=text("x", 30)), *CLEAN[2:]])])


@pytest.mark.parametrize("chat", [False, True])
def test_real_prompts(chat: bool, tmp_path: Path) -> None:
    """Through lm-eval, with examples and chat template: planted in question, choice and example, and not planted."""
    tokenizer = tiny_tokenizers.build.__wrapped__("qwen")
    system = text("system", 20)
    tokenizer.chat_template = (
        f"<|im_start|>{system}<|im_end|>"
        "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    )
    rows = [
        {
            "query": f"{INSTRUCTION} {text(f'q{number}n', 30)}",
            "choices": [text(f"c{number}n", 15), text(f"d{number}n", 15)],
            "gold": 0,
        }
        for number in range(8)
    ]
    path = write_lines(tmp_path / "items.jsonl", rows[:5])
    write_lines(examples_path(path), rows[5:])
    (prepared,) = prepare([Ask("piqa", path, shots=2, chat=chat)], tokenizer)
    task = [prepared.content]
    assert (system in prepared.content.items[0].prompt) == chat
    for clean in (system, INSTRUCTION, text("clean", 2000), f"{INSTRUCTION} {text('more', 50)}"):
        leaks.check(around(clean), task)
    for planted, place in (
        (rows[2]["query"], "item 2, in the question"),
        (rows[3]["choices"][1], "item 3, in an answer"),
        (rows[6]["query"], "in a few-shot example"),
        (rows[6]["choices"][0], "in a few-shot example"),
    ):
        with pytest.raises(ValueError, match=f"task piqa .*item .*{place.removeprefix('item ')}"):
            leaks.check(around(planted), task)


def test_thresholds_know_their_text() -> None:
    """By 64 tokens in a row, of a prompt or where it meets an answer."""
    tokenizer = tiny_tokenizers.build("llama-3")
    passage, answer = text("x", 60), text("y", 40)

    def thresholds(document: str) -> Thresholds:
        identity = ModelIdentity(id="m", config_hash="c", layers=1, intermediate_size=4)
        rows: list[np.ndarray] = [encode(tokenizer, document).numpy()]
        return Thresholds(method={"name": "cats"}, model=identity, dtype="float32", text=hash_text(rows))

    task = task_of([CLEAN[0], asked(1, question=passage, answer=answer)])
    for known in (passage, f"System. {passage}", answer):
        with pytest.raises(ValueError, match=r"task tales, item 1: evaluation document .*shares"):
            leaks.check_thresholds(thresholds(known), tokenizer, [task])
    leaks.check_thresholds(thresholds(text("z", 300)), tokenizer, [task])
