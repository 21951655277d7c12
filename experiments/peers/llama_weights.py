"""The weights of a Llama of Hugging Face in llama.cpp's names and order, and how a made-up tokenizer spells tokens."""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Modules of a Llama in Hugging Face's names and in llama.cpp's; those of a layer without its prefix."""
LAYER = re.compile(r"model\.layers\.(\d+)\.")


def tensor_name(parameter: str) -> str:
    """llama.cpp's name of a parameter, e.g. ``blk.3.ffn_up.weight``.

    Raises
    ------
    ValueError
        If a Llama without biases has no such parameter.
    """
    layer = LAYER.match(parameter)
    module, _, kind = parameter[layer.end() if layer else 0 :].rpartition(".")
    if module not in NAMES or kind != "weight":
        raise ValueError(f"{parameter!r} is no parameter of a Llama without biases, so it has no place in a GGUF file")
    return f"blk.{layer[1]}.{NAMES[module]}.weight" if layer else f"{NAMES[module]}.weight"


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection [heads·d, D], in the order that llama.cpp's rotary embedding expects.

    Hugging Face turns the pairs (i, i + d/2) of a head, llama.cpp the pairs (2i, 2i + 1).
    """
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's names and the weights, as llama.cpp lays them."""
    config: Any = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.named_parameters():
        projection = name.split(".")[-2]
        laid = interleaved(weight, heads[projection]) if projection in heads else weight
        yield tensor_name(name), laid.detach()


def token_text(token: int) -> str:
    """The text that stands for a token."""
    return f"<{token}>"
