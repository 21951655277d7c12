"""Decoders from fairseq: plain FFN of fc1 and fc2, called by the layer itself, as OPT's."""

from dataclasses import replace

from tda.families import FAMILIES
from tda.view import Family

XGLM = Family(name="xglm", model_types=("xglm",), layers="model.layers", up="fc1", down="fc2", act="activation_fn")
BIOGPT = replace(XGLM, name="biogpt", model_types=("biogpt",), layers="biogpt.layers")

for family in (XGLM, BIOGPT):
    FAMILIES.register(family.name)(family)
