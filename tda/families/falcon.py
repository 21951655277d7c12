"""Falcon: plain FFN of linears of its own class."""

from tda.families import FAMILIES
from tda.view import Family

FAMILIES.register("falcon")(
    Family(
        name="falcon",
        model_types=("falcon",),
        layers="transformer.h",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        act="mlp.act",
        block="mlp",
        attention="self_attention",
    )
)
