"""TEAL against float64: the inputs of every linear, their thresholds, and the greedy shares of a block."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import tda
from tda.bench.traffic import decode_traffic
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.families import find_inputs, layers_of
from tda.fitting.histogram import Histogram
from tda.methods.teal import BlockOutput, greedy

NAMES = ("llama", "opt", "gpt2", "phi3", "falcon")
"""Linears of one's own, with biases, transposed, fused, and of another class."""
each = pytest.mark.parametrize("name", NAMES)
TOKENS = 24


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": tiny.text(4, TOKENS, seed=number)} for number in range(2)]


def fitted(name: str, **options: Any) -> Method:
    return tda.TEAL(**options).fit(tiny.model(name), batches())


def linears(model: Any) -> list[list[Any]]:
    """The linear modules of each layer, in order."""
    kinds = ("Linear", "Conv1D", "FalconLinear")
    return [[m for m in layer.modules() if type(m).__name__ in kinds] for layer in layers_of(model)]


def weight_of(module: Any) -> Tensor:
    """[N, K]"""
    found: Tensor = module.weight.detach()
    return found.T if type(module).__name__ == "Conv1D" else found


def masking(modules: Sequence[Any], keep: Callable[[int, Tensor], Tensor], stack: ExitStack) -> None:
    """Zero what is not kept of each module's input."""
    for number, module in enumerate(modules):
        hook = module.register_forward_pre_hook(lambda m, args, n=number: (args[0] * keep(n, args[0]),))
        stack.callback(hook.remove)


