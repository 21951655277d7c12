"""The formulas of the methods a second time: in float64, one row at a time, without the package.

A pass runs one whole sequence at once, without batch, padding or cache, and is told position by position which tokens
are decode steps. A causal model's later tokens do not reach back, so that equals prefill and decode on a cache.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tda.families import FAMILIES

Rule = Callable[[int, "Activations"], Tensor]
"""(layer, activations of all tokens) -> kept neurons, bool, broadcast to [T, F]."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: (x * (x > 0)) ** 2,
}
ACTIVATIONS["gelu_new"] = ACTIVATIONS["gelu_pytorch_tanh"]
NAMED = ("hidden_act", "hidden_activation", "activation_function")
"""Fields of a configuration that name the activation."""
FIXED = {
    "gemma": "gelu_pytorch_tanh",
    "gemma2": "gelu_pytorch_tanh",
    "bloom": "gelu_pytorch_tanh",
    "mpt": "gelu",
    "falcon": "gelu",
}
"""Activations of types of model whose configuration does not tell."""


def xielu(act: Any) -> Callable[[Tensor], Tensor]:
    """xIELU, arXiv 2411.13010: quadratic above 0, exponential and linear below; both slopes are learnt."""
    above, beta = torch.log1p(torch.exp(act.alpha_p.detach())), act.beta
    below = beta + torch.log1p(torch.exp(act.alpha_n.detach()))
    negative = lambda x: below * (torch.exp(x.clamp(max=-1e-6)) - 1 - x) + beta * x  # noqa: E731
    return lambda x: torch.where(x > 0, above * x**2 + beta * x, negative(x))


@dataclass
class Activations:
    """Of one layer: z [T, F], act(gate x) and up x where there is a gate, and the FFN's input x [T, D]."""

    z: Tensor
    gate: Tensor | None
    up: Tensor
    x: Tensor

    def source(self, name: str) -> Tensor:
        found = {"z": self.z, "gate": self.gate, "up": self.up}[name]
        assert found is not None
        return found


@dataclass
class Weights:
    """Of one layer's FFN, float64; gate [F, D] or None, up [F, D], down [D, F], biases or None."""

    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None
    act: Callable[[Tensor], Tensor]

    @property
    def F(self) -> int:  # noqa: N802
        return len(self.up)

    @property
    def down_norms(self) -> Tensor:
        return (self.down**2).sum(0).sqrt()


@dataclass
class Pass:
    """Logits [T, V], and for each layer the activations before anything was left out, and what was kept [T, F]."""

    logits: Tensor
    layers: list[Activations]
    kept: list[Tensor]


class Float64:
    """A float64 copy of a model whose FFNs are computed by the formulas as written here."""

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model).double()
        config = self.model.config
        family = next(found for found in FAMILIES.values() if config.model_type in found.model_types)
        act = FIXED.get(config.model_type) or next(filter(None, (getattr(config, name, None) for name in NAMED)))
        self.layers = [_Layer(layer, family, act) for layer in _at(self.model, family.layers)]
        self.weights = [layer.weights for layer in self.layers]

    @torch.no_grad()
    def run(self, tokens: Tensor, sparse: Tensor | None = None, rule: Rule | None = None) -> Pass:
        """Run one sequence [T]; where sparse [T] is true, only what the rule keeps is computed."""
        seen: list[Activations] = []
        kept: list[Tensor] = []

        def ffn(number: int, x: Tensor) -> Tensor:
            weights = self.weights[number]
            activations = self.activations(weights, x.reshape(len(tokens), -1))
            keep = torch.ones_like(activations.z, dtype=torch.bool)
            if rule is not None and sparse is not None:
                keep = rule(number, activations) | ~sparse.unsqueeze(-1)
            seen.append(activations)
            kept.append(keep)
            y = (activations.z * keep) @ weights.down.T
            return (y if weights.down_bias is None else y + weights.down_bias).view_as(x)

        with _replaced(self.layers, ffn), in_float64():
            logits = self.model(input_ids=tokens.unsqueeze(0), use_cache=False).logits[0]
        return Pass(logits, seen, kept)

    @staticmethod
    def activations(weights: Weights, x: Tensor) -> Activations:
        up = x @ weights.up.T + (0 if weights.up_bias is None else weights.up_bias)
        if weights.gate is None:
            return Activations(weights.act(up), None, up, x)
        gate = weights.act(x @ weights.gate.T + (0 if weights.gate_bias is None else weights.gate_bias))
        return Activations(gate * up, gate, up, x)


