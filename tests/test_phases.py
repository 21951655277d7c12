"""What is prompt and what is decode: one token prompts, chunks, turns, caches, batches, and the model's own generate.

Logits are compared with the float64 pass of `float64.py`, which knows no cache, no batch and no padding.
"""

import gc
from collections.abc import Sequence
from typing import Any

import float64
import pytest
import tiny
import torch
import transformers
from torch import Tensor

import tda
from tda.contracts import Method, PromptMethod
from tda.engine.phases import decode, prefill
from tda.engine.run import Run

LENGTHS = (7, 1, 13)
NEW = 5
CASES = tiny.method_cases()
SLOW = pytest.mark.slow
PROMPT_WISE = [m for m in tiny.default_methods() if isinstance(m, PromptMethod)]


def generate(model: Any, prompts: Sequence[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """New tokens [B, G] and the logits that predicted them [B, G, V], of prompts padded on the left."""
    tokens, mask = tiny.padded(prompts)
    output = model.generate(
        tokens,
        **{"attention_mask": mask.long(), "max_new_tokens": NEW, "do_sample": False, **options},
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences[:, tokens.shape[1] :], torch.stack(output.logits, 1)


def expected_logits(
    name: str, method: Method, prompts: Sequence[Tensor], continuations: Tensor, run: Run
) -> list[Tensor]:
    """Logits [G, V] of each row by the formulas; only the random method's sets are taken from the run."""
    reference = tiny.reference(name)
    given = run.selection() if method.name == "random" else None
    rules = float64.rules(method, reference, prompts, tiny.thresholds(name, method), given)
    rows = zip(prompts, continuations, rules, strict=True)
    return [float64.continuation_logits(reference, prompt, continuation, rule) for prompt, continuation, rule in rows]


def check_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    scale = expected.abs().max()
    assert (found.double() - expected).abs().max() <= tolerance * scale


@pytest.mark.parametrize("case", tiny.sampled(CASES), ids=tiny.case_id)
def test_greedy_generate_equals_the_formulas(case: tuple[str, Method]) -> None:
    """Rows of unequal length, one of a single token, padded on the left."""
    name, method = case
    model, prompts = tiny.model(name), tiny.prompts(LENGTHS)
    with tda.attach(model, method, tiny.thresholds(name, method), execution="masked") as run:
        new, logits = generate(model, prompts)
        expected = expected_logits(name, method, prompts, new, run)
    assert new.shape == (len(prompts), NEW)
    assert torch.equal(new, logits.argmax(-1))
    for row, wanted in enumerate(expected):
        check_close(logits[row], wanted)


@pytest.mark.parametrize("case", tiny.method_cases("llama", "opt"), ids=tiny.case_id)
def test_sampling_equals_a_manual_loop(case: tuple[str, Method]) -> None:
    name, method = case
    model, prompts = tiny.model(name), tiny.prompts(LENGTHS, seed=1)
    with tda.attach(model, method, tiny.thresholds(name, method), execution="masked") as run:
        torch.manual_seed(7)
        new, logits = generate(model, prompts, do_sample=True, top_k=0, temperature=1.0)
        expected = torch.stack(expected_logits(name, method, prompts, new, run))
    check_close(logits, expected)
    torch.manual_seed(7)
    drawn = [torch.multinomial(expected[:, step].float().softmax(-1), 1) for step in range(NEW)]
    assert torch.equal(torch.cat(drawn, 1), new)


def test_dense_methods_would_not_pass() -> None:
    """The comparison above can fail: the dense model's logits are far from the sparse ones."""
    prompts = tiny.prompts(LENGTHS)
    for name in tiny.names():
        with tda.attach(tiny.model(name), tda.Griffin(sparsity=0.5), execution="masked") as run:
            new, _ = generate(tiny.model(name), prompts)
            expected = expected_logits(name, tda.Dense(), prompts, new, run)
            sparse = expected_logits(name, tda.Griffin(sparsity=0.5), prompts, new, run)
        for dense, found in zip(expected, sparse, strict=True):
            torch.testing.assert_close(dense[0], found[0], rtol=0, atol=0)
            assert (dense[1:] - found[1:]).abs().max() > 1e-2 * dense.abs().max()


@pytest.mark.parametrize("name", tiny.names())
def test_a_row_with_per_row_sets_is_what_it_would_be_alone(name: str) -> None:
    model, prompts = tiny.model(name), tiny.prompts(LENGTHS, seed=2)
    for method in [m for m in tiny.default_methods() if tiny.fits(name, m)]:
        with tda.attach(model, method, tiny.thresholds(name, method), execution="masked"):
            _, batch = generate(model, prompts)
            for row, prompt in enumerate(prompts):
                _, alone = generate(model, [prompt])
                check_close(batch[row], alone[0].double())


class TestChunkedPrefill:
    @pytest.mark.parametrize(
        "chunks", [(1, 12), (5, 5, 3), *(pytest.param(c, marks=SLOW) for c in ((12, 1), (1,) * 13))]
    )
    @pytest.mark.parametrize("case", tiny.method_cases("llama", "opt", "gemma2"), ids=tiny.case_id)
    def test_equals_one_pass(self, case: tuple[str, Method], chunks: tuple[int, ...]) -> None:
        name, method = case
        model, prompt, new = tiny.model(name), tiny.text(2, sum(chunks), seed=3), tiny.text(2, 1, seed=4)
        with torch.no_grad(), tda.attach(model, method, tiny.thresholds(name, method), execution="masked") as run:
            whole = decode(model, new, prefill(model, prompt).cache)
            selection = run.selection()
            cache = tiny.new_cache(model)
            for chunk in prompt.split(chunks, dim=1):
                with run.prefill():
                    model(chunk, **tiny.on(model, cache))
            check_close(decode(model, new, cache), whole.double())
            for one, other in zip(selection, run.selection(), strict=True):
                assert torch.equal(one, other)

    def test_padded_chunks(self) -> None:
        """The mask covers the cache too, as transformers wants it."""
        model, method, prompts = tiny.model("llama"), tda.Griffin(sparsity=0.5), tiny.prompts(LENGTHS)
        tokens, mask = tiny.padded(prompts)
        with torch.no_grad(), tda.attach(model, method) as run:
            prefill(model, tokens, mask)
            whole = run.selection()
            cache = tiny.new_cache(model)
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            for start in range(0, tokens.shape[1], 4):
                end = min(start + 4, tokens.shape[1])
                with run.prefill():
                    model(
                        tokens[:, start:end],
                        attention_mask=mask[:, :end].long(),
                        position_ids=positions[:, start:end],
                        **tiny.on(model, cache),
                    )
            assert all(torch.equal(one, other) for one, other in zip(whole, run.selection(), strict=True))

    def test_generate_may_chunk_its_prefill(self) -> None:
        model, prompts = tiny.model("llama"), tiny.prompts((11, 11))
        with tda.attach(model, tda.Griffin(sparsity=0.5), execution="masked") as run:
            _, whole = generate(model, prompts)
            selection = run.selection()
            _, chunked = generate(model, prompts, prefill_chunk_size=4)
            assert all(torch.equal(one, other) for one, other in zip(selection, run.selection(), strict=True))
        check_close(chunked, whole.double())


class TestSecondTurn:
    """New prompt tokens join the statistic, generated ones do not, and the selection is made anew."""

    def expected_sets(self, sequence: Tensor, prompt: Tensor, first_decoded: Tensor, name: str) -> list[Tensor]:
        """Griffin's sets after a second turn; `first_decoded` marks what the first turn's sets computed."""
        reference = tiny.reference(name)
        first = sequence[: int(first_decoded.nonzero()[0])]
        rule = float64.rules(tda.Griffin(sparsity=0.5), reference, [first], None)[0]
        found = reference.run(sequence, first_decoded, rule)
        choices = [
            float64.Choice(
                float64.griffin_s(layer.z[prompt]),
                count=tiny.model_size(name) - float64.left_out(0.5, tiny.model_size(name)),
            )
            for layer in found.layers
        ]
        return [choice.kept() for choice in choices]

    @pytest.mark.parametrize("name", tiny.names())
    def test_through_generate(self, name: str) -> None:
        model, prompt, more = tiny.model(name), tiny.text(1, 9, seed=5), tiny.text(1, 6, seed=6)
        cache = tiny.new_cache(model)
        with tda.attach(model, tda.Griffin(sparsity=0.5), execution="masked") as run:
            first = model.generate(prompt, max_new_tokens=NEW, do_sample=False, **tiny.on(model, cache))
            before = run.selection()
            turn = torch.cat([first, more], 1)
            output = model.generate(
                turn,
                max_new_tokens=NEW,
                do_sample=False,
                **tiny.on(model, cache),
                output_logits=True,
                return_dict_in_generate=True,
            )
            after = run.selection()
        place = torch.arange(turn.shape[1])
        is_prompt = (place < 9) | (place >= first.shape[1])
        # The last generated token of the first turn was never fed; the second turn's prefill computes it densely.
        decoded = (place >= 9) & (place < first.shape[1] - 1)
        expected = self.expected_sets(turn[0], is_prompt, decoded, name)
        assert all(torch.equal(kept[0], wanted) for kept, wanted in zip(after, expected, strict=True))
        assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        reference = tiny.reference(name)
        rule_1 = float64.rules(tda.Griffin(sparsity=0.5), reference, [prompt[0]], None)[0]
        sequence = output.sequences[0, :-1]
        place = torch.arange(len(sequence))
        second = place >= turn.shape[1]
        first_steps = (place >= 9) & (place < first.shape[1] - 1)

        def rule(layer: int, a: float64.Activations) -> Tensor:
            return torch.where(second.unsqueeze(1), expected[layer], rule_1(layer, a))

        logits = reference.run(sequence, first_steps | second, rule).logits[turn.shape[1] - 1 :]
        check_close(torch.stack(output.logits, 1)[0], logits)

    def test_by_hand(self) -> None:
        model, prompt, more = tiny.model("opt"), tiny.text(1, 9, seed=5), tiny.text(1, 6, seed=6)
        generated = tiny.text(1, 4, seed=7)
        with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5), execution="masked") as run:
            cache = prefill(model, prompt).cache
            for step in range(4):
                decode(model, generated[:, step : step + 1], cache)
            with run.prefill():
                decode(model, more, cache)
            after = run.selection()
        sequence = torch.cat([prompt, generated, more], 1)[0]
        place = torch.arange(len(sequence))
        decoded = (place >= 9) & (place < 13)
        expected = self.expected_sets(sequence, ~decoded, decoded, "opt")
        assert all(torch.equal(kept[0], wanted) for kept, wanted in zip(after, expected, strict=True))

    def test_the_last_generated_token_never_counts(self) -> None:
        """No forward saw it in its own turn; the next turn feeds it, and it still is no prompt."""
        model, prompt, more = tiny.model("llama"), tiny.text(1, 9, seed=5), tiny.text(1, 6, seed=6)
        with tda.attach(model, tda.Griffin(sparsity=0.5), execution="masked") as run:
            cache = tiny.new_cache(model)
            sequence = prompt
            for turn in range(3):
                sequence = model.generate(sequence, max_new_tokens=NEW, do_sample=False, **tiny.on(model, cache))
                assert run.attachment.requests.last is not None
                assert run.attachment.requests.last.prompt().tokens.tolist() == [9 + 6 * turn]
                sequence = torch.cat([sequence, more], 1)


class TestRequests:
    @pytest.mark.parametrize("execution", ["masked", "compact"])
    @pytest.mark.parametrize("name", ["llama", "opt"])
    def test_interleaved_caches_keep_their_own_selection(self, name: str, execution: Any) -> None:
        model, method = tiny.model(name), tda.Griffin(sparsity=0.5)
        one, other = tiny.text(1, 8, seed=1), tiny.text(1, 11, seed=2)
        steps = tiny.text(1, 4, seed=3)
        alone = []
        for prompt in (one, other):
            with torch.no_grad(), tda.attach(model, method, execution=execution):
                cache = prefill(model, prompt).cache
                alone.append([decode(model, steps[:, s : s + 1], cache) for s in range(4)])
        with torch.no_grad(), tda.attach(model, method, execution=execution):
            caches = [prefill(model, prompt).cache for prompt in (one, other)]
            for step in range(4):
                for number, cache in enumerate(caches):
                    found = decode(model, steps[:, step : step + 1], cache)
                    check_close(found, alone[number][step].double(), 1e-5)

    @pytest.mark.parametrize("method", PROMPT_WISE, ids=tiny.case_id)
    def test_requests_do_not_leak(self, method: Method) -> None:
        model, thresholds = tiny.model("llama"), tiny.thresholds("llama", method)
        with tda.attach(model, method, thresholds) as run:
            _, alone = generate(model, tiny.prompts((9,), seed=8))
            wanted = run.selection()
        with tda.attach(model, method, thresholds) as run:
            generate(model, tiny.prompts((13, 2, 5), seed=9))
            generate(model, tiny.prompts((1,), seed=10))
            _, after = generate(model, tiny.prompts((9,), seed=8))
            assert all(torch.equal(one, other) for one, other in zip(wanted, run.selection(), strict=True))
        check_close(after, alone.double(), 1e-6)

    def test_finished_requests_are_forgotten(self) -> None:
        model = tiny.model("llama")
        with tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
            for seed in range(20):
                generate(model, tiny.prompts((9,), seed=seed))
            gc.collect()
            assert len(run.attachment.requests) <= 1

    def test_a_reused_cache_that_was_emptied_is_a_new_request(self) -> None:
        model, prompts = tiny.model("llama"), [tiny.text(1, 9, seed=n) for n in (1, 2)]
        with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
            cache = tiny.new_cache(model)
            with run.prefill():
                model(prompts[0], **tiny.on(model, cache))
            cache.crop(-9)
            model(prompts[1], **tiny.on(model, cache))
            reused = run.selection()
            prefill(model, prompts[1])
            assert all(torch.equal(one, other) for one, other in zip(reused, run.selection(), strict=True))

    def test_achieved_sparsity_is_the_mean_over_decode_steps(self) -> None:
        model, method = tiny.model("llama"), tda.TDA(sparsity=0.5)
        thresholds = tiny.thresholds("llama", method)
        with torch.no_grad(), tda.attach(model, method, thresholds) as run:
            with pytest.raises(ValueError, match="no decode step ran yet"):
                run.achieved_sparsity()
            shares = []
            for seed, steps in ((1, 3), (2, 9)):
                cache = prefill(model, tiny.text(1, 8, seed=seed)).cache
                for step in range(steps):
                    decode(model, torch.tensor([[step + 1]]), cache)
                shares += [[1 - kept.double().mean().item() for kept in run.selection()]] * steps
            wanted = torch.tensor(shares).mean(0)
            torch.testing.assert_close(torch.tensor(run.achieved_sparsity()), wanted)
        assert wanted[0] != shares[0][0], "the two prompts leave out unlike shares, so the weights matter"


class TestWaysToGenerate:
    @pytest.mark.parametrize("name", ["llama", "opt", "mistral"])
    @pytest.mark.parametrize("padding", [(9, 9), (9, 4)])
    def test_static_cache(self, name: str, padding: tuple[int, int]) -> None:
        model, prompts = tiny.model(name), tiny.prompts(padding, seed=3)
        with tda.attach(model, tda.Griffin(sparsity=0.5), execution="masked") as run:
            dynamic, logits = generate(model, prompts)
            selection = run.selection()
            static, found = generate(model, prompts, cache_implementation="static")
            assert all(torch.equal(one, other) for one, other in zip(selection, run.selection(), strict=True))
        assert torch.equal(dynamic, static)
        check_close(found, logits.double())

    def test_static_cache_without_a_mask(self, llama: Any) -> None:
        prompt = tiny.text(1, 9)
        with tda.attach(llama, tda.Griffin(sparsity=0.5)) as run:
            llama.generate(prompt, max_new_tokens=3, do_sample=False, cache_implementation="static")
            static = run.selection()
            llama.generate(prompt, max_new_tokens=3, do_sample=False)
            assert all(torch.equal(one, other) for one, other in zip(static, run.selection(), strict=True))

    @pytest.mark.parametrize("execution", ["masked", "compact"])
    def test_beam_search(self, execution: Any) -> None:
        """All beams of a prompt share its selection; the best beam's score is the formula's."""
        model, prompts = tiny.model("llama"), tiny.prompts((9, 4), seed=4)
        tokens, mask = tiny.padded(prompts)
        method = tda.Griffin(sparsity=0.5)
        with tda.attach(model, method, execution=execution) as run:
            output = model.generate(
                tokens,
                attention_mask=mask.long(),
                max_new_tokens=NEW,
                num_beams=3,
                do_sample=False,
                length_penalty=0.0,
                output_scores=True,
                return_dict_in_generate=True,
            )
            assert all(len(kept) == 6 for kept in run.selection())
        reference = tiny.reference("llama")
        rules = float64.rules(method, reference, prompts, None)
        for row, rule in enumerate(rules):
            new = output.sequences[row, tokens.shape[1] :]
            logits = float64.continuation_logits(reference, prompts[row], new, rule)
            total = logits.log_softmax(-1).gather(1, new.unsqueeze(1)).sum()
            assert float(output.sequences_scores[row]) == pytest.approx(float(total), abs=1e-3)

    def test_several_samples_of_one_prompt(self) -> None:
        model, prompts = tiny.model("llama"), tiny.prompts((9,), seed=4)
        with tda.attach(model, tda.Griffin(sparsity=0.5), execution="masked") as run:
            new, logits = generate(model, prompts, do_sample=True, top_k=0, num_return_sequences=3)
            expected = expected_logits("llama", run.attachment.method, prompts * 3, new, run)
        for row, wanted in enumerate(expected):
            check_close(logits[row], wanted)

    def test_embeddings_as_prompt(self) -> None:
        model, prompt = tiny.model("llama"), tiny.text(1, 9)
        embeddings = model.get_input_embeddings()(prompt).detach()
        with tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
            by_id = model.generate(prompt, max_new_tokens=NEW, do_sample=False)
            selection = run.selection()
            by_embedding = model.generate(inputs_embeds=embeddings, max_new_tokens=NEW, do_sample=False)
            assert all(torch.equal(one, other) for one, other in zip(selection, run.selection(), strict=True))
        assert torch.equal(by_id[:, 9:], by_embedding)

    @pytest.mark.parametrize("name", ["llama", "opt"])
    def test_forward_with_positional_arguments(self, name: str) -> None:
        """A mask is a mask, whether it is passed by name or by place."""
        model, (tokens, mask) = tiny.model(name), tiny.padded(tiny.prompts(LENGTHS))
        with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
            model(tokens, attention_mask=mask.long())
            by_name = run.selection()
            model(tokens, mask.long())
            assert all(torch.equal(one, other) for one, other in zip(by_name, run.selection(), strict=True))

    def test_prompt_as_any_argument(self) -> None:
        model, prompt = tiny.model("llama"), tiny.text(1, 9)
        with tda.attach(model, tda.Griffin(sparsity=0.5)):
            outputs = [
                model.generate(prompt, max_new_tokens=3, do_sample=False),
                model.generate(input_ids=prompt, max_new_tokens=3, do_sample=False),
                model.generate(inputs=prompt, max_new_tokens=3, do_sample=False),
            ]
        assert all(torch.equal(outputs[0], output) for output in outputs)

    def test_embeddings_beside_no_tokens(self, llama: Any) -> None:
        """None in the place of the tokens is what transformers' own generate takes."""
        embeddings = llama.get_input_embeddings()(tiny.text(1, 9)).detach()
        with tda.attach(llama, tda.Griffin(sparsity=0.5)):
            by_id = llama.generate(tiny.text(1, 9), max_new_tokens=3, do_sample=False)
            found = llama.generate(None, inputs_embeds=embeddings, max_new_tokens=3, do_sample=False)
        assert torch.equal(by_id[:, 9:], found)

    def test_an_output_without_cache_is_not_asked_by_the_old_name(
        self, llama: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Transformers would tell the user of a name that only tda has used."""
        told: list[str] = []
        monkeypatch.setattr(transformers.utils.generic.logger, "warning_once", told.append)
        with torch.no_grad(), tda.attach(llama, tda.Dense()):
            llama(tiny.text(1, 4), use_cache=False)
        assert not told

    def test_modes_may_change_between_turns(self) -> None:
        """Prefill under inference_mode, the next turn under no_grad, and with gradients."""
        model, method = tiny.model("llama"), tda.TDA(sparsity=0.5, statistic="contribution")
        with tda.attach(model, method, tiny.thresholds("llama", method)) as run:
            cache = tiny.new_cache(model)
            with torch.inference_mode(), run.prefill():
                prefill(model, tiny.text(1, 4))
            with torch.no_grad(), run.prefill():
                model(tiny.text(1, 4), **tiny.on(model, cache))
            logits = model(tiny.text(1, 1), **tiny.on(model, cache)).logits
        assert logits.isfinite().all()
