"""Quality in slices: over the prompt's length, the position in the continuation, the batch and the kind of text.

A mean over all tokens hides where a method loses. Every slice holds a method's loss and dense's on the same documents,
so its interval is paired; and what is compared within a slicing shares its documents too, but for kinds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import nn

from tda.contracts import Method, check_choice
from tda.methods import METHODS
from tda.names import Over, Protocol
from tda.quality.documents import Document
from tda.quality.evaluate import Evaluator
from tda.quality.losses import Loss, Slice, joined, losses
from tda.quality.recall import Question, recall

SHORTEST = 16
"""The shortest prompt, in tokens; each further one is `STEP` times as long."""
STEP = 4
BATCHES = (1, 2, 4, 8)
"""Documents that share one set. The last is also how many are scored together."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "prose": ("story", "recipe", "dialogue", "letter", "weather"),
    "code-like": ("code", "log", "catalogue"),
    "reasoning-like": ("arithmetic", "table"),
}
"""Kinds of the built-in text that are alike. Code-like lines follow a grammar; in reasoning-like ones numbers are
results of numbers before them (each line of a table ends with a sum)."""
RECALL = "recall"
"""The recall questions as a kind: a word that the context named long before, every token of it computed sparsely."""


# long: what each slicing means is explained
def slices(
    over: Over,
    model: nn.Module,
    documents: Sequence[Document],
    methods: Sequence[Method],
    *,
    protocol: Protocol = "decode",
    bos: int | None = None,
    questions: Sequence[Question] = (),
) -> list[Slice]:
    """The loss of methods in each slice, method after method.

    "length": the prompt is cut to its last 16, 64, 256, … tokens. The continuation stays the same, so a difference is
    the prompt's. The base is the whole prompt.

    "position": tokens 1, 2-4, 5-16, … of the continuation, all from the same passes, as the selection goes stale. The
    base is the first slice. A position that the protocol never computes sparsely is in none: under "decode" the first.

    "batch": 1, 2, 4 and 8 documents share one set (rows="shared"). They follow each other in their stream, so built-in
    ones are of different kinds. The base is a set for each (rows="per_row"). A method without this option is the same
    in any batch, and has one slice.

    "kind": every kind of text, groups of kinds that are alike (`GROUPS`), and the recall questions. The documents
    are others in each, so there is no base.

    Parameters
    ----------
    over : {"length", "position", "batch", "kind"}
        What the slices are of.
    model : nn.Module
        A trained decoder.
    documents : sequence of Document
        Of equal lengths.
    methods : sequence of Method
        Fitted where they need that; dense among them is passed over.
    protocol : str
        As for `tda.score`.
    bos : int, optional
        The token that stays in front of a prompt that is cut.
    questions : sequence of Question
        Recall items, for "kind"; always scored with every token sparse.

    Raises
    ------
    ValueError
        If `over` is unknown, or prompts, continuations or documents are too few to be compared.
    """
    check_choice("over", over, get_args(Over))
    methods = [method for method in methods if method.name != "dense"]
    if over == "length":
        return list(_by_length(model, documents, methods, protocol, bos))
    if over == "position":
        return list(_by_position(model, documents, methods, protocol))
    if over == "batch":
        return list(_by_batch(model, documents, methods, protocol))
    found = [*_by_kind(model, documents, methods, protocol), *_by_recall(model, methods, questions)]
    return sorted(found, key=lambda one: methods.index(one.method))


def lengths(prompt_tokens: int) -> list[int]:
    """Prompt lengths that are compared: 16, 64, 256, …, and the whole prompt.

    Raises
    ------
    ValueError
        If the prompt is too short for two of them.
    """
    if prompt_tokens <= SHORTEST:
        raise ValueError(
            f"lengths from {SHORTEST} tokens on are compared, so prompts must be longer; got {prompt_tokens} tokens"
        )
    return [*_powers(SHORTEST, prompt_tokens), prompt_tokens]


def positions(new_tokens: int) -> list[range]:
    """Places in a continuation, from 0, that are one slice: the first, then each up to `STEP` times as far.

    Raises
    ------
    ValueError
        If there are no tokens.
    """
    if new_tokens < 1:
        raise ValueError(f"a continuation has at least one token, got {new_tokens}")
    ends = [*_powers(1, new_tokens), new_tokens]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _powers(first: int, below: int) -> Iterator[int]:
    while first < below:
        yield first
        first *= STEP


def cut(document: Document, tokens: int, bos: int | None = None) -> Document:
    """A document whose prompt is cut to its last tokens; a BOS in front stays, and counts as one of them."""
    if tokens >= len(document.prompt):
        return document
    front = document.prompt[:1] if bos is not None and int(document.prompt[0]) == bos else document.prompt[:0]
    kept = document.prompt[len(document.prompt) - tokens + len(front) :]
    return replace(document, prompt=torch.cat([front, kept]))


def _evaluator(model: nn.Module, documents: Sequence[Document], protocol: Protocol, *, together: int = 1) -> Evaluator:
    return Evaluator(model, documents, batch=BATCHES[-1], together=together, protocol=protocol)


