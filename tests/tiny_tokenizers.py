"""Tiny tokenizers like the families' own: what stands in front, what ends a text, what is a control word."""

import functools
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = ["The quick brown fox jumps over a lazy dog. ", "Once upon a time there was a little girl, in 1987. "] * 8
CONTROL = ["<|im_start|>", "<|im_end|>"]


def _byte_level(special: list[str], front: str | None, split: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    if front is not None:
        _put_around(tokenizer, f"{front} $A", front)
    return tokenizer


def _metaspace(special: list[str], ending: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    single_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *special, *single_bytes], show_progress=False),
    )
    _put_around(tokenizer, f"<s> $A{ending}", "<s>", "</s>")
    return tokenizer


def _put_around(tokenizer: Tokenizer, single: str, *tokens: str) -> None:
    pairs = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)


@functools.cache
def build(name: str) -> Any:
    """A tokenizer as of a family, shared by all tests: leave it as it was."""
    if name == "llama-3":
        special = ["<|begin_of_text|>", "<|end_of_text|>", *CONTROL]
        base, ends = _byte_level(special, special[0], True), {"bos_token": special[0], "eos_token": special[1]}
    elif name in ("llama-2", "appends-eos"):
        base = _metaspace(["<s>", "</s>", *CONTROL], " </s>" if name == "appends-eos" else "")
        ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    elif name == "opt":  # one token is both ends of a text, and comes in front
        base, ends = _byte_level(["</s>", *CONTROL], "</s>", True), {"bos_token": "</s>", "eos_token": "</s>"}
    elif name == "gpt-2":  # one token is both ends of a text, and is never added
        base, ends = _byte_level(["</s>", *CONTROL], None, False), {"bos_token": "</s>", "eos_token": "</s>"}
    else:
        assert name == "qwen"
        base, ends = _byte_level(["<|endoftext|>", *CONTROL], None, True), {"eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=base, additional_special_tokens=CONTROL, **ends)


NAMES = ("llama-3", "llama-2", "appends-eos", "opt", "gpt-2", "qwen")