@contextmanager
def in_float64() -> Iterator[None]:
    """Let what a model makes on its way be float64 too."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _at(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root


class _Layer:
    """Modules of one layer's FFN."""

    def __init__(self, layer: Any, family: Any, act: str) -> None:
        self.block = None if family.block is None else _at(layer, family.block)
        self.first, self.last = (_at(layer, path.partition("[")[0]) for path in (family.up, family.down))
        up, up_bias = _weights(layer, family.up)
        down, down_bias = _weights(layer, family.down)
        gate, gate_bias = (None, None) if family.gate is None else _weights(layer, family.gate)
        self.weights = Weights(
            gate=gate,
            up=up,
            down=down,
            gate_bias=gate_bias,
            up_bias=up_bias,
            down_bias=down_bias,
            act=xielu(_at(layer, family.act)) if act == "xielu" else ACTIVATIONS[act],
        )


def _weights(layer: Any, path: str) -> tuple[Tensor, Tensor | None]:
    """Weight [N, K] and bias at a path; ``path[1/2]`` is the lower half of the weight."""
    module = _at(layer, path.partition("[")[0])
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    if type(module).__name__ == "Conv1D":  # stored [K, N]
        weight = weight.T
    if "[" in path:
        assert path.endswith("/2]")
        half = int(path[-4])
        weight, bias = weight.chunk(2)[half], bias if bias is None else bias.chunk(2)[half]
    return weight, bias


