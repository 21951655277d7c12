"""What a method does to choose, for one layer: statistic and selection per prompt, thresholds per token."""

from typing import Any

import pytest
import torch
from parts import PROMPT_TOKENS, SPARSITIES, Clock, MicroModel, each, methods, part

PER_PROMPT = methods("prompt")
STATISTICS = [method for method in PER_PROMPT if method.sparsity == SPARSITIES[0]]
"""A statistic does not depend on the sparsity."""


def statistic_of(subject: MicroModel, method: Any) -> Any:
    """A method's statistic over the prompt."""
    statistic = method.new_statistic(subject.ffns[0])
    statistic.add(subject.z, torch.ones(1, PROMPT_TOKENS, dtype=torch.bool, device=subject.device))
    return statistic


@each(STATISTICS)
@pytest.mark.benchmark(group="statistic")
def test_statistic(clock: Clock, subject: MicroModel, method: Any) -> None:
    """The sum over all tokens of a prompt."""
    z = subject.z
    statistic = clock(lambda: statistic_of(subject, method), rounds=100)
    assert int(statistic.tokens) == PROMPT_TOKENS
    contributes = getattr(method, "statistic", None) == "contribution"
    norms = subject.ffns[0].down.weight.double().norm(dim=0) if contributes else 1.0
    squares = (z.double() * norms).square()
    expected = (squares / squares.sum(-1, keepdim=True)).sum(1)
    torch.testing.assert_close(statistic.value().double(), expected, rtol=1e-3, atol=1e-6)
    clock.note("statistic_ms", subject.case(method), bytes_moved=z.nbytes)


@each(PER_PROMPT)
@pytest.mark.benchmark(group="selection")
def test_selection(clock: Clock, subject: MicroModel, method: Any) -> None:
    """From the statistic to the kept set: the largest scores, or those at a threshold."""
    tokens = torch.tensor([PROMPT_TOKENS], device=subject.device)
    prompt = part("tda.contracts", "Prompt")(tokens=tokens, key=lambda row: row)
    method = subject.fitted(method)
    ffn, statistic = subject.ffns[0], statistic_of(subject, method)
    kept = clock(lambda: method.select(ffn, statistic, prompt), rounds=100)
    scores = method.scores(ffn, statistic, prompt)
    assert scores[kept].min() >= scores[~kept].max()
    share = float(kept.double().mean())
    assert 1 - share == pytest.approx(method.sparsity, abs=0.1)
    clock.note("selection_ms", subject.case(method), achieved_sparsity=1 - share)


@each(methods("token"))
@pytest.mark.benchmark(group="threshold")
def test_threshold(clock: Clock, subject: MicroModel, method: Any) -> None:
    """The kept set of one token, from the activation that the method looks at."""
    method, ffn = subject.fitted(method), subject.ffns[0]
    a = subject.z[:, -1:]
    if method.activation == "gate":
        a = ffn.act(ffn.gate.module(subject.x))
    kept = clock(lambda: method.select(ffn, a), rounds=200)
    importance = method.importance(ffn, a)
    assert torch.equal(kept, importance >= method.fitted.cut(0))
    assert kept.any()
    clock.note("threshold_ms", subject.case(method), achieved_sparsity=1 - float(kept.double().mean()))
