"""Documents as tokens: a prompt and its continuation, from JSONL text or from the built-in streams."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tda.reference import text as builtin

BUILT_IN = "built-in stories"
COARSE_BYTES = 8
"""More bytes than tokens have on average, so that a built-in document is long enough for a token count."""
MARGIN = 64
"""Tokens that a cut text holds beyond those that are wanted: where it was cut, the whole text's tokens may differ."""
SURROGATE = re.compile("[\ud800-\udfff]")
ESCAPED = 0xDC00
"""Python reads a byte that is no UTF-8 as the surrogate of this number and the byte's."""


@dataclass(frozen=True)
class Document:
    """A document cut into prompt and continuation.

    Attributes
    ----------
    number : int
        Its place in its stream, the same in every run.
    kind : str
        What kind of text it is.
    prompt, continuation : Tensor
        int64 [P] and [G]
    """

    number: int
    kind: str
    prompt: Tensor
    continuation: Tensor


def evaluation_documents(
    tokenizer: Any, prompt_tokens: int, new_tokens: int, count: int, *, text: Path | None = None
) -> list[Document]:
    """Documents to evaluate on: of a JSONL file, or of the built-in evaluation stream, kinds in turn.

    Documents of equal tokens count once: their numbers are no evidence of their own.

    Raises
    ------
    ValueError
        If the file holds too few documents of that length.
    """
    rows = itertools.islice(_distinct(_rows(tokenizer, prompt_tokens + new_tokens, "evaluation", text)), count)
    documents = [
        Document(number, kind, tokens[:prompt_tokens], tokens[prompt_tokens:])
        for number, (kind, tokens) in enumerate(rows)
    ]
    _check_count(documents, count, prompt_tokens + new_tokens, text, "different documents")
    return documents


