"""Make ``ref:wide`` again: ``python -m experiments.train_wide``.

`ref:swiglu` is widened without changing its function: hidden dimensions and heads twice, FFN neurons eight times. Noise
makes the copies differ, and training on the rest of the same stream, which the small model has not seen, parts them.
Weights are rounded as they are kept (4 bits, embeddings and attention 8) in every forward pass, and gradients pass
straight through, so that the file holds the model that was trained. A second stage goes on from that file, with half
the learning rate, on what follows in the stream. The log tells how alike copies still are: the mean correlation of a
neuron's activations on held-out text with those of its copies.
"""

import argparse
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.train import SEED, Log, Recipe, byte_tokenizer, fit, held_out_tokens, save
from tda import load_model
from tda.families import find_ffns
from tda.models.packed import Bits, pack, pack_state, unpack, unpack_state
from tda.models.widen import wider_config, wider_state
from tda.reference import WEIGHTS

START = "ref:swiglu"
BATCH = 8
HIDDEN, NEURONS = 2, 8
NOISE = 1.0
"""Standard deviation of what is added to a weight, in root mean squares of its matrix: less leaves copies too alike."""


def bits(name: str) -> Bits:
    """Bits of a weight of a matrix: FFNs are 97% of all."""
    return 4 if ".mlp." in name else 8


def rate(name: str) -> float:
    """Of the learning rate: what a unit reads is more than in the small model, by this much less each may move."""
    return 1 / NEURONS if "down_proj" in name else 1 / HIDDEN if "proj" in name or "lm_head" in name else 1.0


def widen_start() -> Any:
    """The small model, widened, with noise on every matrix."""
    small: Any = load_model(START).model
    generator = torch.Generator().manual_seed(SEED)
    factors = {"hidden": HIDDEN, "neurons": NEURONS}
    state = wider_state(small.config, small.state_dict(), **factors, generator=generator)
    for tensor in state.values():
        if tensor.dim() == 2:
            tensor += NOISE * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
    return type(small).from_pretrained(None, config=wider_config(small.config, **factors), state_dict=state).train()


@contextmanager
def rounded(model: nn.Module) -> Iterator[None]:
    """Let every matrix have the values that its file will hold."""
    exact = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(unpack(*pack(parameter, bits(name))) if parameter.dim() == 2 else parameter.bfloat16())
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in exact:
                parameter.copy_(value)


@torch.no_grad()
def correlation_of_copies(model: nn.Module, tokens: Tensor) -> float:
    """Mean correlation, over tokens, of each neuron's activation with those of its copies."""
    found = []

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        z = args[0].float().flatten(0, 1)  # [N, F]
        unit = nn.functional.normalize(z - z.mean(0), dim=0).unflatten(1, (NEURONS, -1))
        total = unit.sum(1).square().sum(0)  # sum over all pairs of copies, each with itself too
        found.append(float(((total - NEURONS) / (NEURONS * (NEURONS - 1))).mean()))

    hooks = [ffn.down.module.register_forward_pre_hook(watch) for ffn in find_ffns(model)]
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found) / len(found)


def stages(autocast: bool) -> Iterator[Recipe]:
    """Each starts where the one before ended, in weights and in text."""
    seen = Recipe.steps * Recipe.batch
    for steps, learning_rate in ((700, 1e-3), (400, 5e-4)):
        yield Recipe(steps, batch=BATCH, learning_rate=learning_rate, warm_up_steps=30, skip=seen, autocast=autocast)
        seen += steps * BATCH


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description="Widen ref:swiglu and train it on.")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "wide")
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16, where the processor has them")
    parser.add_argument("--from-stage", type=int, choices=(1, 2), default=1, help="2 goes on from the weights in --out")
    options = parser.parse_args()
    for number, recipe in enumerate(stages(options.autocast), start=1):
        if number >= options.from_stage:
            _train(options.out, number, recipe)


def _train(folder: Path, stage: int, recipe: Recipe) -> None:
    """Run a stage; the folder then holds its weights, and its log behind that of the stage before."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer, model = byte_tokenizer(), widen_start()
    tokens = held_out_tokens(tokenizer)
    before: Log = []
    if stage > 1:
        model.load_state_dict(unpack_state(load_file(folder / "model.safetensors")))
        with (folder / "training_log.csv").open(newline="") as file:
            before = [{**{name: float(value) for name, value in row.items()}, "step": int(row["step"])}
                      for row in csv.DictReader(file)]  # fmt: skip
    first = before[-1]["step"] if before else 0
    facts = {"start": START, "hidden_copies": HIDDEN, "neuron_copies": NEURONS, "noise": NOISE, "stage": stage}
    facts["planned_steps"] = int(first) + recipe.steps

    def keep(log: Log, seconds: float) -> None:
        shifted = [{**row, "step": first + row["step"]} for row in log]
        tensors = pack_state(dict(model.named_parameters()), bits)
        save(folder, model, tokenizer, tensors, recipe, [*before, *shifted], seconds, **facts)

    fit(
        model, tokenizer, recipe, keep,
        as_kept=lambda: rounded(model),
        rate=rate,
        watched={"correlation_of_copies": lambda: correlation_of_copies(model, tokens)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
