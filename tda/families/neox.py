"""GPT-NeoX and what is named after Megatron as it is: plain FFN from h to 4h and back."""

from dataclasses import replace

from tda.families import FAMILIES
from tda.view import Family

NEOX = Family(
    name="neox",
    model_types=("gpt_neox",),
    layers="gpt_neox.layers",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    act="mlp.act",
    block="mlp",
    attention="attention",
)
NEOX_JAPANESE = replace(
    NEOX, name="neox_japanese", model_types=("gpt_neox_japanese",), layers="gpt_neox_japanese.layers"
)
PERSIMMON = replace(NEOX, name="persimmon", model_types=("persimmon",), layers="model.layers", attention="self_attn")
BLOOM = replace(
    NEOX,
    name="bloom",
    model_types=("bloom",),
    layers="transformer.h",
    act="mlp.gelu_impl",
    block=None,  # its module adds the residual too
    attention="self_attention",
)

for family in (NEOX, NEOX_JAPANESE, PERSIMMON, BLOOM):
    FAMILIES.register(family.name)(family)