def _distinct(rows: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Rows without those whose tokens came before."""
    seen: set[bytes] = set()
    for kind, tokens in rows:
        content = tokens.numpy().tobytes()
        if content not in seen:
            seen.add(content)
            yield kind, tokens


def calibration_batches(
    tokenizer: Any, tokens: int, count: int, *, text: Path | None = None, batch: int = 8
) -> list[dict[str, Tensor]]:
    """Batches of whole documents for `tda.calibrate`: of a JSONL file, or of the built-in calibration stream."""
    rows = [row for _, row in itertools.islice(_rows(tokenizer, tokens, "calibration", text), count)]
    _check_count(rows, 1, tokens, text)
    return [{"input_ids": torch.stack(rows[start : start + batch])} for start in range(0, len(rows), batch)]


def rows_of(documents: Sequence[Document], device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack documents of equal lengths: prompts [B, P] and continuations [B, G]."""
    prompts = torch.stack([document.prompt for document in documents]).to(device)
    return prompts, torch.stack([document.continuation for document in documents]).to(device)


def random_documents(vocabulary: int, prompt_tokens: int, new_tokens: int, count: int, seed: int) -> list[Document]:
    """Documents of random tokens, for models with random weights."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Document(
            number,
            "random",
            *torch.randint(vocabulary, (total,), generator=generator).split([prompt_tokens, new_tokens]),
        )
        for number, total in enumerate([prompt_tokens + new_tokens] * count)
    ]


def _rows(
    tokenizer: Any, length: int, split: Literal["calibration", "evaluation"], text: Path | None
) -> Iterator[tuple[str, Tensor]]:
    """Kind and the first `length` tokens of every document that is long enough."""
    if text is None:
        documents: Iterator[tuple[str, str]] = (
            (document.kind, document.text)
            for document in builtin.documents(split, min_bytes=length * bytes_per_token(tokenizer))
        )
    else:
        documents = ((text.name, line) for line in read_jsonl(text))
    for kind, content in documents:
        tokens = encode(tokenizer, content, at_most=length)
        if len(tokens) == length:
            yield kind, tokens


def bytes_per_token(tokenizer: Any) -> int:
    """Bytes that surely hold one token more: 1 where tokens are bytes."""
    return COARSE_BYTES if len(tokenizer) > 300 else 1


def encode(tokenizer: Any, content: str, *, at_most: int | None = None, control_words: bool = False) -> Tensor:
    """Token ids of a text, with one BOS in front where the tokenizer has one, and nothing after it: int64 [T].

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer.
    content : str
        The text.
    at_most : int, optional
        How many tokens are wanted. A longer text is cut, and tokenised only as far as it takes.
    control_words : bool
        Whether words as ``</s>`` or ``<|im_start|>`` become the control tokens of that name, as in a prompt that is
        typed. In a document they are text.

    Raises
    ------
    ValueError
        If the text is no valid Unicode.
    """
    ids = _ids(tokenizer, content, at_most, control_words)
    bos = tokenizer.bos_token_id
    if bos is not None:
        ids = [bos, *itertools.dropwhile(lambda token: token == bos, ids)]
    return torch.tensor(ids[:at_most], dtype=torch.int64)


def _ids(tokenizer: Any, content: str, at_most: int | None, control_words: bool) -> list[int]:
    """Tokens of a text without BOS and EOS: at least `at_most` of them where it holds so many."""
    size = len(content) if at_most is None else (at_most + MARGIN) * COARSE_BYTES
    while True:
        part = content[:size]
        check_characters(part)
        ids: list[int] = tokenizer(
            part, add_special_tokens=False, split_special_tokens=not control_words, verbose=False
        )["input_ids"]
        if size >= len(content) or (at_most is not None and len(ids) >= at_most + MARGIN):
            return ids
        size *= 4


def built_in_uses(
    model: str, *, scored: bool, calibrated: bool, calibration_option: str = "--calibration-text"
) -> str | None:
    """What is said of a model that was scored or calibrated on the built-in stories, made for reference models."""
    used = {"scored": "--text"} if scored else {}
    used |= {"calibrated": calibration_option} if calibrated else {}
    if not used or model.startswith("ref:"):
        return None
    told = f"{' and '.join(used)} on built-in stories of another kind than the model's text"
    return f"{told}; give {' and '.join(used.values())}"


def text_facts(text: Path | None) -> tuple[str, str, int]:
    """Name, digest and bytes of an evaluation text; of the built-in stream, those of what generates it.

    Raises
    ------
    ValueError
        If the file cannot be read.
    """
    path = Path(builtin.__file__) if text is None else text
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"no text at {path}: {error.strerror}") from error
    name = BUILT_IN if text is None else text.name.encode(errors="replace").decode()
    return name, hashlib.sha256(content).hexdigest()[:16], len(content)


def read_jsonl(path: Path) -> Iterator[str]:
    """Texts of a JSONL file, one ``{"text": …}`` a line, in UTF-8.

    Raises
    ------
    ValueError
        If the file cannot be read or a line has another form.
    """
    for place, line, value in json_lines(path, '{"text": ...}'):
        content = value.get("text") if isinstance(value, dict) else None
        if not isinstance(content, str):
            raise ValueError(f'{place}: expected {{"text": "..."}}, got {line[:60]!r}')
        try:
            check_characters(content)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        yield content


def json_lines(path: Path, shape: str) -> Iterator[tuple[str, str, object]]:
    """Lines of a JSONL file that are not blank: the place, the line, and what it holds; None where it is no JSON.

    Raises
    ------
    ValueError
        If the file cannot be read, or a line is no UTF-8. `shape` is what a line should look like.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{path}, line {number}"
                    yield place, line, _parsed(line, place)
    except OSError as error:
        raise ValueError(
            f"no text at {path}: {error.strerror}; expected a JSONL file with one {shape} a line"
        ) from error


def _parsed(line: str, place: str) -> object:
    """What a line of JSON holds; a byte that is no UTF-8 was read as a surrogate."""
    broken = SURROGATE.search(line)
    if broken is not None:
        byte = ord(broken[0]) - ESCAPED
        raise ValueError(f"{place}: expected UTF-8, got the byte 0x{byte:02X} as character {broken.start() + 1}")
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value


def check_characters(content: str) -> None:
    """Raise ValueError if a text holds half of a surrogate pair."""
    broken = SURROGATE.search(content)
    if broken is not None:
        raise ValueError(
            f"expected Unicode text, got U+{ord(broken[0]):04X}, half of a surrogate pair, as character "
            f"{broken.start() + 1}"
        )


def _check_count(found: Sequence[object], count: int, tokens: int, text: Path | None, what: str = "documents") -> None:
    if len(found) < count:
        told = f"{len(found)} {what} of at least {tokens} tokens, {count} are needed"
        raise ValueError(f"{text or BUILT_IN}: {told}")
