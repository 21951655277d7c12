"""MPT: plain FFN without biases, whose module adds the residual too."""

from tda.contracts import Family
from tda.families import FAMILIES

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
