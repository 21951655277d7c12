"""Write a Llama of Hugging Face as a GGUF file, so that llama.cpp runs the very same weights.

The tokenizer section is made up: token 17 is the text ``<17>``, so that a text says which tokens it
consists of.
"""

from pathlib import Path
from typing import Any

import gguf
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tda
from experiments.peers.job import Job
from experiments.peers.llama_weights import tensors, token_text
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


def stored_type(weight: Tensor, kind: str) -> gguf.GGMLQuantizationType:
    """Type of a tensor in a file of a kind: vectors (norms) are always float32."""
    return TYPES["f32" if weight.dim() == 1 else kind]


def encoded(weight: Tensor, kind: str) -> NDArray[Any]:
    """Numbers of a tensor as they stand in the file."""
    found: NDArray[Any] = gguf.quantize(weight.float().numpy(), stored_type(weight, kind))
    return found


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
            writer.add_tensor(tensor, encoded(weight, kind), raw_dtype=stored_type(weight, kind))
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
