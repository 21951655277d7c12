"""Shape models: real architectures with random weights, built in seconds, for latency only."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tda.kernels.hugepages import empty_on_huge_pages

TILE = 1 << 22
"""Random elements; weights are filled with repetitions of one tile, which is much faster than drawing them all."""


def _llama(**sizes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{"vocab_size": 32000, "max_position_embeddings": 4096, **sizes})


def _opt(**sizes: Any) -> Any:
    from transformers import OPTConfig

    return OPTConfig(vocab_size=50272, max_position_embeddings=2048, **sizes)


def _gemma(**sizes: Any) -> Any:
    from transformers import GemmaConfig

    return GemmaConfig(vocab_size=256000, max_position_embeddings=8192, **sizes)


def _mistral(**sizes: Any) -> Any:
    from transformers import MistralConfig

    return MistralConfig(vocab_size=32000, max_position_embeddings=32768, **sizes)


def _sizes(D: int, F: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


SHAPES: dict[str, tuple[str, Callable[[], Any]]] = {
    "25m": (
        "Llama-like, 25 million parameters and 4 million of embeddings",
        lambda: _llama(**_sizes(512, 1536, 8, 8, 4), vocab_size=4096),
    ),
    "0.1b": ("Llama-like, 0.1 billion parameters", lambda: _llama(**_sizes(768, 2048, 10, 12, 4))),
    "0.3b": ("Llama-like, 0.3 billion parameters", lambda: _llama(**_sizes(1024, 2816, 24, 16, 4))),
    "1b": (
        "Llama-like, 1.1 billion parameters (TinyLlama's sizes)",
        lambda: _llama(**_sizes(2048, 5632, 22, 32, 4)),
    ),
    "opt-350m": (
        "OPT-350M: post-norm, projection layers",
        lambda: _opt(
            hidden_size=1024,
            ffn_dim=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            word_embed_proj_dim=512,
            do_layer_norm_before=False,
        ),
    ),
    "opt-2.7b": (
        "OPT-2.7B",
        lambda: _opt(
            hidden_size=2560,
            ffn_dim=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            word_embed_proj_dim=2560,
        ),
    ),
    "gemma-2b": ("Gemma-2B", lambda: _gemma(**_sizes(2048, 16384, 18, 8, 1), head_dim=256)),
    "llama-2-7b": ("Llama-2-7B", lambda: _llama(**_sizes(4096, 11008, 32, 32, 32))),
    "llama-3-8b": (
        "Llama-3-8B",
        lambda: _llama(
            **_sizes(4096, 14336, 32, 32, 8),
            vocab_size=128256,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        ),
    ),
    "mistral-7b": ("Mistral-7B", lambda: _mistral(**_sizes(4096, 14336, 32, 32, 8))),
}


def shape_config(name: str) -> Any:
    """Transformers config of a shape.

    Raises
    ------
    ValueError
        If no shape has this name.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; known: {', '.join(f'shape:{known}' for known in SHAPES)}")
    return SHAPES[name][1]()


def build_shape(name: str, dtype: torch.dtype, device: torch.device, seed: int = 0) -> nn.Module:
    """Build a shape model: random weights, the same for the same seed.

    Returns
    -------
    nn.Module
        In eval mode. Its weights are N(0, .02²) with norms at 1, so that numbers stay finite; its text is noise.
    """
    from transformers import AutoModelForCausalLM

    config = shape_config(name)
    hook: Any = _on_meta  # torch's annotation knows no hook that returns a parameter
    without_memory = register_module_parameter_registration_hook(hook)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    finally:
        without_memory.remove()
    model._apply(
        lambda tensor: empty_on_huge_pages(tensor.shape, tensor.dtype, device) if tensor.is_meta else tensor.to(device)
    )
    model.tie_weights()
    generator = torch.Generator(device="cpu").manual_seed(seed)
    tile = (torch.randn(TILE, generator=generator) * 0.02).to(dtype=dtype, device=device)
    with torch.no_grad():
        for number, (path, parameter) in enumerate(model.named_parameters()):
            if "norm" in path:
                parameter.fill_(0.0 if path.endswith("bias") or config.model_type == "gemma" else 1.0)
            else:
                _fill(parameter.view(-1), tile, shift=number * 7919)
    model.config._name_or_path = f"shape:{name}"
    built: nn.Module = model.eval()
    return built


def _on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    """Let a new parameter have no memory yet; buffers (rotary frequencies, embedding scales) are built as they are."""
    if parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def _fill(flat: torch.Tensor, tile: torch.Tensor, shift: int) -> None:
    """Repeat the tile over a flat tensor, starting at another place for each."""
    tile = tile.roll(shift % len(tile))
    whole = len(flat) // len(tile)
    flat[: whole * len(tile)].view(whole, len(tile)).copy_(tile.expand(whole, -1))
    flat[whole * len(tile) :].copy_(tile[: len(flat) - whole * len(tile)])
