"""A model's configuration, checked before anything is allocated: its kind, its sizes, and how large they make it."""

import copy
import json
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import torch

from tda.families import family_for

LARGEST = 2**31 - 1
DEEPEST = 1000
"""Layers of the deepest model that is believed; the deepest known ones have some hundreds."""
SIZES = {
    "vocab_size": LARGEST,
    "hidden_size": LARGEST,
    "intermediate_size": LARGEST,
    "ffn_dim": LARGEST,
    "word_embed_proj_dim": LARGEST,
    "num_hidden_layers": DEEPEST,
    "num_attention_heads": LARGEST,
    "num_key_value_heads": LARGEST,
    "head_dim": LARGEST,
    "max_position_embeddings": LARGEST,
}
"""The largest believable value of every size in a configuration; the smallest is 1."""
DERIVED = ("word_embed_proj_dim", "num_key_value_heads", "head_dim")
"""Sizes that follow from others where they are null."""
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


def check_fields(fields: Any) -> None:
    """Check what a config.json holds.

    Raises
    ------
    ValueError
        If its kind is not supported, or a size is none or does not fit another.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"its config.json holds a {type(fields).__name__}; expected an object with a model_type")
    family_for(fields.get("model_type"))
    _check_sizes(fields)
    _check_heads(fields)
    _check_activations(fields)


def _check_sizes(fields: Mapping[str, Any]) -> None:
    for name, largest in SIZES.items():
        value = fields.get(name, 1)
        if value is None and name in DERIVED:
            continue
        if type(value) is not int or not 1 <= value <= largest:
            raise _wrong(name, value, f"a whole number from 1 to {largest}")


def _check_heads(fields: Mapping[str, Any]) -> None:
    """Whether key and value heads divide the heads, and these the width where the size of a head follows from it."""
    from transformers import CONFIG_MAPPING

    heads, kv_heads = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if heads is None:
        return
    if kv_heads is not None and heads % kv_heads:
        raise _wrong("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    known = fields["model_type"] in CONFIG_MAPPING  # else it brings its own code
    own = fields.get("head_dim") or (known and getattr(CONFIG_MAPPING[fields["model_type"]], "head_dim", None))
    if own is None and fields.get("hidden_size", heads) % heads:
        raise _wrong("num_attention_heads", heads, f"a divisor of hidden_size ({fields['hidden_size']})")


def _check_activations(fields: Mapping[str, Any]) -> None:
    from transformers.activations import ACT2FN

    for name in ACTIVATIONS:
        value = fields.get(name)
        if isinstance(value, str) and value not in ACT2FN:
            raise _wrong(name, value, f"one of {', '.join(sorted(ACT2FN))}")


def _wrong(name: str, value: object, accepted: str) -> ValueError:
    shown = shorten(json.dumps(value), 60, placeholder=" …")
    return ValueError(f"{name} in its config.json is {shown}; expected {accepted}")


def parameters(config: Any, *, trust_remote_code: bool = False) -> int:
    """How many parameters a model has, tied ones counted once: it is built without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in model.parameters())
