"""Scoring in one pass equals a loop token by token, under each protocol; which tokens were sparse is said."""

from collections.abc import Sequence
from typing import Any

import float64
import pytest
import tiny
import torch
from torch import Tensor

import tda
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.methods import METHODS

PROMPTS, CONTINUATIONS = (7, 1, 13), (5, 3, 1)
CASES = tiny.method_cases()


def random_sets(name: str, method: Method, prompts: Sequence[Tensor]) -> list[Tensor] | None:
    """Sets of the random method, which has no formula: those it gives the prompts alone."""
    if method.name != "random":
        return None
    sets = []
    for prompt in prompts:
        with torch.no_grad(), tda.attach(tiny.model(name), method) as run:
            prefill(tiny.model(name), prompt.unsqueeze(0))
            sets.append(run.selection())
    return [torch.cat(layer) for layer in zip(*sets, strict=True)]


def nll(logits: Tensor, continuation: Tensor) -> Tensor:
    """Negative log likelihood in nats, float64 [G]."""
    return -logits.double().log_softmax(-1).gather(1, continuation.unsqueeze(1)).squeeze(1)


def score_ragged(
    name: str, method: Method, prompts: list[Tensor], continuations: list[Tensor], protocol: Any, side: Any = "left"
) -> tda.Scores:
    """Score prompts padded on a side, continuations of unequal lengths."""
    prompt_ids, prompt_mask = tiny.padded(prompts, side)
    continuation_ids, continuation_mask = tiny.padded(continuations, "right")
    return tda.score(
        tiny.model(name),
        method,
        prompt_ids,
        continuation_ids,
        tiny.thresholds(name, method),
        prompt_mask=prompt_mask,
        continuation_mask=continuation_mask,
        protocol=protocol,
    )


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
@pytest.mark.parametrize("protocol", ["decode", "all_sparse"])
@pytest.mark.parametrize("case", tiny.sampled(CASES), ids=tiny.case_id)
def test_equals_the_formulas(case: tuple[str, Method], protocol: Any, side: str) -> None:
    """Ragged prompts padded on either side, ragged continuations."""
    name, method = case
    prompts, continuations = tiny.prompts(PROMPTS), tiny.prompts(CONTINUATIONS, seed=1)
    continuation_ids, continuation_mask = tiny.padded(continuations, "right")
    thresholds = tiny.thresholds(name, method)
    scores = score_ragged(name, method, prompts, continuations, protocol, side)
    reference = tiny.reference(name)
    rules = float64.rules(method, reference, prompts, thresholds, random_sets(name, method, prompts))
    for row, (prompt, continuation, rule) in enumerate(zip(prompts, continuations, rules, strict=True)):
        last_sparse = protocol == "all_sparse"
        logits = float64.continuation_logits(reference, prompt, continuation, rule, last_sparse=last_sparse)
        G = len(continuation)
        torch.testing.assert_close(scores.nll[row, :G].double(), nll(logits, continuation), rtol=1e-4, atol=1e-4)
        assert (scores.nll[row, G:] == 0).all()
        sparse = [last_sparse, *[True] * (G - 1)]
        assert scores.sparse[row].tolist() == sparse + [False] * (max(CONTINUATIONS) - G)
    assert torch.equal(scores.valid, continuation_mask)
    wanted = 1.0 if protocol == "all_sparse" else 1 - len(prompts) / sum(CONTINUATIONS)
    assert scores.sparse_share == pytest.approx(wanted)
    assert scores.logits.shape[:2] == continuation_ids.shape


