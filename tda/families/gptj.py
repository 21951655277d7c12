"""GPT-J and CodeGen: plain FFN with biases beside the attention."""

from tda.families import FAMILIES
from tda.view import Family

FAMILIES.register("gptj")(
    Family(
        name="gptj",
        model_types=("gptj", "codegen"),
        layers="transformer.h",
        up="mlp.fc_in",
        down="mlp.fc_out",
        act="mlp.act",
        block="mlp",
        attention="attn",
    )
)
