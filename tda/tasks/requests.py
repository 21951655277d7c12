"""Requests on a loaded model under a method: continuations scored, and texts generated until a stop string."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from tda.contracts import Method
from tda.device import failure_kind
from tda.engine.run import Run
from tda.engine.score import score_attached
from tda.finite import NotFiniteError
from tda.names import Protocol
from tda.quality.evaluate import shares_rows
from tda.tasks.journal import Answer

logger = logging.getLogger(__name__)

T = TypeVar("T")
MARGIN_TOKENS = 8
"""Tokens before a stop string that are decoded with it: a tokenizer may write the first of some tokens otherwise."""


class DoesNotFitError(MemoryError, ValueError):
    """A single request needs more memory than there is."""


@dataclass(frozen=True)
class TokenRequest:
    """A continuation to be scored after a context.

    Attributes
    ----------
    context, continuation : tuple of int
        Token ids.
    name : str
        What an error calls it.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    name: str

    @property
    def tokens(self) -> tuple[int, ...]:
        """All its tokens."""
        return self.context + self.continuation


def within(requests: Sequence[TokenRequest], max_length: int) -> list[TokenRequest]:
    """Requests whose contexts are cut on the left where they are longer than a model reads.

    The last token is fed to no pass, so a request has at most `max_length` + 1 tokens; its context keeps one or more.

    Raises
    ------
    ValueError
        If a context or a continuation is empty, or the latter alone longer than the model reads.
    """
    found, cuts = [], []
    for request in requests:
        count = len(request.continuation)
        if not request.context:
            raise ValueError(
                f"{request.name}: the context has no tokens (lm-eval counts blanks at its end to the answer)"
            )
        if not count:
            raise ValueError(f"{request.name}: the continuation has no tokens, so there is nothing to score")
        if count > max_length:
            raise ValueError(
                f"{request.name}: the continuation has {count} tokens, and the model reads at most {max_length}"
            )
        cut = max(0, len(request.context) + count - max_length - 1)
        found.append(replace(request, context=request.context[cut:]))
        cuts += [cut] if cut else []
    if cuts:
        logger.warning(
            f"{len(cuts)} of {len(requests)} requests are longer than the model's context of {max_length} tokens: "
            f"their contexts lack up to {max(cuts)} tokens on the left"
        )
    return found


OUTSIDE = "prompt of .* tokens: thresholds were calibrated for"
"""What is warned of for every prompt by itself, and told once instead."""


def outside_calibration(method: Method, lengths: Sequence[int]) -> str | None:
    """A sentence about contexts of other lengths than a method's thresholds were calibrated for; None without any."""
    known = () if method.thresholds is None else method.thresholds.lengths
    outside = [length for length in lengths if known and not known[0] <= length <= known[-1]]
    if not outside:
        return None
    return (
        f"{len(outside)} of {len(lengths)} contexts have {min(outside)} to {max(outside)} tokens, and the thresholds "
        f"of {method.name} were calibrated for {known[0]} to {known[-1]}: there another share than asked is left out"
    )


@dataclass
class Batches:
    """Items in batches that fit into memory: one that does not is halved, and so are those that follow.

    Attributes
    ----------
    size : int
        Items of a batch, so far.
    advance : callable
        Called before each batch; what it raises ends the work.
    """

    size: int
    advance: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, method: Method, size: int, advance: Callable[[], None]) -> "Batches":
        """Batches of so many rows; of one where all rows of a batch share a set.

        Such a set follows from all prompts of the batch, so an answer would depend on which requests came with it.
        """
        return cls(1 if shares_rows(method) else size, advance)

    def each(self, items: Sequence[T], run: Callable[[Sequence[T]], None], told: Callable[[T], str]) -> None:
        """Run every batch of some items, in order; `told` says in words how large an item is.

        Raises
        ------
        DoesNotFitError
            If a single item does not fit into memory.
        """
        start = 0
        while start < len(items):
            self.advance()
            batch = items[start : start + self.size]
            problem = _out_of_memory(run, batch)
            if problem is None:
                start += len(batch)
                continue
            if len(batch) == 1:
                raise DoesNotFitError(f"{told(batch[0])} does not fit into memory, alone in its batch: {problem}")
            self.size = len(batch) // 2
            logger.warning(f"{len(batch)} rows do not fit into memory; going on with {self.size} at a time")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _out_of_memory(run: Callable[[Sequence[T]], None], batch: Sequence[T]) -> str | None:
    """Run a batch; what it says where there was no memory for it. Nothing holds the batch's tensors afterwards."""
    try:
        run(batch)
    except (RuntimeError, MemoryError) as error:
        if failure_kind(error) == "error":
            raise
        return (str(error) or type(error).__name__).splitlines()[0]
    return None


def grouped(requests: Sequence[T], key: Callable[[T], object]) -> list[list[T]]:
    """Requests of equal keys together, in the order of their first ones."""
    groups: dict[object, list[T]] = {}
    for request in requests:
        groups.setdefault(key(request), []).append(request)
    return list(groups.values())