@pytest.mark.parametrize("case", tiny.sampled(CASES), ids=tiny.case_id)
def test_griffin_protocol(case: tuple[str, Method]) -> None:
    """All positions but the last are dense and in the statistic; the last is sparse."""
    name, method = case
    prompts, continuations = tiny.prompts((7, 2, 13)), tiny.prompts(CONTINUATIONS, seed=1)
    thresholds = tiny.thresholds(name, method)
    scores = score_ragged(name, method, prompts, continuations, "griffin")
    reference = tiny.reference(name)
    pairs = list(zip(prompts, continuations, strict=True))
    dense_parts = [torch.cat([prompt, continuation])[:-2] for prompt, continuation in pairs]
    rules = float64.rules(method, reference, dense_parts, thresholds, random_sets(name, method, dense_parts))
    for row, ((prompt, continuation), rule) in enumerate(zip(pairs, rules, strict=True)):
        fed = torch.cat([prompt, continuation])[:-1]
        last = torch.arange(len(fed)) == len(fed) - 1
        logits = reference.run(fed, last, rule).logits[len(prompt) - 1 :]
        G = len(continuation)
        torch.testing.assert_close(scores.nll[row, :G].double(), nll(logits, continuation), rtol=1e-4, atol=1e-4)
        assert scores.sparse[row].tolist() == [g == G - 1 for g in range(max(CONTINUATIONS))]
    assert scores.sparse_share == pytest.approx(3 / 9)


