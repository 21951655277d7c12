"""Mixtures of experts against float64: each expert chooses from the tokens that reached it, and from no others.

The reference is a float64 copy of the model whose experts are computed here, a row at a time.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import contract
import float64
import pytest
import tiny
import torch
from torch import Tensor

import tda
from tda.bench.traffic import decode_traffic
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.families import find_ffns
from tda.profiler.parts import named_parts

EXPERTS, CHOSEN, F = 4, 2, 20
METHODS: list[Method] = [
    tda.Griffin(),
    tda.Griffin(sparsity=0.25, prior_tokens=4),
    tda.TDA(),
    tda.TDA(sparsity=0.25, statistic="relative", source="gate"),
    tda.GLASS(),
    tda.StaticMean(),
    tda.TT(),
    tda.CATS(),
    tda.Oracle(),
]
each_type = pytest.mark.parametrize("name", contract.MIXTURES)
Keep = Callable[[int, int, float64.Activations], Tensor]
"""Kept neurons [n, F] of a layer's expert, of the tokens that it is shown."""


class Reference:
    """A float64 copy of a tiny model, with its experts computed here."""

    def __init__(self, name: str) -> None:
        self.model = copy.deepcopy(tiny.model(name)).double()
        self.blocks = [layer.mlp.experts for layer in self.model.model.layers]

    def weights(self, layer: int, expert: int) -> float64.Weights:
        gate, up = self.blocks[layer].gate_up_proj[expert].detach().chunk(2)
        down = self.blocks[layer].down_proj[expert].detach()
        return float64.Weights(gate, up, down, None, None, None, float64.ACTIVATIONS["silu"])

    @contextmanager
    def computed(self, keep: Keep, sparse: Tensor, seen: dict[tuple[int, int], Any]) -> Iterator[None]:
        """Experts computed here: tokens where sparse [T] is true leave out what `keep` does not keep."""
        for layer, block in enumerate(self.blocks):

            def forward(x: Tensor, experts: Tensor, shares: Tensor, layer: int = layer) -> Tensor:
                y = torch.zeros_like(x)
                for token in range(len(x)):
                    for expert, share in zip(experts[token].tolist(), shares[token], strict=True):
                        weights = self.weights(layer, expert)
                        a = float64.Float64.activations(weights, x[token : token + 1])
                        seen.setdefault((layer, expert), []).append((token, a))
                        kept = keep(layer, expert, a)[0] if sparse[token] else torch.ones(F, dtype=torch.bool)
                        y[token] += share * (weights.down @ (a.z[0] * kept))
                return y

            block.forward = forward
        try:
            with float64.in_float64():
                yield
        finally:
            for block in self.blocks:
                del block.forward

    @torch.no_grad()
    def run(self, tokens: Tensor, keep: Keep, prompt: int) -> tuple[Tensor, dict[tuple[int, int], Any]]:
        """Logits of one row [T, V], sparse behind its prompt, and what each expert saw."""
        seen: dict[tuple[int, int], Any] = {}
        with self.computed(keep, torch.arange(len(tokens)) >= prompt, seen):
            return self.model(input_ids=tokens.unsqueeze(0), use_cache=False).logits[0], seen


@functools.cache
def reference(name: str) -> Reference:
    return Reference(name)


def everything(layer: int, expert: int, a: float64.Activations) -> Tensor:
    return torch.ones_like(a.z, dtype=torch.bool)


def joined(seen: list[tuple[int, float64.Activations]]) -> float64.Activations:
    parts = [a for _, a in sorted(seen, key=lambda one: one[0])]
    gates = torch.cat([a.gate for a in parts if a.gate is not None])
    rest = {name: torch.cat([getattr(a, name) for a in parts]) for name in ("z", "up", "x")}
    return float64.Activations(gate=gates, **rest)


def fitted(name: str, method: Method) -> Method:
    return tiny.fitted(name, method)


@each_type
@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.spec))
def test_sets_and_logits_equal_the_formula_of_each_expert(name: str, method: Method) -> None:
    """A prompt of twelve tokens, and one of two, which some experts do not see at all."""
    model, chosen, own = tiny.model(name), fitted(name, method), reference(name)
    for length in (12, 2):
        prompt, fed = tiny.text(1, length, seed=3), tiny.text(1, 4, seed=4)
        with torch.no_grad(), tda.attach(model, chosen) as run:
            cache = prefill(model, prompt).cache
            found = torch.cat([decode(model, token, cache) for token in fed.split(1, dim=1)], 1)[0]
            kept = [layer[0] for layer in run.selection()]
            assert run.execution == "masked"
            assert "experts" in run.backend or not method.fast
            achieved = run.achieved_sparsity()
        _, seen = own.run(prompt[0], everything, len(prompt[0]))
        if method.scope != "token":
            for layer in range(tiny.LAYERS):
                for expert in range(EXPERTS):
                    check(chosen, own, layer, expert, seen.get((layer, expert)), kept[EXPERTS * layer + expert], length)

        def keep(layer: int, expert: int, a: float64.Activations, kept: list[Tensor] = kept) -> Tensor:
            number = EXPERTS * layer + expert
            if method.scope != "token":
                return kept[number].unsqueeze(0)
            weights = own.weights(layer, expert)
            (choice,) = float64.token_choices(chosen, weights, a, chosen.thresholds, number)
            return choice.kept().unsqueeze(0)

        logits, after = own.run(torch.cat([prompt[0], fed[0]]), keep, len(prompt[0]))
        expected = logits[len(prompt[0]) :]
        assert (found.double() - expected).abs().max() <= 1e-4 * expected.abs().max()
        for layer in range(tiny.LAYERS):
            shares = [
                1 - float(keep(layer, expert, a).double().mean())
                for (at, expert), calls in after.items()
                for token, a in calls
                if at == layer and token >= len(prompt[0])
            ]
            assert achieved[layer] == pytest.approx(sum(shares) / len(shares), abs=1e-6)


