"""GPT-2: plain FFN, whose weights are stored transposed (Conv1D)."""

from tda.families import FAMILIES
from tda.view import Family

FAMILIES.register("gpt2")(
    Family(
        name="gpt2",
        model_types=("gpt2",),
        layers="transformer.h",
        up="mlp.c_fc",
        down="mlp.c_proj",
        act="mlp.act",
        block="mlp",
        attention="attn",
    )
)
