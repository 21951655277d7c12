"""Local JSONL: both shapes, and a sentence for every wrong line."""

import json
from pathlib import Path
from typing import Any

import pytest
from task_rows import ROWS, write_lines

from tda.tasks.catalogue import CATALOGUE
from tda.tasks.local import examples_path, read

CHOICE: dict[str, Any] = {"query": "Which is a mammal?", "choices": ["a cat", "a fly"], "gold": 0}
GENERATION: dict[str, Any] = {"prompt": "Say hello.", "answers": ["hello", "Hello!"]}


def read_choice(path: Path) -> Any:
    return read(path, "choice", CATALOGUE["hellaswag"].fields)


def test_simple_shape(tmp_path: Path) -> None:
    other = {**CHOICE, "query": "Which flies?", "gold": 1, "id": "left out"}
    found = read_choice(write_lines(tmp_path / "items.jsonl", [CHOICE, other]))
    assert found.simple
    assert found.rows == [CHOICE, {name: other[name] for name in CHOICE}]
    assert found.examples == []


@pytest.mark.parametrize("name", ROWS)
def test_the_data_sets_own_fields(name: str, tmp_path: Path) -> None:
    entry = CATALOGUE[name]
    found = read(write_lines(tmp_path / "items.jsonl", [ROWS[name].row]), entry.kind, entry.fields)
    assert not found.simple
    assert found.rows == [ROWS[name].row]


def test_byte_order_mark_line_ends_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    text = f"\ufeff{json.dumps(GENERATION)}\r\n\r\n   \n" + json.dumps({**GENERATION, "prompt": "日本 \U0001f600"})
    path.write_bytes(text.encode())
    assert [row["prompt"] for row in read(path, "generation", None).rows] == ["Say hello.", "日本 \U0001f600"]


def test_an_item_counts_once(tmp_path: Path) -> None:
    other = {**CHOICE, "query": "Which flies?"}
    found = read_choice(write_lines(tmp_path / "items.jsonl", [CHOICE, other, {**CHOICE, "id": 3}, other]))
    assert found.rows == [CHOICE, other]
    assert found.copies == 2


def test_examples_beside(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "items.jsonl", [CHOICE])
    example = {**CHOICE, "query": "Which flies?", "gold": 1}
    assert examples_path(path).name == "items.train.jsonl"
    write_lines(examples_path(path), [example])
    assert read_choice(path).examples == [example]
    write_lines(examples_path(path), [example, CHOICE])
    with pytest.raises(ValueError, match=r"items\.train\.jsonl, line 2: .*an item .*items\.jsonl"):
        read_choice(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"query": 5}, r"field 'query': expected a string, got 5"),
        ({"query": " "}, r"field 'query': expected a text, got none"),
        ({"choices": "a cat"}, r"field 'choices': expected a list of strings, got \"a cat\""),
        ({"choices": ["a cat", None]}, r"field 'choices\[1\]': expected a string, got null"),
        ({"choices": []}, r"field 'choices': expected at least 2, got 0"),
        ({"choices": ["a cat"]}, r"field 'choices': expected at least 2, got 1"),
        ({"choices": ["a cat", ""]}, r"field 'choices\[1\]': expected a text, got none"),
        ({"gold": 2}, r"field 'gold': expected a number from 0 to 1, .* got 2"),
        ({"gold": -1}, r"field 'gold': expected a number from 0 to 1, .* got -1"),
        ({"gold": True}, r"field 'gold': expected a whole number, got true"),
        ({"gold": "0"}, r"field 'gold': expected a whole number, got \"0\""),
        ({"choices": ["a cat", "\ud83d"]}, r"field 'choices\[1\]': expected Unicode text, got U\+D83D"),
    ],
)
def test_wrong_choice_line(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "items.jsonl", [CHOICE, {**CHOICE, **change}])
    with pytest.raises(ValueError, match=rf"items\.jsonl, line 2, {told}"):
        read_choice(path)


def test_wrong_generation_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    write_lines(path, [GENERATION, {**GENERATION, "answers": []}])
    with pytest.raises(ValueError, match=r"line 2, field 'answers': .*1, got 0"):
        read(path, "generation", None)
    write_lines(path, [{"prompt": "Say hello."}])
    with pytest.raises(ValueError, match=r"line 1: .*'answers'; expected \{\"prompt\".*, got prompt"):
        read(path, "generation", CATALOGUE["xsum"].fields)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("hellaswag", {"endings": "x"}, "field 'endings': expected a list of strings"),
        ("hellaswag", {"label": None}, "field 'label': expected a whole number or a string, got null"),
        ("copa", {"question": "why"}, 'field \'question\': expected "cause" or "effect", got "why"'),
        ("piqa", {"label": 2}, "field 'label': expected 0 or 1, got 2"),
        ("arc_challenge", {"choices": ["a"]}, "field 'choices': expected an object with text, label"),
        ("arc_challenge", {"choices": {"text": ["a"]}}, "there is no field 'choices.label'"),
        ("coqa", {"questions": {"input_text": [1]}}, r"field 'questions.input_text\[0\]': expected a string, got 1"),
        (
            "qasper",
            {"qas": {"question": ["a"], "answers": [{"answer": [{}]}]}},
            r"no field 'qas.answers\[0\].answer\[0\].unan",
        ),
    ],
)
def test_wrong_line_of_a_data_set(name: str, change: dict[str, Any], told: str, tmp_path: Path) -> None:
    entry = CATALOGUE[name]
    path = write_lines(tmp_path / "items.jsonl", [ROWS[name].row, {**ROWS[name].row, **change}])
    with pytest.raises(ValueError, match=rf"line 2.*{told}"):
        read(path, entry.kind, entry.fields)


def test_lines_of_two_shapes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "items.jsonl", [CHOICE, ROWS["hellaswag"].row])
    with pytest.raises(ValueError, match=r"line 2: .*no field 'query'"):
        read_choice(path)
    path = write_lines(tmp_path / "items.jsonl", [{"text": "a b", "id": 1}, {"id": 2}])
    with pytest.raises(ValueError, match="line 2: there is no field 'text'"):
        read(path, None, None)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "items.jsonl holds no item; expected"),
        (b"\n \r\n", "items.jsonl holds no item; expected"),
        (b"[1]\n", r"line 1: expected \{\"query\".*, got '\[1\]'"),
        (b'{"query": \n', "line 1: expected .*, got"),
        (b"\xff\xfe{}\n", "line 1: expected UTF-8, got the byte 0xFF as character 1"),
    ],
)
def test_no_items(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_choice(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: No such file.*\{\"query\""):
        read_choice(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="no text at"):
        read_choice(tmp_path)
