"""OPT: plain FFN with biases, called by the layer itself; 350M has post-norm and projection layers around it."""

from typing import Any

from torch import Tensor

from tda.families import FAMILIES
from tda.view import Decoder, DecoderLayer, Family, Linear


def _decoder(model: Any) -> Decoder:
    config, inner = model.config, model.model.decoder

    def embed(tokens: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = inner.embed_tokens(tokens)
        if inner.project_in is not None:
            embedded = inner.project_in(embedded)
        place: Tensor = inner.embed_positions(None, 0, position_ids=positions)
        return embedded + place

    return Decoder(
        layers=tuple(_layer(layer, f"model.decoder.layers.{index}") for index, layer in enumerate(inner.layers)),
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        head=Linear(model.lm_head),
        embed=embed,
        last=inner.final_layer_norm,
        project=None if inner.project_out is None else Linear(inner.project_out),
    )


def _layer(layer: Any, path: str) -> DecoderLayer:
    attention, before = layer.self_attn, layer.do_layer_norm_before
    norms = ("attention_in", "ffn_in") if before else ("attention_sum", "ffn_sum")
    return DecoderLayer(
        query=Linear(attention.q_proj),
        key=Linear(attention.k_proj),
        value=Linear(attention.v_proj),
        output=Linear(attention.out_proj),
        name=f"{path}.self_attn",
        ffn_name=path,
        scale=attention.scaling,
        **dict(zip(norms, (layer.self_attn_layer_norm, layer.final_layer_norm), strict=True)),
    )


FAMILIES.register("opt")(
    Family(
        name="opt",
        model_types=("opt",),
        layers="model.decoder.layers",
        up="fc1",
        down="fc2",
        act="activation_fn",
        decoder=_decoder,
    )
)
