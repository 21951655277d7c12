"""The built-in text: three disjoint splits, the same on every machine, and recall questions that reach back."""

import hashlib
import itertools
import os
import re
import subprocess
import sys

import pytest

from tda.reference.text import KINDS, SPLITS, TextSplit, Words, document, documents, recall_items, split_of

WINDOW = 64
DOCUMENTS = 12


def windows(text: str) -> set[bytes]:
    """All passages of 64 bytes."""
    data = text.encode()
    return {data[start : start + WINDOW] for start in range(len(data) - WINDOW + 1)}


def texts_of(split: TextSplit) -> list[str]:
    kinds = [document(kind, split, index, min_bytes=1200).text for kind in KINDS for index in range(DOCUMENTS)]
    return kinds + [item.context + item.answer for item in itertools.islice(recall_items(split), DOCUMENTS)]


def test_no_passage_of_64_bytes_occurs_in_two_splits() -> None:
    passages = {split: set().union(*map(windows, texts_of(split))) for split in SPLITS}
    assert all(len(found) > 50_000 for found in passages.values())
    for one, other in itertools.combinations(SPLITS, 2):
        shared = passages[one] & passages[other]
        assert not shared, f"{one} and {other} share {len(shared)} passages, e.g. {next(iter(shared))!r}"


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_a_kind_differ(kind: str) -> None:
    for split in SPLITS:
        texts = [document(kind, split, index).text for index in range(30)]
        assert len(set(texts)) == 30
        assert len({text[:WINDOW] for text in texts}) > 15


def test_kinds_look_unlike() -> None:
    """Half of a kind's frequent words are its own, so that neurons can belong to a kind."""
    vocabulary = {
        kind: set(re.findall(r"[a-zA-Z]{3,}", " ".join(document(kind, "train", index).text for index in range(10))))
        for kind in KINDS
    }
    for one, other in itertools.combinations(KINDS, 2):
        shared = len(vocabulary[one] & vocabulary[other])
        assert shared < 0.5 * min(len(vocabulary[one]), len(vocabulary[other])), (one, other)


@pytest.mark.parametrize("split", SPLITS)
def test_invented_words_belong_to_their_split(split: TextSplit) -> None:
    words = Words(split, "some seed")
    assert all(split_of(words.name()) == split for _ in range(200))
    assert all(split_of(word.upper()) == split_of(word) for word in ("tromai", "Klean"))


@pytest.mark.parametrize("min_bytes", [1, 300, 900, 5000])
def test_length_and_prefix(min_bytes: int) -> None:
    for kind in KINDS:
        text = document(kind, "train", 3, min_bytes=min_bytes).text
        assert len(text.encode()) >= min_bytes
        assert text.isascii()
        assert document(kind, "train", 3, min_bytes=2 * min_bytes).text.startswith(text)


def test_the_stream_takes_the_kinds_in_turn() -> None:
    found = list(itertools.islice(documents("calibration", min_bytes=200), 2 * len(KINDS) + 1))
    assert [d.kind for d in found] == [*KINDS, *KINDS, KINDS[0]]
    assert [d.index for d in found] == [0] * len(KINDS) + [1] * len(KINDS) + [2]
    assert found[4] == document(KINDS[4], "calibration", 0, min_bytes=200)
    assert all(d.split == "calibration" for d in found)


def test_unknown_kind_and_split() -> None:
    with pytest.raises(ValueError, match="'poem'; known: story"):
        document("poem", "train", 0)
    with pytest.raises(ValueError, match="unknown split 'test'; known: train"):
        document("story", "test", 0)


def test_same_text_in_every_process() -> None:
    """Whatever the hash seed."""
    script = (
        "import hashlib, itertools; from tda.reference.text import *\n"
        "parts = [d.text for s in SPLITS for d in itertools.islice(documents(s), 25)]\n"
        "parts += [i.context + i.answer for i in itertools.islice(recall_items('evaluation'), 5)]\n"
        "print(hashlib.sha256(''.join(parts).encode()).hexdigest())"
    )
    parts = [d.text for s in SPLITS for d in itertools.islice(documents(s), 25)]
    parts += [i.context + i.answer for i in itertools.islice(recall_items("evaluation"), 5)]
    here = hashlib.sha256("".join(parts).encode()).hexdigest()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert done.stdout.strip() == here, done.stderr


@pytest.mark.parametrize("distance", [256, 700])
def test_recall_reaches_back(distance: int) -> None:
    """The answer was named, at least that many bytes before, and not since."""
    for split in SPLITS:
        for item in itertools.islice(recall_items(split, distance_bytes=distance), 40):
            place = item.context.rindex(item.answer)
            assert len(item.context) - place - len(item.answer) >= distance
            assert item.context.endswith(" sang a song of ")
            assert split_of(item.answer) == split


def test_recall_questions_in_tokens() -> None:
    from experiments.train import byte_tokenizer
    from tda.quality import recall_questions
    from tda.quality.recall import DISTANCE_TOKENS, LONGEST_TOKENS

    tokenizer = byte_tokenizer()
    for question in recall_questions(tokenizer, 20):
        context, answer = (part.tolist() for part in (question.context, question.answer))
        places = [start for start in range(len(context)) if context[start : start + len(answer)] == answer]
        assert places
        assert len(context) - places[-1] - len(answer) >= DISTANCE_TOKENS
        assert len(context) + len(answer) <= LONGEST_TOKENS
        assert context[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in context[1:] + answer
