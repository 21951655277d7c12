"""Train a reference model from scratch: ``python -m experiments.train swiglu`` (or relu, geglu).

Next-byte prediction with AdamW on the training stream, one kind of text per sequence, bfloat16 autocast. The held-out
figure of the log is on calibration text; evaluation text is never looked at. On two cores a model takes about a
quarter of an hour; the result depends on thread count and kernels in the last digits, so a rerun reproduces the
quality, not the bits.
"""

import argparse
import csv
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from tda.reference import WEIGHTS
from tda.reference.text import KINDS, TextSplit, document, documents

PAD, BOS, EOS = 256, 257, 258
CONTEXT = 512
SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
CONFIGS: dict[str, Any] = {
    "swiglu": lambda: LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=1024, tie_word_embeddings=False),
    "relu": lambda: OPTConfig(**SIZES, ffn_dim=1440, word_embed_proj_dim=128, dropout=0.0, tie_word_embeddings=True),
    "geglu": lambda: GemmaConfig(
        **SIZES, num_key_value_heads=2, head_dim=32, intermediate_size=1024, tie_word_embeddings=False
    ),
}
SEED = 20261124
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
LOG_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: steps, sequences a step, peak learning rate, steps of warm-up, and where it starts.

    Attributes
    ----------
    skip : int
        Documents of the training stream that are passed over.
    autocast : bool
        Whether products are computed in bfloat16.
    """

    steps: int = 1500
    batch: int = 12
    learning_rate: float = 2e-3
    warm_up_steps: int = 100
    skip: int = 0
    autocast: bool = True

    def factor(self, step: int) -> float:
        """Of the learning rate: linear warm-up, then cosine decay to a fiftieth."""
        if step < self.warm_up_steps:
            return (step + 1) / self.warm_up_steps
        done = (step - self.warm_up_steps) / (self.steps - self.warm_up_steps)
        return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2


Log = list[dict[str, float]]
"""A row a logged step."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, and <pad>, <bos> and <eos>; BOS goes in front of every text."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def batches(tokenizer: PreTrainedTokenizerFast, split: TextSplit, batch: int, skip: int = 0) -> Iterator[Tensor]:
    """Sequences of one document each, kinds in turn: int64 [batch, CONTEXT], without end."""
    stream = itertools.islice(documents(split, min_bytes=CONTEXT), skip, None)
    while True:
        texts = [found.text for found in itertools.islice(stream, batch)]
        yield torch.tensor([ids[:CONTEXT] for ids in tokenizer(texts, verbose=False)["input_ids"]])


def loss_of(model: nn.Module, tokens: Tensor, *, autocast: bool) -> Tensor:
    """Mean next-byte negative log likelihood in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def held_out_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Two documents of each kind of the calibration stream: int64 [2 * kinds, CONTEXT]."""
    texts = [document(kind, "calibration", index, min_bytes=CONTEXT).text for kind in KINDS for index in range(2)]
    return torch.tensor([ids[:CONTEXT] for ids in tokenizer(texts, verbose=False)["input_ids"]])


@torch.no_grad()
def held_out(model: nn.Module, tokenizer: PreTrainedTokenizerFast, *, autocast: bool) -> float:
    """Nats per byte on held-out text."""
    model.eval()
    value = float(loss_of(model, held_out_tokens(tokenizer), autocast=autocast))
    model.train()
    return value


def embedding_scale(model: Any) -> float:
    """Factor that a model puts on its embeddings: √D in Gemma, else 1.

    Initial values and learning rate of the table are divided by it. Left as they are, scaled embeddings drown what the
    layers write, and copying was not learnt within the steps.
    """
    return math.sqrt(model.config.hidden_size) if model.config.model_type == "gemma" else 1.0


