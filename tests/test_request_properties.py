"""A batch row is what the same request is alone, whatever is drawn: lengths, padding, chunks, prefixes, turns, ends.

What is drawn runs as one batch, and each row by itself in the plainest way: its prompt in one pass, then single tokens.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tda
from tda.contracts import Method, PromptMethod
from tda.engine.phases import decode
from tda.engine.run import Run
from tda.names import Execution

WINDOWED = ("mistral-window", "gemma2")
"""Models whose attention counts padding between tokens as tokens: only padding in front leaves a row what it is."""
METHODS: list[Method] = [
    tda.Griffin(sparsity=0.5),
    tda.TDA(sparsity=0.5),
    tda.TDA(sparsity=0.4, statistic="max"),
    tda.TDA(sparsity=0.5, statistic="contribution", source="z"),
    tda.Random(sparsity=0.5),
    tda.Magnitude(sparsity=0.5),
    tda.StaticMean(sparsity=0.5),
    tda.GLASS(sparsity=0.5),
    tda.Griffin(sparsity=0.5, prior_tokens=8),
    tda.TDA(sparsity=0.5, prior_tokens=8),
    tda.TT(sparsity=0.5),
    tda.CATS(sparsity=0.5),
    tda.Oracle(sparsity=0.5),
]
TOLERANCE = 1e-5
"""Of the logits' scale in float32, and of a score beside the boundary of its set."""


@dataclass
class Turn:
    """New prompt tokens of each row, and the tokens that are fed after them, of which a row takes its first few."""

    prompts: list[Tensor]
    steps: Tensor  # int64 [B, G]
    ends: list[int]


@dataclass
class Drawn:
    """A batch of requests, and how it is run."""

    name: str
    method: Method
    execution: Execution
    prefix: Tensor  # int64 [P], perhaps none
    turns: list[Turn]
    side: str
    chunk: int
    is_copied: bool
    order: list[int]

    @property
    def rows(self) -> int:
        return len(self.order)

    def place(self, number: int, row: int) -> int:
        """Where the row that ends as `row` stands in a turn: rows move before the last of two."""
        return self.order[row] if number < len(self.turns) - 1 else row


@dataclass
class Seen:
    """What came out: logits of each step [B, V], and the sets of each turn."""

    logits: list[Tensor] = field(default_factory=list)
    sets: list[list[Tensor]] = field(default_factory=list)
    scores: list[list[Tensor]] = field(default_factory=list)


@st.composite
def batches(draw: st.DrawFn) -> Drawn:
    name = draw(st.sampled_from(tiny.names()))
    method = draw(st.sampled_from([method for method in METHODS if tiny.fits(name, method)]))
    only_front = name in WINDOWED
    rows = draw(st.integers(1, 4))
    seeds = iter(range(draw(st.integers(0, 1000)), 10_000))
    turns = [
        Turn(
            prompts=[tiny.text(1, draw(st.integers(1, 9)), seed=next(seeds))[0] for _ in range(rows)],
            steps=tiny.text(rows, draw(st.integers(1, 4)), seed=next(seeds)),
            ends=[],
        )
        for _ in range(1 if only_front else draw(st.integers(1, 2)))
    ]
    for turn in turns:
        most = turn.steps.shape[1]
        turn.ends = [most if only_front else draw(st.integers(1, most)) for _ in range(rows)]
    return Drawn(
        name=name,
        method=method,
        execution=draw(st.sampled_from(("auto", *method.executions))),
        prefix=tiny.text(1, 0 if only_front else draw(st.integers(0, 6)), seed=next(seeds))[0],
        turns=turns,
        side="left" if only_front else draw(st.sampled_from(("left", "right"))),
        chunk=draw(st.integers(1, 12)),
        is_copied=draw(st.booleans()),
        order=draw(st.permutations(range(rows))),
    )


def run_batch(model: Any, run: Run, drawn: Drawn) -> Seen:
    """All rows together, in the way that was drawn."""
    rows, seen = drawn.rows, Seen()
    cache = tiny.new_cache(model)
    mask = torch.ones(rows, len(drawn.prefix), dtype=torch.bool)
    if len(drawn.prefix):
        with run.prefill():
            decode(model, drawn.prefix.unsqueeze(0), cache, mask[:1])
        if drawn.is_copied:
            original, cache = cache, copy.deepcopy(cache)
            with run.prefill():  # another request that goes on with the same prefix
                decode(model, tiny.text(1, 5, seed=7), original)
        cache.batch_repeat_interleave(rows)
    for number, turn in enumerate(drawn.turns):
        if number:
            cache.reorder_cache(torch.tensor(drawn.order))
            mask = mask[drawn.order]
        tokens, own = tiny.padded(turn.prompts, drawn.side)
        for part, inside in zip(tokens.split(drawn.chunk, 1), own.split(drawn.chunk, 1), strict=True):
            mask = torch.cat([mask, inside], 1)
            with run.prefill():
                decode(model, part, cache, mask)
        for step in range(turn.steps.shape[1]):
            mask = torch.cat([mask, torch.tensor([[step < end] for end in turn.ends])], 1)
            seen.logits.append(decode(model, turn.steps[:, step : step + 1], cache, mask)[:, -1])
        note_sets(run, seen)
    return seen


