"""Documents as tokens: a prompt and its continuation, from JSONL text or from the built-in streams."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tda.reference import text as builtin

COARSE_BYTES = 8
"""More bytes than tokens have on average, so that a built-in document is long enough for a token count."""


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

    Raises
    ------
    ValueError
        If the file holds too few documents of that length.
    """
    rows = itertools.islice(_rows(tokenizer, prompt_tokens + new_tokens, "evaluation", text), count)
    documents = [
        Document(number, kind, tokens[:prompt_tokens], tokens[prompt_tokens:])
        for number, (kind, tokens) in enumerate(rows)
    ]
    _check_count(documents, count, prompt_tokens + new_tokens, text)
    return documents


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
        tokens = encode(tokenizer, content)
        if len(tokens) >= length:
            yield kind, tokens[:length]


def bytes_per_token(tokenizer: Any) -> int:
    """Bytes that surely hold one token more: 1 where tokens are bytes."""
    return COARSE_BYTES if len(tokenizer) > 300 else 1


def encode(tokenizer: Any, content: str) -> Tensor:
    """Token ids of a text, with a BOS in front where the tokenizer has one: int64 [T]."""
    ids = tokenizer(content, add_special_tokens=True, verbose=False)["input_ids"]
    if tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
        ids = [tokenizer.bos_token_id, *ids]
    if tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]:
        ids = ids[:-1]
    return torch.tensor(ids, dtype=torch.int64)


def read_jsonl(path: Path) -> Iterator[str]:
    """Texts of a JSONL file, one ``{"text": …}`` a line.

    Raises
    ------
    ValueError
        If the file is missing or a line has another form.
    """
    if not path.is_file():
        raise ValueError(f'no text at {path}; expected a JSONL file with one {{"text": ...}} a line')
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                content = None
            if not isinstance(content, str):
                raise ValueError(f'{path}, line {number}: expected {{"text": "..."}}, got {line[:60]!r}')
            yield content


def _check_count(found: Sequence[object], count: int, tokens: int, text: Path | None) -> None:
    if len(found) < count:
        raise ValueError(f"{text}: {len(found)} documents of at least {tokens} tokens, {count} are needed")