@pytest.mark.parametrize("execution", ["masked", "fast"])
@pytest.mark.parametrize("case", tiny.method_cases("llama", "opt", "mistral-window"), ids=tiny.case_id)
def test_one_pass_equals_a_loop_on_the_cache(case: tuple[str, Method], execution: str) -> None:
    name, method = case
    model, thresholds = tiny.model(name), tiny.thresholds(name, method)
    chosen: Any = method.executions[0] if execution == "fast" else "masked"
    prompt, continuation = tiny.text(2, 9), tiny.text(2, 6, seed=1)
    scores = tda.score(model, method, prompt, continuation, thresholds, execution=chosen)
    with torch.no_grad(), tda.attach(model, method, thresholds, execution=chosen) as run:
        logits, cache = prefill(model, prompt)
        steps = [logits]
        for step in range(5):
            steps.append(decode(model, continuation[:, step : step + 1], cache))
        assert run.achieved_sparsity() == pytest.approx(scores.achieved_sparsity, abs=1e-6)
    torch.testing.assert_close(scores.logits, torch.cat(steps, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("protocol", ["decode", "all_sparse", "griffin"])
def test_a_batch_equals_its_rows(protocol: Any) -> None:
    model, prompt, continuation = tiny.model("gemma2"), tiny.text(3, 9), tiny.text(3, 4, seed=1)
    together = tda.score(model, tda.Griffin(sparsity=0.5), prompt, continuation, protocol=protocol)
    for row in range(3):
        alone = tda.score(
            model, tda.Griffin(sparsity=0.5), prompt[row : row + 1], continuation[row : row + 1], protocol=protocol
        )
        torch.testing.assert_close(together.nll[row], alone.nll[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("protocol", ["decode", "all_sparse", "griffin"])
@pytest.mark.parametrize("name", ["tda", "tt", "cats"])
def test_achieved_sparsity_is_of_the_scored_sparse_tokens(name: str, protocol: Any) -> None:
    """Rows that leave out unlike shares, and continuations of unlike lengths: every scored sparse token counts once."""
    model, method = tiny.model("llama"), METHODS[name](sparsity=0.5)
    thresholds = tiny.thresholds("llama", method)
    prompts, continuations = tiny.prompts((7, 2, 13), seed=3), tiny.prompts((9, 3, 2), seed=4)
    prompt_ids, prompt_mask = tiny.padded(prompts)
    continuation_ids, continuation_mask = tiny.padded(continuations, "right")
    options: dict[str, Any] = {"protocol": protocol}
    together = tda.score(
        model,
        method,
        prompt_ids,
        continuation_ids,
        thresholds,
        prompt_mask=prompt_mask,
        continuation_mask=continuation_mask,
        **options,
    )
    left_out = torch.zeros(tiny.LAYERS, dtype=torch.float64)
    for prompt, continuation in zip(prompts, continuations, strict=True):
        alone = tda.score(model, method, prompt.unsqueeze(0), continuation.unsqueeze(0), thresholds, **options)
        left_out += torch.tensor(alone.achieved_sparsity, dtype=torch.float64) * alone.sparse.sum()
    wanted = (left_out / together.sparse.sum()).tolist()
    assert together.achieved_sparsity == pytest.approx(wanted, abs=1e-6)


def test_the_first_token_under_decode_is_dense_and_no_other_is() -> None:
    model, prompt, continuation = tiny.model("llama"), tiny.text(2, 9), tiny.text(2, 4, seed=1)
    dense = tda.score(model, tda.Dense(), prompt, continuation)
    sparse = tda.score(model, tda.Griffin(sparsity=0.9), prompt, continuation)
    assert torch.equal(dense.nll[:, 0], sparse.nll[:, 0])
    assert (dense.nll[:, 1:] - sparse.nll[:, 1:]).abs().min() > 1e-3
    repeated = tda.score(model, tda.Griffin(sparsity=0.9), prompt, continuation, protocol="all_sparse")
    assert (dense.nll[:, 0] - repeated.nll[:, 0]).abs().min() > 1e-3
    one = tda.score(model, tda.Griffin(sparsity=0.9), prompt, continuation[:, :1])
    assert torch.equal(one.nll, dense.nll[:, :1])
    assert one.sparse_share == 0
    assert one.achieved_sparsity == ()


@pytest.mark.parametrize("name", tiny.names())
@pytest.mark.parametrize("protocol", ["decode", "all_sparse", "griffin"])
def test_sparsity_zero_is_the_dense_model(name: str, protocol: Any) -> None:
    prompt, continuation = tiny.text(2, 9), tiny.text(2, 4, seed=1)
    dense = tda.score(tiny.model(name), tda.Dense(), prompt, continuation, protocol=protocol)
    kept = tda.score(tiny.model(name), tda.Griffin(sparsity=0), prompt, continuation, protocol=protocol)
    assert torch.equal(dense.nll, kept.nll)


def test_dense_equals_one_plain_pass() -> None:
    """Against transformers alone: a pass over the whole text without the package."""
    for name in tiny.names():
        model, prompt, continuation = tiny.model(name), tiny.text(2, 9), tiny.text(2, 4, seed=1)
        with torch.no_grad():
            logits = model(torch.cat([prompt, continuation], 1)).logits[:, 8:-1]
        for protocol in ("decode", "all_sparse", "griffin"):
            found = tda.score(model, tda.Dense(), prompt, continuation, protocol=protocol)
            for row in range(2):
                torch.testing.assert_close(
                    found.nll[row].double(), nll(logits[row], continuation[row]), rtol=1e-4, atol=1e-4
                )


def test_selection_of_another_prompt_is_a_control() -> None:
    model, continuation = tiny.model("llama"), tiny.text(2, 4, seed=1)
    own, other = tiny.text(2, 9), tiny.text(2, 11, seed=2)
    method = tda.Griffin(sparsity=0.5)
    controlled = tda.score(model, method, own, continuation, selection_ids=other)
    plain = tda.score(model, method, own, continuation)
    theirs = tda.score(model, method, other, continuation)
    assert all(torch.equal(a, b) for a, b in zip(controlled.selection, theirs.selection, strict=True))
    assert not torch.equal(controlled.nll, plain.nll)
    reference = tiny.reference("llama")
    for row, rule in enumerate(float64.rules(method, reference, list(other), None)):
        logits = float64.continuation_logits(reference, own[row], continuation[row], rule)
        torch.testing.assert_close(controlled.nll[row].double(), nll(logits, continuation[row]), rtol=1e-4, atol=1e-4)


class TestDisjointText:
    """Thresholds know the text that they were made from, and scoring on it is refused."""

    @pytest.fixture
    def thresholds(self) -> tda.Thresholds:
        batches = [{"input_ids": tiny.text(1, 130, seed=7)}, {"input_ids": tiny.text(2, 20, seed=8)}]
        model = tiny.build("llama", max_position_embeddings=256)
        return tda.calibrate(model, tda.TT(sparsity=0.5), batches, progress=False)

    def score(self, thresholds: tda.Thresholds, document: Tensor, prompt_tokens: int) -> None:
        model = tiny.build("llama", max_position_embeddings=256)
        document = document.unsqueeze(0)
        method = tda.TT(sparsity=0.5)
        tda.score(model, method, document[:, :prompt_tokens], document[:, prompt_tokens:], thresholds)

    def test_other_text_passes(self, thresholds: tda.Thresholds) -> None:
        self.score(thresholds, tiny.text(1, 140, seed=9)[0], 100)

    def test_a_short_document_is_recognised_across_the_cut(self, thresholds: tda.Thresholds) -> None:
        for cut in (1, 10, 19):
            with pytest.raises(ValueError, match="document 0 is a calibration document"):
                self.score(thresholds, tiny.text(2, 20, seed=8)[1], cut)

    @pytest.mark.parametrize("shift", [0, 1, 37])
    def test_a_shared_passage_is_found_at_any_place(self, thresholds: tda.Thresholds, shift: int) -> None:
        calibration, own = tiny.text(1, 130, seed=7)[0], tiny.text(1, 40, seed=10)[0]
        document = torch.cat([own[:shift], calibration[:127], own[shift:]])
        with pytest.raises(ValueError, match=f"64 tokens from token {shift} "):
            self.score(thresholds, document, 60)

    def test_a_short_document_is_found_inside_another(self, thresholds: tda.Thresholds) -> None:
        document = torch.cat([tiny.text(1, 30, seed=10)[0], tiny.text(2, 20, seed=8)[1], tiny.text(1, 30, seed=11)[0]])
        with pytest.raises(ValueError, match="shares the 20 tokens from token 30 with"):
            self.score(thresholds, document, 60)

    def test_methods_that_need_no_thresholds_may_score_anything(self, llama: Any) -> None:
        tda.score(llama, tda.Griffin(sparsity=0.5), tiny.text(1, 20, seed=8), tiny.text(1, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "sparse"}, "protocol must be one of decode, all_sparse, griffin; got 'sparse'"),
        ({"continuation_ids": tiny.text(3, 4)}, "2 prompts for 3 continuations"),
        ({"prompt_ids": tiny.text(2, 9)[0]}, r"prompt_ids must have shape \[batch, tokens\]"),
        ({"continuation_ids": tiny.text(2, 4)[:, :0]}, r"at least one token; got \[2, 0\]"),
        ({"prompt_mask": torch.ones(2, 8)}, r"prompt_mask has shape \[2, 8\], its ids \[2, 9\]"),
        ({"prompt_mask": torch.zeros(2, 9)}, "a prompt has at least one token"),
        ({"continuation_mask": torch.tensor([[0, 1, 1, 1]] * 2)}, "padded on the right only"),
        (
            {"prompt_ids": tiny.text(2, 1), "continuation_ids": tiny.text(2, 1), "protocol": "griffin"},
            "at least two tokens",
        ),
    ],
)
def test_wrong_use(llama: Any, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompt_ids": tiny.text(2, 9), "continuation_ids": tiny.text(2, 4, seed=1), **change}
    with pytest.raises(ValueError, match=message):
        tda.score(llama, tda.Griffin(sparsity=0.5), **arguments)
    tda.score(llama, tda.Griffin(sparsity=0.5), tiny.text(2, 9), tiny.text(2, 4))  # nothing is left attached


def test_random_weights_of_any_family_have_finite_scores() -> None:
    for name in tiny.names():
        scores = tda.score(tiny.model(name), tda.Griffin(sparsity=0.9), tiny.text(2, 9), tiny.text(2, 4))
        assert scores.nll.isfinite().all()
        assert (scores.nll > 0).all()
