"""MPT: plain FFN without biases, whose module adds the residual too."""

from tda.families import FAMILIES
from tda.view import Family

FAMILIES.register("mpt")(
    Family(
        name="mpt",
        model_types=("mpt",),
        layers="transformer.blocks",
        up="ffn.up_proj",
        down="ffn.down_proj",
        act="ffn.act",
        attention="attn",
    )
)