def _whole(documents: Sequence[Document]) -> list[range]:
    return [range(len(documents[0].continuation))]


def _with_base(found: Sequence[Slice], base: Slice) -> list[Slice]:
    return [one if one is base else replace(one, base=base) for one in found]


def _by_length(
    model: nn.Module, documents: Sequence[Document], methods: Sequence[Method], protocol: Protocol, bos: int | None
) -> Iterator[Slice]:
    found: list[list[Slice]] = [[] for _ in methods]
    for tokens in lengths(len(documents[0].prompt)):
        evaluator = _evaluator(model, [cut(document, tokens, bos) for document in documents], protocol)
        (dense,) = losses(evaluator, METHODS["dense"](), _whole(documents))
        for each, method in zip(found, methods, strict=True):
            (own,) = losses(evaluator, method, _whole(documents))
            each.append(Slice(method, str(tokens), own, dense))
    for each in found:
        yield from _with_base(each, each[-1])


def _by_position(
    model: nn.Module, documents: Sequence[Document], methods: Sequence[Method], protocol: Protocol
) -> Iterator[Slice]:
    evaluator = _evaluator(model, documents, protocol)
    sparse = evaluator.scores(0, METHODS["dense"]()).sparse[0]  # alike in every document: their lengths are
    spans = [span for span in positions(len(documents[0].continuation)) if bool(sparse[span.start : span.stop].any())]
    if len(spans) < 2:
        raise ValueError(
            f"protocol {protocol!r} computes {int(sparse.sum())} tokens of a continuation of {len(sparse)} sparsely, "
            "all in one slice of positions; give more new tokens, or another protocol"
        )
    dense = losses(evaluator, METHODS["dense"](), spans)
    for method in methods:
        found = [
            Slice(method, _name(span), own, base)
            for span, own, base in zip(spans, losses(evaluator, method, spans), dense, strict=True)
        ]
        yield from _with_base(found, found[0])


def _name(span: range) -> str:
    """Positions as people count them, e.g. "5-16"."""
    return str(span.stop) if len(span) == 1 else f"{span.start + 1}-{span.stop}"


def _by_batch(
    model: nn.Module, documents: Sequence[Document], methods: Sequence[Method], protocol: Protocol
) -> Iterator[Slice]:
    sizes = [size for size in BATCHES if size <= len(documents)]
    if len(sizes) < 2:
        raise ValueError(f"a batch that shares a set has at least {BATCHES[1]} documents, got {len(documents)}")
    documents = documents[: len(documents) // sizes[-1] * sizes[-1]]  # each batch is full
    alone = _evaluator(model, documents, protocol)
    (dense,) = losses(alone, METHODS["dense"](), _whole(documents))
    for method in methods:
        if "rows" not in method.options:
            (own,) = losses(alone, method, _whole(documents))
            yield Slice(method, "any", own, dense)
            continue
        (own,) = losses(alone, _with_rows(method, "per_row"), _whole(documents))
        base = Slice(method, "per_row", own, dense)
        yield base
        shared = _with_rows(method, "shared")
        for size in sizes:
            (own,) = losses(_evaluator(model, documents, protocol, together=size), shared, _whole(documents))
            yield Slice(method, f"shared by {size}", own, dense, base)


def _with_rows(method: Method, rows: str) -> Method:
    """The same method, fitted as it was, with one set a row or one for all rows."""
    changed = replace(method, rows=rows)  # type: ignore[call-arg]
    return changed if method.thresholds is None else changed.with_thresholds(method.thresholds)


def _by_kind(
    model: nn.Module, documents: Sequence[Document], methods: Sequence[Method], protocol: Protocol
) -> Iterator[Slice]:
    kinds = dict.fromkeys(document.kind for document in documents)
    parts: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in kinds}
    groups = {name: tuple(kind for kind in kinds if kind in alike) for name, alike in GROUPS.items()}
    parts |= {name: there for name, there in groups.items() if len(there) > 1}
    evaluators = {
        kind: _evaluator(model, [document for document in documents if document.kind == kind], protocol)
        for kind in kinds
    }

    def each(method: Method) -> dict[str, Loss]:
        found = {kind: losses(evaluator, method, _whole(documents))[0] for kind, evaluator in evaluators.items()}
        return {name: joined([found[kind] for kind in there]) for name, there in parts.items()}

    dense = each(METHODS["dense"]())
    for method in methods:
        for name, own in each(method).items():
            yield Slice(method, name, own, dense[name])


def _by_recall(model: nn.Module, methods: Sequence[Method], questions: Sequence[Question]) -> Iterator[Slice]:
    if not questions:
        return
    asked = list(questions)
    tokens = sum(len(question.answer) for question in asked) / len(asked)

    def loss(method: Method) -> Loss:
        return Loss(recall(model, method, asked)["task_recall_nll"], tokens)

    dense = loss(METHODS["dense"]())
    for method in methods:
        yield Slice(method, RECALL, loss(method), dense)