# long: its parameters are explained
def loglikelihoods(
    run: Run,
    groups: Sequence[Sequence[TokenRequest]],
    *,
    protocol: Protocol,
    softmax_dtype: torch.dtype | None = None,
) -> list[list[Answer]]:
    """Score a batch of continuations under what is attached.

    Parameters
    ----------
    run : Run
        What `tda.attach` yielded, inside `plain`.
    groups : sequence of sequence of TokenRequest
        Requests of a group differ in their last token only, so that one row serves them: choices of a letter.
    protocol : str
        As for `tda.score`.
    softmax_dtype : torch.dtype, optional
        Type that log-softmax is computed in; that of the logits where it is not given, as lm-eval does.

    Returns
    -------
    list of list of Answer
        For each group, in order.

    Raises
    ------
    ValueError
        As `tda.score`. NotFiniteError if logits are not finite.
    """
    device = next(run.attachment.model.parameters()).device
    rows = [group[0] for group in groups]
    prompts, prompt_mask = _padded([row.context for row in rows], device)
    continuations, mask = _padded([row.continuation for row in rows], device)
    try:
        scores = score_attached(
            run, prompts, continuations, prompt_mask=prompt_mask, continuation_mask=mask, protocol=protocol
        )
    except ValueError as error:
        names = rows[0].name if len(rows) == 1 else f"one of {rows[0].name} to {rows[-1].name}"
        kind = NotFiniteError if isinstance(error, NotFiniteError) else ValueError
        raise kind(f"{run.attachment.method.name} on {names}: {error}") from None
    logs = scores.logits.log_softmax(-1, dtype=softmax_dtype)  # [B, G, V]
    likeliest = logs.argmax(-1)
    answers: list[list[Answer]] = []
    for row, group in enumerate(groups):
        sparse = int(scores.sparse[row].sum()) if run.attachment.method.selects else 0
        answers.append([])
        for request in group:
            tokens = torch.tensor(request.continuation, device=device)
            own = logs[row, : len(tokens)].gather(1, tokens.unsqueeze(1))
            is_greedy = bool((likeliest[row, : len(tokens)] == tokens).all())
            value = (float(own.sum()), is_greedy)
            shares = rounded(scores.achieved_sparsity) if sparse else ()
            answers[-1].append(Answer(value=value, tokens=len(tokens), sparse_tokens=sparse, achieved_sparsity=shares))
    return answers


def rounded(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares to a millionth: a journal keeps one for every layer and answer."""
    return tuple(round(share, 6) for share in shares)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows padded on the right: tokens and mask, [B, T] each."""
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, content in enumerate(rows):
        tokens[row, : len(content)] = torch.tensor(content)
        mask[row, : len(content)] = True
    return tokens.to(device), mask.to(device)


@dataclass(frozen=True)
class Ends:
    """Where a generated text ends: with a token that ends texts, or with the token that completes a stop string.

    Attributes
    ----------
    tokenizer
        Of the model.
    tokens : frozenset of int
        Tokens that end a text.
    stops : tuple of str
        Stop strings; a token's border may lie in one.
    """

    tokenizer: Any
    tokens: frozenset[int]
    stops: tuple[str, ...]

    @property
    def window(self) -> int:
        """Tokens that surely hold a stop string that ends with the last of them: each has a byte at least."""
        return MARGIN_TOKENS + max((len(stop.encode()) for stop in self.stops), default=0)

    def reached(self, generated: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each row's last token ends it."""
        by_token = [bool(row) and row[-1] in self.tokens for row in generated]
        if not self.stops:
            return by_token
        texts = self.tokenizer.batch_decode([row[-self.window :] for row in generated])
        return [ended or any(stop in text for stop in self.stops) for ended, text in zip(by_token, texts, strict=True)]

    def length(self, generated: Sequence[int]) -> int:
        """Tokens of a row up to the one that ends it, all where none does."""
        reached = self.reached([generated[:count] for count in range(1, len(generated) + 1)])
        return reached.index(True) + 1 if True in reached else len(generated)


class _Ending(StoppingCriteria):  # type: ignore[misc]
    """Ends each row by itself, so that it is what it would be alone."""

    def __init__(self, ends: Ends, prompt_tokens: int) -> None:
        self.ends, self.prompt_tokens = ends, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        reached = self.ends.reached(input_ids[:, self.prompt_tokens :].tolist())
        return torch.tensor(reached, device=input_ids.device)


def generate(
    model: Any, contexts: Tensor, mask: Tensor, ends: Ends, *, max_length: int, **options: Any
) -> tuple[Tensor, list[int]]:
    """Generate with the model's own ``generate``, under what is attached to it.

    Parameters
    ----------
    model
        A Hugging Face decoder.
    contexts, mask : Tensor
        int64 [B, P], padded on the left where mask is 0.
    ends : Ends
        Where a text ends.
    max_length : int
        Tokens of context, padding included, and generated text at most.
    **options
        Of ``generate``.

    Returns
    -------
    sequences : Tensor
        int64 [B, T], contexts included; after its end a row is padded.
    lengths : list of int
        Generated tokens of each row, up to and including what ends it.
    """
    width = contexts.shape[1]
    sequences: Tensor = model.generate(
        input_ids=contexts,
        attention_mask=mask,
        max_length=max_length,
        stopping_criteria=StoppingCriteriaList([_Ending(ends, width)]),
        use_cache=True,
        **options,
    )
    return sequences, [ends.length(row) for row in sequences[:, width:].tolist()]
