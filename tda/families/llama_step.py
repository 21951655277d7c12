"""The decode step of decoders whose layers are Llama's: rotary attention, then the FFN, each added to the hidden state.

Families differ in where the norms stand, and in what they are called. A description is tried before it is trusted, so
a model whose configuration asks for more (a parallel residual, layers without positions) runs layer by layer.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tda.view import Decoder, DecoderLayer, Linear

Norms = Mapping[str, str]
"""Norms of a `DecoderLayer` -> their names in a model's layer."""
PRE: Norms = {"attention_in": "input_layernorm", "ffn_in": "post_attention_layernorm"}
POST: Norms = {"attention_out": "post_attention_layernorm", "ffn_out": "post_feedforward_layernorm"}
SANDWICH: Norms = {**POST, "attention_in": "input_layernorm", "ffn_in": "pre_feedforward_layernorm"}
WINDOWED = ("mistral", "starcoder2")
"""Types of model whose configuration holds one window for all layers. Others say it in each layer, or have none."""


def llama_step(norms: Norms = PRE) -> Callable[[Any], Decoder]:
    """What describes a model's decode step, for layers with these norms."""

    def describe(model: Any) -> Decoder:
        config, inner = model.config.get_text_config(), model.model

        def embed(tokens: Tensor, positions: Tensor) -> Tensor:
            embedded: Tensor = inner.embed_tokens(tokens)
            return embedded

        return Decoder(
            layers=tuple(_layer(layer, f"model.layers.{i}", config, norms) for i, layer in enumerate(inner.layers)),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=inner.layers[0].self_attn.head_dim,
            head=Linear(model.lm_head),
            embed=embed,
            rotary=inner.rotary_emb,
            last=inner.norm,
            softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        )

    return describe


def _layer(layer: Any, path: str, config: Any, norms: Norms) -> DecoderLayer:
    attention = layer.self_attn
    return DecoderLayer(
        **_projections(attention),
        output=Linear(attention.o_proj),
        name=f"{path}.self_attn",
        ffn_name=f"{path}.mlp",
        scale=attention.scaling,
        softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        window=_window(attention, config),
        query_norm=getattr(attention, "q_norm", None),
        key_norm=getattr(attention, "k_norm", None),
        **{place: getattr(layer, name) for place, name in norms.items()},
    )


def _projections(attention: Any) -> dict[str, Any]:
    """Query, key and value: modules of their own, or one below the other in one weight."""
    if not hasattr(attention, "qkv_proj"):
        return {name: Linear(getattr(attention, f"{name[0]}_proj")) for name in ("query", "key", "value")}
    module, config, width = attention.qkv_proj, attention.config, attention.head_dim
    query, each = config.num_attention_heads * width, config.num_key_value_heads * width
    starts = {"query": 0, "key": query, "value": query + each}
    stops = {"query": query, "key": query + each, "value": query + 2 * each}
    return {name: Linear(module, rows=slice(start, stops[name])) for name, start in starts.items()}


def _window(attention: Any, config: Any) -> int | None:
    """Sliding window of a layer, its own where layers differ; None is all tokens."""
    everywhere = config.sliding_window if config.model_type in WINDOWED else None
    window: int | None = getattr(attention, "sliding_window", everywhere)
    return window
