"""Decoders with a gated FFN in a module of its own: ``down(act(gate(x)) * up(x))``."""

from typing import Any

from torch import Tensor

from tda.families import FAMILIES
from tda.view import Decoder, DecoderLayer, Family


def _decoder(model: Any) -> Decoder:
    config, inner = model.config.get_text_config(), model.model
    attention = inner.layers[0].self_attn

    def embed(tokens: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = inner.embed_tokens(tokens)
        return embedded

    return Decoder(
        layers=tuple(_layer(layer, f"model.layers.{index}", config) for index, layer in enumerate(inner.layers)),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        head=model.lm_head,
        embed=embed,
        rotary=inner.rotary_emb,
        last=inner.norm,
        softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
    )


def _layer(layer: Any, path: str, config: Any) -> DecoderLayer:
    attention = layer.self_attn
    sandwich = hasattr(layer, "pre_feedforward_layernorm")  # Gemma 2: a norm on either side of attention and FFN
    return DecoderLayer(
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        output=attention.o_proj,
        name=f"{path}.self_attn",
        ffn_name=f"{path}.mlp",
        scale=attention.scaling,
        softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        window=_window(attention, config),
        query_norm=getattr(attention, "q_norm", None),
        key_norm=getattr(attention, "k_norm", None),
        attention_in=layer.input_layernorm,
        attention_out=layer.post_attention_layernorm if sandwich else None,
        ffn_in=layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm,
        ffn_out=layer.post_feedforward_layernorm if sandwich else None,
    )


def _window(attention: Any, config: Any) -> int | None:
    """Sliding window of a layer: its own where layers differ, else the config's, which Llama and Gemma lack."""
    if hasattr(attention, "sliding_window"):
        own: int | None = attention.sliding_window
        return own
    return config.sliding_window if config.model_type == "mistral" else None


FAMILIES.register("gated")(
    Family(
        name="gated",
        model_types=("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"),
        layers="model.layers",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        act="mlp.act_fn",
        block="mlp",
        decoder=_decoder,
    )
)