def run_alone(model: Any, run: Run, drawn: Drawn, row: int) -> Seen:
    """One row by itself: its prompt in one pass, then its tokens one by one."""
    seen, cache, first = Seen(), tiny.new_cache(model), drawn.prefix
    for number, turn in enumerate(drawn.turns):
        place = drawn.place(number, row)
        with run.prefill():
            decode(model, torch.cat([first, turn.prompts[place]]).unsqueeze(0), cache)
        for step in range(turn.ends[place]):
            seen.logits.append(decode(model, turn.steps[place : place + 1, step : step + 1], cache)[:, -1])
        note_sets(run, seen)
        first = drawn.prefix[:0]
    return seen


def note_sets(run: Run, seen: Seen) -> None:
    if isinstance(run.attachment.method, PromptMethod):
        assert run.attachment.requests.last is not None
        prompt = run.attachment.requests.last.prompt()
        pairs = zip(run.attachment.ffns, run.attachment.requests.last.statistics, strict=True)
        seen.scores.append([run.attachment.method.scores(ffn, held, prompt) for ffn, held in pairs])
        seen.sets.append(run.selection())


def are_equal_sets(found: Sequence[Tensor], row: int, alone: Sequence[Tensor], scores: Sequence[Tensor]) -> bool:
    """Whether a row's sets are those that it has alone; neurons within rounding of the boundary may differ."""
    is_exact = True
    for mine, theirs, score in zip(found, alone, scores, strict=True):
        differ = mine[row] ^ theirs[0]
        if bool(differ.any()):
            is_exact = False
            values = score[0].double()
            boundary = values[theirs[0]].min() if bool(theirs[0].any()) else values.max()
            assert (values[differ] - boundary).abs().max() <= TOLERANCE * boundary.abs()
    return is_exact


def logits_of(drawn: Drawn, seen: Seen, row: int) -> Iterator[Tensor]:
    """A row's own logits among those of the batch's steps."""
    steps = iter(seen.logits)
    for number, turn in enumerate(drawn.turns):
        place = drawn.place(number, row)
        for step in range(turn.steps.shape[1]):
            logits = next(steps)
            if step < turn.ends[place]:
                yield logits[place]


@torch.no_grad()
def check(drawn: Drawn) -> None:
    model, thresholds = tiny.model(drawn.name), tiny.thresholds(drawn.name, drawn.method)
    with tda.attach(model, drawn.method, thresholds, execution=drawn.execution) as run:
        together = run_batch(model, run, drawn)
        achieved = torch.tensor(run.achieved_sparsity(), dtype=torch.float64)
    left_out, steps = torch.zeros_like(achieved), 0
    exact = True
    for row in range(drawn.rows):
        with tda.attach(model, drawn.method, thresholds, execution="masked") as run:
            alone = run_alone(model, run, drawn, row)
            count = sum(turn.ends[drawn.place(number, row)] for number, turn in enumerate(drawn.turns))
            left_out, steps = left_out + count * torch.tensor(run.achieved_sparsity()), steps + count
        turns = enumerate(zip(together.sets, alone.sets, alone.scores, strict=True))
        if not all(are_equal_sets(mine, drawn.place(n, row), *theirs) for n, (mine, *theirs) in turns):
            exact = False
            continue  # a near tie: what follows differs, and may
        for mine, theirs in zip(logits_of(drawn, together, row), alone.logits, strict=True):
            assert (mine - theirs[0]).abs().max() <= TOLERANCE * theirs.abs().max()
    event("sets equal" if exact else "a near tie")
    if exact:
        torch.testing.assert_close(achieved, left_out / steps, rtol=0, atol=0.5 / tiny.F / steps)


@given(batches())
def test_a_row_of_any_batch_is_what_it_is_alone(drawn: Drawn) -> None:
    check(drawn)


@pytest.mark.slow
@settings(max_examples=500)
@given(batches())
def test_a_row_of_any_batch_is_what_it_is_alone_500_times(drawn: Drawn) -> None:
    check(drawn)
