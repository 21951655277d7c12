"""Write a Llama of Hugging Face as a GGUF file, so that llama.cpp runs the very same weights.

The tokenizer section is made up: token 17 is the text ``<17>``, so that a text says which tokens it
consists of.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tda
from benchmarks.peers.job import Job
from tda.results import replacing

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
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


def encoded(weight: Tensor, kind: str) -> NDArray[Any]:
    """Numbers of a tensor as they stand in the file; vectors (norms) are always float32."""
    exact: NDArray[np.float32] = weight.float().numpy()
    return gguf.quantize(exact, TYPES["f32" if weight.dim() == 1 else kind])


def write(model: nn.Module, kind: str, path: Path) -> None:
    """Write a model to a file, which is whole or not there at any moment.

    Parameters
    ----------
    model : nn.Module
        A Llama of Hugging Face.
    kind : {"f32", "bf16", "q8_0"}
        Type of the matrices.
    path : Path
        The file.

    Raises
    ------
    ValueError
        If the model is no Llama that the file could describe.
    """
    config: Any = model.config
    rope = config.rope_parameters
    if config.model_type != "llama" or rope["rope_type"] != "default" or config.hidden_act != "silu":
        raise ValueError(f"only Llamas with plain rotary embedding are written; got {config.model_type}, {rope}")
    with replacing(path) as name:
        writer = gguf.GGUFWriter(name, "llama")
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        _add_tokenizer(writer, config)
        for tensor, weight in tensors(model):
            data = encoded(weight, kind)
            stored = TYPES["f32" if weight.dim() == 1 else kind]
            writer.add_tensor(tensor, data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token_text(token) for token in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)


@torch.no_grad()
def make(job: Job, *, file: Path, kind: str) -> None:
    """Write the model of a job."""
    write(tda.load_model(job.model, dtype=job.dtype).model, kind, file)
