"""Decoders with a plain FFN in a module of its own, rotary attention around it: ``down(act(up(x)))``."""

from dataclasses import replace

from tda.families import FAMILIES
from tda.families.llama_step import llama_step
from tda.view import Family

PLAIN = Family(
    name="plain",
    model_types=("arcee", "jais2"),
    layers="model.layers",
    up="mlp.up_proj",
    down="mlp.down_proj",
    act="mlp.act_fn",
    block="mlp",
    decoder=llama_step(),
)
BY_LAYER = replace(
    PLAIN,
    name="plain_by_layer",
    model_types=("apertus", "apertus1p5_text", "nemotron"),  # an activation, or a norm, that the C kernels do not know
    decoder=None,
)

for family in (PLAIN, BY_LAYER):
    FAMILIES.register(family.name)(family)