def check(method: Method, own: Reference, layer: int, expert: int, seen: Any, kept: Tensor, length: int) -> None:
    """A prompt-wise set of one expert: of the tokens that reached it; where none did and nothing is known, all."""
    weights, number = own.weights(layer, expert), EXPERTS * layer + expert
    if seen is None and method.name in ("griffin", "tda") and not getattr(method, "prior_tokens", 0):
        assert kept.all()
        return
    empty = torch.zeros(0, F, dtype=torch.float64)
    rows = float64.Activations(empty, empty, empty, torch.zeros(0, tiny.D)) if seen is None else joined(seen)
    float64.prompt_choices(method, weights, [rows], method.thresholds, number, [length])[0].check(kept)


@each_type
def test_a_padded_batch_is_its_rows(name: str) -> None:
    model, prompts = tiny.model(name), tiny.prompts((9, 4), seed=2)
    tokens, mask = tiny.padded(prompts)
    fed = tiny.text(2, 3, seed=8)

    def logits(rows: Tensor, inside: Tensor, steps: Tensor) -> Tensor:
        with torch.no_grad(), tda.attach(model, tda.Griffin()):
            cache = prefill(model, rows, inside).cache
            for number in range(steps.shape[1]):
                inside = torch.cat([inside, torch.ones(len(rows), 1, dtype=torch.bool)], 1)
                found = decode(model, steps[:, number : number + 1], cache, inside)
        return found

    together = logits(tokens, mask, fed)
    for row, prompt in enumerate(prompts):
        alone = logits(prompt.unsqueeze(0), torch.ones(1, len(prompt), dtype=torch.bool), fed[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@each_type
def test_the_model_is_what_it_was(name: str) -> None:
    model, ids = tiny.model(name), tiny.text(1, 9)
    mask = torch.ones_like(ids)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        dense, expected = model(ids).logits, model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        with tda.attach(model, tda.Griffin(sparsity=0)) as run:
            found = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
            assert run.achieved_sparsity() == [0, 0]
        assert torch.equal(found, expected)
        assert torch.equal(model(ids).logits, dense)
    assert all("forward" not in vars(layer.mlp.experts) for layer in model.model.layers)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each_type
def test_bytes_of_a_token_are_those_of_its_experts(name: str) -> None:
    """Counted by hand: attention, norms, router and head whole, two of four experts, of which a half of the neurons."""
    model: Any = tiny.model(name)
    ffns = find_ffns(model)
    expert = 3 * F * tiny.D * 4
    heads = sum(p.nbytes for path, p in model.named_parameters() if "experts" not in path and "embed" not in path)
    dense = decode_traffic(model, ffns, tda.Dense(), [1.0] * len(ffns), 8, 1).weights
    assert dense == heads + tiny.LAYERS * CHOSEN * expert
    half = decode_traffic(model, ffns, tda.Griffin(), [0.5] * len(ffns), 8, 1).weights
    assert half == heads + tiny.LAYERS * CHOSEN * expert / 2
    gate_only = decode_traffic(model, ffns, tda.TT(sparsity=0.5), [0.5] * len(ffns), 8, 1).weights
    assert gate_only == pytest.approx(heads + tiny.LAYERS * CHOSEN * expert * (2 + 0.5) / 3)
    three = decode_traffic(model, ffns, tda.Dense(), [1.0] * len(ffns), 8, 3).weights
    assert three == pytest.approx(heads + tiny.LAYERS * EXPERTS * (1 - (1 - CHOSEN / EXPERTS) ** 3) * expert)


@each_type
def test_what_is_not_there_yet_is_said(name: str) -> None:
    model = tiny.model(name)
    for execution in ("compact", "indexed"):
        refused = pytest.raises(ValueError, match=r"mixtures of experts .*'masked'")
        with refused, tda.attach(model, tda.Griffin(), execution=execution):
            pass


@each_type
def test_a_forward_of_their_own_stays(name: str) -> None:
    """One that only passes through, as loggers and accelerate set it."""
    model = tiny.build(name)
    experts = model.model.layers[0].mlp.experts
    inner = experts.forward
    own = experts.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    with tda.attach(model, tda.Griffin()):
        pass
    assert vars(experts)["forward"] is own
    assert "forward" not in vars(model.model.layers[1].mlp.experts)


def test_layers_with_and_without_experts_are_refused() -> None:
    model = tiny.build("qwen3_moe", mlp_only_layers=[1])
    with pytest.raises(ValueError, match=r"some layers .*mixtures of experts"):
        find_ffns(model)


@each_type
def test_experts_that_compute_something_else_are_refused(name: str) -> None:
    model = tiny.build(name)
    own = type(model.model.layers[1].mlp.experts).forward
    block = model.model.layers[1].mlp.experts
    block.register_forward_hook(lambda module, args, output: 1.5 * output)
    with pytest.raises(ValueError, match="layer 1: the output of the experts"), tda.attach(model, tda.Griffin()):
        pass
    assert type(block).forward is own


@each_type
def test_a_profile_names_the_experts(name: str) -> None:
    parts = [part for _, part, _ in named_parts(tiny.model(name))]
    assert parts.count("ffn") == tiny.LAYERS
