"""Decoders whose layers are mixtures of gated experts, their weights in tensors of three dimensions."""

from typing import Any

from tda.families import FAMILIES
from tda.view import Experts, Family


def _mixture(layer: Any) -> Experts:
    mixture = layer.mlp
    if not hasattr(mixture, "experts"):
        raise ValueError(
            "some layers of this model are mixtures of experts and others are not (mlp_only_layers, "
            "decoder_sparse_step); models with both are not supported yet"
        )
    return Experts(mixture.experts, mixture.gate.top_k)


FAMILIES.register("experts")(
    Family(
        name="experts",
        model_types=("mixtral", "qwen3_moe"),
        layers="model.layers",
        gate="gate_up_proj[0/2]",
        up="gate_up_proj[1/2]",
        down="down_proj",
        act="act_fn",
        experts=_mixture,
    )
)
