"""Train a reference model from scratch: ``python -m tda.reference.train swiglu`` (or relu, geglu).

Next-byte prediction with AdamW on the training stream, one kind of text per sequence, bfloat16 autocast. The held-out
figure of the log is on calibration text; evaluation text is never looked at. On two cores a model takes about a
quarter of an hour; the result depends on thread count and kernels in the last digits, so a rerun reproduces the
quality, not the bits.
"""

import argparse
import csv
import itertools
import json
import math
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
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

from tda.reference.text import KINDS, Split, document, documents

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
STEPS = 1500
BATCH = 12
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
WARM_UP = 100
LOG_EVERY = 50
WEIGHTS = Path(__file__).resolve().parent / "weights"


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


def batches(tokenizer: PreTrainedTokenizerFast, split: Split, batch: int) -> Iterator[Tensor]:
    """Sequences of one document each, kinds in turn: int64 [batch, CONTEXT], without end."""
    stream = documents(split, min_bytes=CONTEXT)
    while True:
        texts = [found.text for found in itertools.islice(stream, batch)]
        yield torch.tensor([ids[:CONTEXT] for ids in tokenizer(texts, verbose=False)["input_ids"]])


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean next-byte negative log likelihood in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def held_out(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> float:
    """Nats per byte on two documents of each kind of the calibration stream."""
    model.eval()
    texts = [document(kind, "calibration", index, min_bytes=CONTEXT).text for kind in KINDS for index in range(2)]
    tokens = torch.tensor([ids[:CONTEXT] for ids in tokenizer(texts, verbose=False)["input_ids"]])
    value = float(loss_of(model, tokens))
    model.train()
    return value


def schedule(step: int) -> float:
    """Learning rate factor: linear warm-up, then cosine decay to a fiftieth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.02 + 0.98 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))) / 2


def embedding_scale(model: Any) -> float:
    """Factor that a model puts on its embeddings: √D in Gemma, else 1.

    Initial values and learning rate of the table are divided by it. Left as they are, scaled embeddings drown what the
    layers write, and copying was not learnt within the steps.
    """
    return math.sqrt(model.config.hidden_size) if model.config.model_type == "gemma" else 1.0


def parameter_groups(model: Any) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for norms and biases; the embedding table on its own scale."""
    table = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.dim() >= 2 and p is not table]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
        {"params": [table], "weight_decay": WEIGHT_DECAY, "lr": LEARNING_RATE / embedding_scale(model)},
    ]


def train(name: str) -> None:
    """Train one model and write it, its tokenizer, its settings and its log."""
    folder = WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = byte_tokenizer()
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).train()
    with torch.no_grad():
        model.get_input_embeddings().weight.div_(embedding_scale(model))
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATE, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    started = time.monotonic()
    log: list[tuple[int, float, float]] = []
    recent: list[float] = []
    for step, tokens in zip(range(1, STEPS + 1), batches(tokenizer, "train", BATCH), strict=False):
        loss = loss_of(model, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        recent.append(loss.item())
        if step % LOG_EVERY == 0 or step == STEPS:
            log.append((step, sum(recent) / len(recent), held_out(model, tokenizer)))
            recent.clear()
            print(f"{name} step {step}: train {log[-1][1]:.4f}, held out {log[-1][2]:.4f} nats/byte", flush=True)
            save(folder, model, tokenizer, log, step, time.monotonic() - started)


def save(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    log: list[tuple[int, float, float]],
    steps: int,
    seconds: float,
) -> None:
    """Write weights in bfloat16, config, tokenizer, settings and log."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tensors = {key: p.detach().to(torch.bfloat16).contiguous() for key, p in model.named_parameters()}
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    settings = {
        "name": folder.name,
        "seed": SEED,
        "steps": steps,
        "planned_steps": STEPS,
        "batch": BATCH,
        "context": CONTEXT,
        "optimizer": "AdamW, betas .9 and .95, cosine decay, gradient norm clipped at 1, bfloat16 autocast",
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "warm_up_steps": WARM_UP,
        "kinds": list(KINDS),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds),
        "versions": {package: metadata.version(package) for package in ("torch", "transformers")},
    }
    (folder / "training.json").write_text(json.dumps(settings, indent=1) + "\n")
    with (folder / "training_log.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "train_nats_per_byte", "held_out_nats_per_byte"))
        writer.writerows((step, f"{loss:.4f}", f"{held:.4f}") for step, loss, held in log)


def main() -> None:
    """Read the model's name and train it."""
    parser = argparse.ArgumentParser(description="Train a reference model from scratch.")
    parser.add_argument("name", choices=tuple(CONFIGS))
    train(parser.parse_args().name)


if __name__ == "__main__":
    main()
