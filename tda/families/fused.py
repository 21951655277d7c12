"""Decoders whose gate and up are fused in one weight, the gate's rows first: ``down(act(gate(x)) * up(x))``."""

from dataclasses import replace

from tda.families import FAMILIES
from tda.families.llama_step import llama_step
from tda.view import Family

PHI3 = Family(
    name="phi3",
    model_types=("phi3",),
    layers="model.layers",
    gate="mlp.gate_up_proj[0/2]",
    up="mlp.gate_up_proj[1/2]",
    down="mlp.down_proj",
    act="mlp.activation_fn",
    block="mlp",
    decoder=llama_step(),
)
GLM = replace(PHI3, name="glm", model_types=("glm", "glm4"), decoder=None)  # rotary positions of interleaved pairs

for family in (PHI3, GLM):
    FAMILIES.register(family.name)(family)