@each
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_decode_leaves_out_what_the_formula_says(name: str, sparsity: float) -> None:
    """Logits of decode steps, and what is left out by weights, against a float64 copy whose inputs are cut."""
    model, method = tiny.model(name), fitted(name, sparsity=sparsity, allocation="uniform")
    prompt, fed = tiny.text(1, 9, seed=3), tiny.text(1, 5, seed=4)
    with torch.no_grad(), tda.attach(model, method) as run:
        cache = prefill(model, prompt).cache
        found = torch.cat([decode(model, token, cache) for token in fed.split(1, dim=1)], 1)[0]
        achieved, kept = run.achieved_sparsity(), run.selection()
        assert run.execution == "masked"
    own = copy.deepcopy(model).double()
    modules = [module for layer in linears(own) for module in layer]
    cuts = [cut for (cut,) in method.fitted.cuts]
    seen: dict[int, Tensor] = {}

    def keep(number: int, x: Tensor) -> Tensor:
        whole = (x.abs() > cuts[number]).reshape(-1, x.shape[-1])
        seen[number] = whole[9:]
        whole[:9] = True  # the prompt is dense
        return whole.view_as(x).double()

    with torch.no_grad(), ExitStack() as stack:
        masking(modules, keep, stack)
        expected = own(torch.cat([prompt, fed], 1), use_cache=False).logits[0, 9:]
    assert (found.double() - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert all(torch.equal(one[0], seen[number][-1]) for number, one in enumerate(kept))
    sizes = [weight_of(module).numel() for module in modules]
    per_layer = len(modules) // tiny.LAYERS
    for layer, share in enumerate(achieved):
        own_places = range(layer * per_layer, (layer + 1) * per_layer)
        left = sum(sizes[n] * (1 - float(seen[n].double().mean())) for n in own_places)
        assert share == pytest.approx(left / sum(sizes[n] for n in own_places), abs=1e-6)


@each
def test_thresholds_are_quantiles_of_the_inputs(name: str) -> None:
    """Over all tokens but each row's first; 1.6% is the width of a bin."""
    model, method = tiny.model(name), fitted(name, sparsity=0.4, allocation="uniform")
    seen: list[list[Tensor]] = [[] for layer in linears(model) for _ in layer]
    modules = [module for layer in linears(model) for module in layer]
    with torch.no_grad(), ExitStack() as stack:
        for number, module in enumerate(modules):
            hook = module.register_forward_pre_hook(
                lambda m, args, n=number: seen[n].append(args[0].reshape(4, TOKENS, -1)[:, 1:].abs().flatten())
            )
            stack.callback(hook.remove)
        for batch in batches():
            model(batch["input_ids"], use_cache=False)
    for (cut,), parts in zip(method.fitted.cuts, seen, strict=True):
        values = torch.cat(parts).double()
        if float((values == 0).double().mean()) > 0.4:  # behind a ReLU: zeros cannot be cut apart
            assert cut < 1e-15
            continue
        assert float((values < cut).double().mean()) == pytest.approx(0.4, abs=0.02)
        assert cut == pytest.approx(float(values.quantile(0.4)), rel=0.04)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_shares_equal_a_plain_search_in_float64(name: str) -> None:
    """Each layer alone, on the first batch: the step that changes the block's output least, again and again."""
    model, method = tiny.model(name), fitted(name, sparsity=0.3, step=0.25)
    own = copy.deepcopy(model).double()
    modules = linears(own)
    histograms = [[Histogram() for _ in layer] for layer in modules]
    first = batches()[0]["input_ids"]
    calls: list[tuple[Any, Any]] = []
    with torch.no_grad(), ExitStack() as stack:
        for layer, part in enumerate(modules):
            for number, module in enumerate(part):
                hook = module.register_forward_pre_hook(
                    lambda m, args, h=histograms[layer][number]: h.add(args[0].reshape(4, TOKENS, -1)[:, 1:].abs())
                )
                stack.callback(hook.remove)
        for layer in layers_of(own):
            hook = layer.register_forward_pre_hook(
                lambda m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
            )
            stack.callback(hook.remove)
        for batch in batches():
            own(batch["input_ids"], use_cache=False)
    assert len(first) == 4
    for number, block in enumerate(layers_of(own)):
        args, kwargs = calls[number]
        expected = plain_greedy(block, modules[number], histograms[number], args, kwargs, target=0.3, step=0.25)
        found = method.fitted.targets[number * len(expected) : (number + 1) * len(expected)]
        assert list(found) == pytest.approx(expected, abs=1e-9)


@torch.no_grad()
def plain_greedy(
    block: nn.Module, modules: Sequence[Any], histograms: Any, args: Any, kwargs: Any, target: float, step: float
) -> list[float]:
    def output(shares: Sequence[float]) -> Tensor:
        cuts = [histogram.quantile(share) for histogram, share in zip(histograms, shares, strict=True)]
        with ExitStack() as stack:
            masking(modules, lambda n, x: (x.abs() > cuts[n]).double(), stack)
            y = block(*args, **kwargs)
        return y[0] if isinstance(y, tuple) else y

    weights = [weight_of(module).numel() for module in modules]
    square = weight_of(modules[0]).shape[1] ** 2
    shares = [0.0] * len(modules)
    dense = output(shares)
    while (reached := sum(s * f for s, f in zip(shares, weights, strict=True)) / sum(weights)) < target - 1e-12:
        best: tuple[float, list[float]] | None = None
        for p in range(len(modules)):
            if shares[p] >= 1:
                continue
            tried = list(shares)
            room = (target - reached) * sum(weights) / weights[p]
            tried[p] = min(shares[p] + step * square / weights[p], 1.0, shares[p] + room)
            error = float((output(tried) - dense)[:, -(TOKENS // 4) :].norm(dim=-1).mean())
            if best is None or error < best[0]:
                best = error, tried
        assert best is not None
        shares = best[1]
    return shares


def test_the_search_takes_what_harms_least() -> None:
    """Two linears of one size and one of twice that, whose errors are known."""
    harm = (1.0, 3.0, 0.1)
    block = BlockOutput([100, 100, 200], 100, lambda s: sum(h * x for h, x in zip(harm, s, strict=True)))
    assert greedy(block, 0.5, 0.1) == pytest.approx([0.0, 0.0, 1.0])
    assert greedy(block, 0.75, 0.1) == pytest.approx([1.0, 0.0, 1.0])
    assert greedy(block, 0.0, 0.1) == [0.0, 0.0, 0.0]


@each
def test_every_block_gets_what_was_asked(name: str) -> None:
    method = fitted(name, sparsity=0.5, step=0.5)
    places = find_inputs(tiny.model(name))
    for layer in range(tiny.LAYERS):
        own = [place for place in places if place.layer == layer]
        left = sum(method.fitted.targets[place.index] * place.size for place in own)
        assert left / sum(place.size for place in own) == pytest.approx(0.5)


@each
def test_bytes_are_those_of_the_columns_that_are_read(name: str) -> None:
    model = tiny.model(name)
    places = find_inputs(model)
    weights = sum(weight_of(module).numel() for layer in linears(model) for module in layer) * 4
    dense = decode_traffic(model, places, tda.Dense(), [1.0] * len(places), 8, 1).weights
    sparse = decode_traffic(model, places, tda.TEAL(), [0.5] * len(places), 8, 1).weights
    assert dense - sparse == weights / 2
    assert dense == decode_traffic(model, [], tda.Dense(), [], 8, 1).weights


@each
def test_the_model_is_what_it_was_and_sparsity_zero_is_dense(name: str) -> None:
    model, ids = tiny.model(name), tiny.text(1, 9)
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model.generate(ids, **options)
        with tda.attach(model, tda.TEAL(sparsity=0)) as run:
            assert torch.equal(model.generate(ids, **options), expected)
            assert run.achieved_sparsity() == [0, 0]
        with tda.attach(model, fitted(name, sparsity=0.9, allocation="uniform")) as run:
            model.generate(ids, **options)
            assert min(run.achieved_sparsity()) > 0.5
        assert torch.equal(model.generate(ids, **options), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_it_is_saved_loaded_scored_and_refused(tmp_path: Any) -> None:
    method = fitted("llama", allocation="uniform")
    method.save_pretrained(tmp_path)
    loaded = tda.load_method(tmp_path)
    assert loaded == method
    assert loaded.thresholds == method.thresholds
    scores = tda.score(tiny.model("llama"), loaded, tiny.text(2, 9, seed=70), tiny.text(2, 5, seed=71))
    assert scores.achieved_sparsity == pytest.approx((0.5, 0.5), abs=0.1)
    refused = pytest.raises(ValueError, match="cannot run 'compact'; it can run masked")
    with refused, tda.attach(tiny.model("llama"), loaded, execution="compact"):
        pass
    for options, told in (({"step": 0}, "step"), ({"allocation": "best"}, "allocation must be one of greedy, uniform")):
        with pytest.raises(ValueError, match=told):
            tda.TEAL(**options)
    with pytest.raises(ValueError, match="without experts"):
        tda.TEAL().fit(tiny.model("mixtral"), batches())


@pytest.mark.parametrize("name", ["doge", "minicpm3", "youtu"])
def test_inputs_that_the_whole_cache_passes_again_are_refused(name: str) -> None:
    """As where keys and values are made anew of what is cached."""
    model = tiny.build(name)
    method = tda.TEAL(allocation="uniform").fit(model, batches())
    refused = pytest.raises(ValueError, match=r"layer 0: 10 tokens .*1 are decoded")
    with torch.no_grad(), tda.attach(model, method) as run, refused:
        model.generate(tiny.text(1, 9), max_new_tokens=3)
        run.achieved_sparsity()


@pytest.mark.parametrize(
    "name", tiny.by_family(sorted({*tiny.names(), *tiny.further()} - {"doge", "minicpm3", "youtu"}))
)
def test_it_runs_on_every_other_type(name: str) -> None:
    model = tiny.build(name)
    method = tda.TEAL(allocation="uniform").fit(model, batches())
    with torch.no_grad(), tda.attach(model, method) as run:
        model.generate(tiny.text(1, 9), max_new_tokens=3)
        assert min(run.achieved_sparsity()) > 0.1
