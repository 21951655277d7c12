"""Decoders with a gated FFN in a module of its own: ``down(act(gate(x)) * up(x))``."""

from dataclasses import replace

from tda.families import FAMILIES
from tda.families.llama_step import POST, SANDWICH, llama_step
from tda.view import Family

GATED = Family(
    name="gated",
    model_types=(
        *("llama", "mistral", "gemma", "qwen2", "qwen3"),
        *("cwm", "exaone", "internlm3", "iquestcoder", "ministral", "seed_oss", "stablelm"),
    ),
    layers="model.layers",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    act="mlp.act_fn",
    block="mlp",
    decoder=llama_step(),
)
SANDWICHED = replace(GATED, name="gated_sandwich", model_types=("gemma2",), decoder=llama_step(SANDWICH))
POST_NORMED = replace(GATED, name="gated_post_norm", model_types=("exaone4",), decoder=llama_step(POST))
VAULTGEMMA = replace(
    GATED,
    name="vaultgemma",
    model_types=("vaultgemma",),
    decoder=llama_step({"attention_in": "input_layernorm", "ffn_in": "pre_feedforward_layernorm"}),
)
BY_LAYER = replace(
    GATED,
    name="gated_by_layer",
    model_types=(
        *("cohere", "cohere2"),  # attention and FFN side by side
        *("granite", "granite_swa", "hyperclovax"),  # multipliers of residuals, scores and logits
        *("gemma3_text", "gemma4_text", "gemma4_unified_text"),  # rotary positions that differ between layers
        *("ernie4_5", "helium"),  # rotary positions of interleaved pairs
        *("ministral3", "smollm3"),  # scores scaled by position; layers without positions
        *("olmo", "olmo2", "olmo3"),  # norms without weights, or over all heads at once
        *("diffllama", "doge", "flint", "hunyuan_v1_dense", "minicpm3", "youtu"),  # an attention of their own
    ),
    decoder=None,
)
"""The FFN of `GATED`; the C kernels do not know what is around it."""

for family in (GATED, SANDWICHED, POST_NORMED, VAULTGEMMA, BY_LAYER):
    FAMILIES.register(family.name)(family)