@contextmanager
def _replaced(layers: Sequence[_Layer], ffn: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Compute every FFN by `ffn`. Only this file's own copy of a model is touched."""
    hooks = []
    for number, layer in enumerate(layers):
        if layer.block is not None:
            hooks.append(layer.block.register_forward_hook(lambda m, args, y, n=number: ffn(n, args[0])))
            continue
        inputs: dict[int, Tensor] = {}
        hooks.append(layer.first.register_forward_pre_hook(lambda m, args, n=number, i=inputs: i.update({n: args[0]})))
        hooks.append(layer.last.register_forward_hook(lambda m, args, y, n=number, i=inputs: ffn(n, i.pop(n))))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# The statistics, one row at a time: activations [T, F] of the row's own tokens -> [F].


def relative(a: Tensor) -> Tensor:
    """a_tj / ‖a_t‖₂; an all-zero token gives zeros."""
    norms = (a**2).sum(1, keepdim=True).sqrt()
    return torch.where(norms > 0, a / norms.where(norms > 0, torch.ones_like(norms)), torch.zeros_like(a))


def griffin_s(z: Tensor) -> Tensor:
    return (relative(z) ** 2).sum(0).sqrt()


def relative_magnitude(a: Tensor, statistic: str, down_norms: Tensor) -> Tensor:
    F = a.shape[1]
    if statistic == "relative":
        return (relative(a) ** 2).mean(0).sqrt() * math.sqrt(F)
    if statistic == "contribution":
        return (relative(a * down_norms) ** 2).mean(0).sqrt() * math.sqrt(F)
    if statistic == "max":
        return relative(a).abs().max(0).values * math.sqrt(F)
    assert statistic == "l2"
    norms = (a**2).sum(0).sqrt()
    return norms / (norms**2).mean().sqrt() if norms.any() else norms


def contributions(z: Tensor, down_norms: Tensor) -> Tensor:
    return z.abs() * down_norms


def magnitude(weights: Weights) -> Tensor:
    rows = (weights.up**2).sum(1).sqrt()
    return rows if weights.gate is None else rows * (weights.gate**2).sum(1).sqrt()


# From scores to sets.


def left_out(sparsity: float, F: int) -> int:
    return math.floor(sparsity * F + 0.5)


FLOAT32 = 2e-5
"""Rounding of a score in float32, as a share of the border."""


@dataclass
class Choice:
    """What to keep of one layer for one row (or token): the scores [F], and a count or a cut.

    A float32 computation may disagree about neurons within rounding of the cut, and about no others.
    """

    scores: Tensor
    count: int | None = None
    cut: float | None = None
    step: float = 0.0
    """What a swap of two neurons changes, where scores are ranks: rounding coarser than float32's swaps some."""

    def kept(self) -> Tensor:
        if self.cut is not None:
            return self.scores >= self.cut
        assert self.count is not None
        order = sorted(range(len(self.scores)), key=lambda j: (-float(self.scores[j]), j))
        kept = torch.zeros(len(self.scores), dtype=torch.bool)
        kept[order[: self.count]] = True
        return kept

    @property
    def border(self) -> float:
        if self.cut is not None:
            return self.cut
        assert self.count is not None
        ranked = sorted(self.scores.tolist(), reverse=True)
        return ranked[max(self.count - 1, 0)]

    def check(self, kept: Tensor, rounding: float = FLOAT32, *, of_largest: bool = False) -> None:
        """Raise AssertionError where a set differs by more than rounding, as a share of the border or largest score."""
        if self.cut is None:
            assert int(kept.sum()) == self.count, f"kept {int(kept.sum())} neurons, not {self.count}"
        wrong = kept.cpu() != self.kept()
        unit = float(self.scores.abs().max()) if of_largest else abs(self.border)
        distance = (self.scores - self.border).abs() / max(unit, 1e-30)
        rounding += self.step / max(unit, 1e-30) if rounding > FLOAT32 else 0.0
        far = (wrong & (distance > rounding)).nonzero().flatten().tolist()
        assert not far, f"neurons {far} are on the wrong side; scores {self.scores[far]}, border {self.border}"
        assert int(wrong.sum()) <= max(2, len(wrong) // 10), "too many neurons within rounding of the cut"


# The methods: what each keeps, of all that the registry knows. A new method states its formula here.


def cut_at(thresholds: Any, layer: int, tokens: float) -> float:
    """A prompt's cut: linear between calibrated lengths on a log scale, held beyond them."""
    return float(np.interp(np.log2(tokens), np.log2(thresholds.lengths), thresholds.cuts[layer]))


def prior(thresholds: Any, layer: int) -> Tensor:
    return torch.tensor(thresholds.prior[layer], dtype=torch.float64)


def rank(scores: Tensor) -> Tensor:
    """1 for the least; equal scores share the mean of their ranks."""
    less, equal = (scores < scores[:, None]).sum(1), (scores == scores[:, None]).sum(1)
    return less + (equal + 1) / 2


def prompt_choices(
    method: Any,
    weights: Weights,
    rows: Sequence[Activations],
    thresholds: Any,
    layer: int,
    lengths: Sequence[int] | None = None,
) -> list[Choice]:
    """What a prompt-wise method keeps in one layer, for each row of a batch, from the rows' prompt activations.

    `lengths` are those of the prompts where not all of their tokens come to this layer's expert.
    """
    tokens = [len(row.z) for row in rows]
    if method.name == "tda":
        R = [relative_magnitude(row.source(method.source), method.statistic, weights.down_norms) for row in rows]
        if n0 := method.prior_tokens:
            m = prior(thresholds, layer)
            squares = [(T * r.square() / weights.F + n0 * m) / (T + n0) for r, T in zip(R, tokens, strict=True)]
            R = [(weights.F * s2).sqrt() for s2 in squares]
        if method.rows == "shared":
            R, tokens = [sum(R) / len(R)] * len(R), [sum(tokens) / len(tokens)] * len(R)
        cuts = [cut_at(thresholds, layer, count) for count in lengths or tokens]
        least, most = math.ceil(method.min_keep * weights.F), math.floor(method.max_keep * weights.F)
        choices = [Choice(scores, cut=cut) for scores, cut in zip(R, cuts, strict=True)]
        counts = [int(choice.kept().sum()) for choice in choices]
        return [
            choice if least <= count <= most else Choice(choice.scores, count=min(max(count, least), most))
            for choice, count in zip(choices, counts, strict=True)
        ]
    if method.name == "griffin":
        scores, n0 = [griffin_s(row.z) for row in rows], method.prior_tokens
        if n0:
            scores = [(s.square() + n0 * prior(thresholds, layer)).sqrt() for s in scores]
        if method.rows == "shared":
            scores = [sum(s / math.sqrt(T + n0) for s, T in zip(scores, tokens, strict=True))] * len(rows)
    elif method.name == "glass":
        norms = weights.down_norms if method.statistic == "contribution" else torch.ones_like(weights.down_norms)
        own, w = [rank(griffin_s(row.z * norms)) for row in rows], method.weight
        model = rank(torch.tensor(thresholds.scores[layer], dtype=torch.float64))
        count = weights.F - left_out(method.sparsity, weights.F)
        return [Choice(w * r + (1 - w) * model + 1e-6 * r, count=count, step=1.0) for r in own]
    elif method.name == "magnitude":
        scores = [magnitude(weights)] * len(rows)
    elif method.name == "static_mean":
        scores = [torch.tensor(thresholds.scores[layer], dtype=torch.float64)] * len(rows)
    else:
        raise NotImplementedError(f"tests/float64.py has no formula of the method {method.name!r} yet; write it there")
    return [Choice(s, count=weights.F - left_out(method.sparsity, weights.F)) for s in scores]


def token_choices(method: Any, weights: Weights, row: Activations, thresholds: Any, layer: int) -> list[Choice]:
    """What a per-token method keeps in one layer, for each token of a row."""
    if method.name == "oracle":
        count = weights.F - left_out(method.sparsity, weights.F)
        return [Choice(scores, count=count) for scores in contributions(row.z, weights.down_norms)]
    if method.name == "tt":
        return [Choice(scores, cut=thresholds.cuts[layer][0]) for scores in contributions(row.z, weights.down_norms)]
    if method.name == "cats":
        assert row.gate is not None
        return [Choice(scores, cut=thresholds.cuts[layer][0]) for scores in row.gate.abs()]
    raise NotImplementedError(f"tests/float64.py has no formula of the method {method.name!r} yet; write it there")


def rules(
    method: Any,
    reference: Float64,
    prompts: Sequence[Tensor],
    thresholds: Any,
    given: Sequence[Tensor] | None = None,
) -> list[Rule]:
    """The rule by which each row's decode steps leave neurons out.

    `given` are sets [B, F] per layer that stand in for a selection; the random method needs them, having no formula.
    """
    if method.scope == "token" and not method.keeps_all:

        def by_token(layer: int, row: Activations) -> Tensor:
            choices = token_choices(method, reference.weights[layer], row, thresholds, layer)
            return torch.stack([choice.kept() for choice in choices])

        return [by_token] * len(prompts)
    if given is None and method.name != "dense" and not method.keeps_all:
        passes = [reference.run(prompt) for prompt in prompts]
        given = [
            torch.stack(
                [
                    c.kept()
                    for c in prompt_choices(method, weights, [p.layers[layer] for p in passes], thresholds, layer)
                ]
            )
            for layer, weights in enumerate(reference.weights)
        ]

    def by_prompt(row: int) -> Rule:
        return lambda layer, a: torch.ones(a.z.shape[1], dtype=torch.bool) if given is None else given[layer][row]

    return [by_prompt(row) for row in range(len(prompts))]


def continuation_logits(
    reference: Float64, prompt: Tensor, continuation: Tensor, rule: Rule, *, last_sparse: bool = False
) -> Tensor:
    """Logits [G, V] that predict each continuation token: the prompt dense, all later tokens sparse.

    The prompt's last token is dense too, unless `last_sparse`.
    """
    tokens = torch.cat([prompt, continuation[:-1]])
    sparse = torch.arange(len(tokens)) >= len(prompt) - last_sparse
    return reference.run(tokens, sparse, rule).logits[len(prompt) - 1 :]
