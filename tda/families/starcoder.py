"""StarCoder: plain FFN with biases, named as GPT-2's; the second has rotary positions, the first learnt ones."""

from dataclasses import replace

from tda.families import FAMILIES
from tda.families.llama_step import llama_step
from tda.view import Family

STARCODER2 = Family(
    name="starcoder2",
    model_types=("starcoder2",),
    layers="model.layers",
    up="mlp.c_fc",
    down="mlp.c_proj",
    act="mlp.act",
    block="mlp",
    decoder=llama_step(),
)
STARCODER = replace(
    STARCODER2,
    name="starcoder",
    model_types=("gpt_bigcode", "gpt_neo"),
    layers="transformer.h",
    attention="attn",
    decoder=None,
)

for family in (STARCODER2, STARCODER):
    FAMILIES.register(family.name)(family)
