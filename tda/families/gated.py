"""Decoders with a gated FFN in a module of its own: ``down(act(gate(x)) * up(x))``."""

from tda.contracts import Family
from tda.families import FAMILIES

FAMILIES.register("gated")(
    Family(
        name="gated",
        model_types=("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"),
        layers="model.layers",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        act="mlp.act_fn",
        block="mlp",
    )
)
