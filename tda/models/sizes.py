"""How large a model is by its configuration, told without building it."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from tda.families import find_ffns
from tda.models.load import is_shape
from tda.models.reference import PREFIX, Reference
from tda.models.shapes import shape_config


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model.

    Attributes
    ----------
    parameters : int
        Weights, tied ones counted once.
    ffn_parameters : int
        Those of the linears of feed-forward networks.
    layers : int
        Feed-forward networks.
    hidden, neurons, vocabulary : int
        D, F and V.
    cached_values : int
        Values that a token takes in the key-value cache.
    """

    parameters: int
    ffn_parameters: int
    layers: int
    hidden: int
    neurons: int
    vocabulary: int
    cached_values: int

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """By a transformers config: the model is built without memory.

        Raises
        ------
        ValueError
            If it makes no model of a supported family.
        """
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        ffns, text = find_ffns(model), config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            ffn_parameters=sum(linear.weight.numel() for ffn in ffns for linear in ffn.linears),
            layers=len(ffns),
            hidden=ffns[0].D,
            neurons=ffns[0].F,
            vocabulary=text.vocab_size,
            cached_values=2 * text.num_hidden_layers * heads * width,
        )


def sizes_of(name: str) -> Sizes:
    """Sizes of a model by its name: a shape, a reference model, a folder or a hub id.

    Raises
    ------
    OSError, ValueError
        If its configuration cannot be read, or makes no model of a supported family.
    """
    from transformers import AutoConfig

    if is_shape(name):
        return Sizes.of(shape_config(name.removeprefix("shape:")))
    if name.startswith(PREFIX):
        reference = Reference.find(name)
        return Sizes.of(reference.config(AutoConfig.from_pretrained(reference.folder)))
    return Sizes.of(AutoConfig.from_pretrained(name))
