"""Recall: whether a model still knows a name or place that it read at least 256 tokens before."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tda.contracts import Method
from tda.engine.score import Scores, score
from tda.quality.documents import bytes_per_token, encode
from tda.quality.evaluate import measured, shares_rows
from tda.records import Measurement
from tda.reference.text import recall_items

DISTANCE_TOKENS = 256
LONGEST_TOKENS = 512
"""No recall context of the built-in tokenizer is longer, so thresholds calibrated up to here cover it."""
ROWS = 8


@dataclass(frozen=True)
class Question:
    """A context that ends right before a word that it introduced long before, and that word: int64 [P] and [G]."""

    context: Tensor
    answer: Tensor


def recall_questions(tokenizer: Any, count: int) -> list[Question]:
    """Questions of the built-in evaluation stream, the answer last seen at least 256 tokens before."""
    distance = DISTANCE_TOKENS * bytes_per_token(tokenizer)
    found = []
    for item in itertools.islice(recall_items("evaluation", distance_bytes=distance), count):
        context = encode(tokenizer, item.context)
        whole = encode(tokenizer, item.context + item.answer)
        found.append(Question(context, whole[len(context) :]))
    return found


def recall(model: nn.Module, method: Method, questions: list[Question]) -> dict[str, Measurement]:
    """Score the answers, every token of them computed sparsely (protocol "all_sparse").

    Returns
    -------
    dict
        ``task_recall_accuracy``: 1 where greedy decoding would give the whole word, else 0; ``task_recall_nll``: mean
        nats per token of the word. One sample per question.
    """
    accuracy: list[float] = []
    nll: list[float] = []
    together = 1 if shares_rows(method) else ROWS
    for start in range(0, len(questions), together):
        scores, answers = _score(model, method, questions[start : start + together])
        right = (scores.logits.argmax(-1) == answers) | ~scores.valid
        accuracy += right.all(1).double().tolist()
        nll += (scores.nll.double().sum(1) / scores.valid.sum(1)).tolist()
    groups = range(len(questions))
    samples = {"task_recall_accuracy": accuracy, "task_recall_nll": nll}
    return {name: measured(name, values, groups) for name, values in samples.items()}


def _score(model: nn.Module, method: Method, questions: list[Question]) -> tuple[Scores, Tensor]:
    device = next(model.parameters()).device
    contexts, context_mask = _pad([question.context for question in questions], device)
    answers, answer_mask = _pad([question.answer for question in questions], device)
    scores = score(
        model,
        method,
        contexts,
        answers,
        prompt_mask=context_mask,
        continuation_mask=answer_mask,
        protocol="all_sparse",
    )
    return scores, answers


def _pad(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack rows of unequal lengths, padded on the right: ids and mask [B, T]."""
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
    return ids.to(device), mask.to(device)
