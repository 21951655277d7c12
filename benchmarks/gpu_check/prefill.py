"""What attaching costs a prompt: its first pass after an attach, and every later one."""

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import tda
from benchmarks.gpu_check.figures import Figure, at_most
from benchmarks.gpu_check.setting import CheckSetting
from tda.device import Timer
from tda.engine.phases import prefill as plain_prefill
from tda.families import find_ffns
from tda.methods import method as method_named
from tda.quality import random_documents

METHODS: dict[str, dict[str, Any]] = {"dense": {"dense_kernel": "own"}, "griffin": {"sparsity": 0.5}}
FIRST, ADDED = 1.2, 0.02
"""Goals: the first pass after an attach over the second, and what an attached pass adds to one that is not."""
ROUNDS, PASSES = 3, 3
REPEATS = 10


@torch.no_grad()
def prefill(setting: CheckSetting) -> Iterator[Figure]:
    """Passes of one prompt, unattached and attached in turns."""
    model: Any = tda.load_model(setting.model, dtype="bfloat16", device=setting.device).model
    (document,) = random_documents(model.config.vocab_size, setting.prompt_tokens, 0, 1, seed=0)
    prompt, clock = document.prompt[None].to(setting.device), Timer(torch.device(setting.device))
    _passes(model, prompt, clock, PASSES)  # what the libraries set up once
    yield _layouts(model, setting.prompt_tokens, clock)
    for name, options in METHODS.items():
        with tda.attach(model, method_named(name, **options)):
            first, second = _passes(model, prompt, clock, 2)
        note = f"{first:.4g} and {second:.4g} ms"
        title = f"{name}: first prefill after an attach over the second"
        yield Figure(name=title, value=first / second, goal=at_most(FIRST), note=note)
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(ROUNDS):
        alone = median(_passes(model, prompt, clock, PASSES))
        for name, options in METHODS.items():
            with tda.attach(model, method_named(name, **options)):
                ratios[name].append(median(_passes(model, prompt, clock, PASSES)[1:]) / alone)
    for name, found in ratios.items():
        note = f"{ROUNDS} rounds, {min(found):.4g} to {max(found):.4g}; the last unattached one took {alone:.4g} ms"
        title = f"{name}: attached prefill over unattached"
        yield Figure(name=title, value=median(found), goal=at_most(1 + ADDED), note=note)


def _layouts(model: Any, tokens: int, clock: Timer) -> Figure:
    """The down projection of a prompt as attached methods store it, over the same as the model is built."""
    down = find_ffns(model)[0].down
    weight = down.weight
    z = torch.randn(tokens, down.in_features, device=weight.device).to(weight.dtype)
    stored = {"built": weight.contiguous(), "laid": weight.t().contiguous().t()}
    times: dict[str, list[float]] = {name: [] for name in stored}
    for _ in range(1 + REPEATS):
        for name, own in stored.items():
            with clock.timing():
                functional.linear(z, own)
            times[name].append(clock.ms)
    built, laid = (median(times[name][1:]) for name in ("built", "laid"))
    note = f"{laid:.4g} and {built:.4g} ms, medians of {REPEATS} in turns"
    return Figure(
        name=f"down projection of {tokens} tokens: stored a neuron a row, over as built", value=laid / built, note=note
    )


def _passes(model: Any, prompt: Tensor, clock: Timer, number: int) -> list[float]:
    """Milliseconds of so many passes, each on a cache of its own."""
    found = []
    for _ in range(number):
        with clock.timing():
            plain_prefill(model, prompt)
        found.append(clock.ms)
    return found