def parameter_groups(model: Any, learning_rate: float, rate: Callable[[str], float]) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for norms and biases; the embedding table on its own scale."""
    table = model.get_input_embeddings().weight
    return [
        {
            "params": [parameter],
            "weight_decay": WEIGHT_DECAY if parameter.dim() >= 2 else 0.0,
            "lr": learning_rate * (1 / embedding_scale(model) if parameter is table else rate(name)),
        }
        for name, parameter in model.named_parameters()
    ]


# long: its parameters are explained
def fit(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    keep: Callable[[Log, float], None],
    *,
    as_kept: Callable[[], AbstractContextManager[object]] = nullcontext,
    rate: Callable[[str], float] = lambda name: 1.0,
    watched: Mapping[str, Callable[[], float]] = MappingProxyType({}),
) -> None:
    """Train a model in place.

    Parameters
    ----------
    model : PreTrainedModel
        In float32, in train mode.
    tokenizer : PreTrainedTokenizerFast
        Turns documents into bytes.
    recipe : Recipe
        How.
    keep : callable
        Called with the log and the seconds so far, every `LOG_EVERY` steps and at the end.
    as_kept : callable
        Context in which the model has the weights that will be kept: gradients are taken there, steps are not.
    rate : callable
        Factor of the learning rate for a parameter of a name.
    watched : mapping
        Further columns of the log.
    """
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.learning_rate, rate), betas=BETAS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.factor)
    stream = batches(tokenizer, "train", recipe.batch, recipe.skip)
    started = time.monotonic()
    log: Log = []
    recent: list[float] = []
    for step, tokens in zip(range(1, recipe.steps + 1), stream, strict=False):
        optimizer.zero_grad(set_to_none=True)
        with as_kept():
            loss = loss_of(model, tokens, autocast=recipe.autocast)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        recent.append(loss.item())
        if step % LOG_EVERY == 0 or step == recipe.steps:
            with as_kept():
                held = held_out(model, tokenizer, autocast=recipe.autocast)
                row = {"train_nats_per_byte": sum(recent) / len(recent), "held_out_nats_per_byte": held}
                row |= {name: value() for name, value in watched.items()}
            log.append({"step": step, **row})
            recent.clear()
            print(f"step {step}: {', '.join(f'{name} {value:.4f}' for name, value in row.items())}", flush=True)
            keep(log, time.monotonic() - started)


def train(name: str) -> None:
    """Train one model and write it, its tokenizer, its settings and its log."""
    folder = WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = byte_tokenizer()
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).train()
    with torch.no_grad():
        model.get_input_embeddings().weight.div_(embedding_scale(model))
    recipe = Recipe()

    def keep(log: Log, seconds: float) -> None:
        tensors = {key: p.detach().to(torch.bfloat16).contiguous() for key, p in model.named_parameters()}
        save(folder, model, tokenizer, tensors, recipe, log, seconds)

    fit(model, tokenizer, recipe, keep)


def save(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    tensors: dict[str, Tensor],
    recipe: Recipe,
    log: Log,
    seconds: float,
    **facts: Any,
) -> None:
    """Write weights, config, tokenizer, log, and settings with the weights' hash and further facts."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    partial.replace(folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    settings = {
        "name": folder.name,
        "seed": SEED,
        "planned_steps": recipe.steps,
        **asdict(recipe),
        "steps": log[-1]["step"],
        "context": CONTEXT,
        "optimizer": f"AdamW, betas {BETAS[0]} and {BETAS[1]}, cosine decay, gradient norm clipped at 1",
        "weight_decay": WEIGHT_DECAY,
        "kinds": list(KINDS),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds),
        "versions": {package: metadata.version(package) for package in ("torch", "transformers")},
        "sha256": digest,
        **facts,
    }
    (folder / "training.json").write_text(json.dumps(settings, indent=1) + "\n")
    with (folder / "training_log.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(log[0])
        writer.writerows((row["step"], *(f"{value:.4f}" for value in list(row.values())[1:])) for row in log)


def main() -> None:
    """Read the model's name and train it."""
    parser = argparse.ArgumentParser(description="Train a reference model from scratch.")
    parser.add_argument("name", choices=tuple(CONFIGS))
    train(parser.parse_args().name)


if __name__ == "__main__":
    main()
