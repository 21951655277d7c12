"""Widen a model without changing its function: more bytes, equal logits.

Units (hidden dimensions with their attention heads, or FFN neurons) are copied. What writes a unit is copied with it,
so copies hold equal values; what reads a unit is shared out, in parts that sum to what it was. Copy c of unit j of n is
unit j + c·n: copies lie apart, so kept neurons are as scattered as before. Source: Net2Net, arXiv 1511.05641.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

WidenedUnit = Literal["hidden", "heads", "neurons"]

_LINEARS: Mapping[str, tuple[WidenedUnit | None, WidenedUnit]] = {
    "q_proj": ("heads", "hidden"),
    "k_proj": ("heads", "hidden"),
    "v_proj": ("heads", "hidden"),
    "o_proj": ("hidden", "heads"),
    "out_proj": ("hidden", "heads"),
    "gate_proj": ("neurons", "hidden"),
    "up_proj": ("neurons", "hidden"),
    "down_proj": ("hidden", "neurons"),
    "fc1": ("neurons", "hidden"),
    "fc2": ("hidden", "neurons"),
    "lm_head": (None, "hidden"),
}
"""Units that a linear layer writes (rows of its weight, and its bias) and reads (columns)."""
_TABLES = ("embed_tokens", "embed_positions")
_COUNTS: Mapping[str, WidenedUnit] = {
    "hidden_size": "hidden",
    "word_embed_proj_dim": "hidden",
    "num_attention_heads": "heads",
    "num_key_value_heads": "heads",
    "intermediate_size": "neurons",
    "ffn_dim": "neurons",
}
"""Fields of a configuration that count units."""
FAMILIES = ("llama", "gemma", "opt")
"""Types of model whose tensors are known here."""


def wider_config(config: Any, *, hidden: int = 1, neurons: int = 1) -> Any:
    """Configuration of the wider model; arguments and errors as for `wider_state`."""
    _check(config, hidden, neurons)
    factors, wider = _factors(hidden, neurons), copy.deepcopy(config)
    for field, unit in _COUNTS.items():
        if hasattr(wider, field):
            setattr(wider, field, getattr(wider, field) * factors[unit])
    if hidden > 1:  # a head reads what a table writes: one is shared out, the other copied
        wider.tie_word_embeddings = False
    return wider


def wider_state(
    config: Any,
    state: Mapping[str, Tensor],
    *,
    hidden: int = 1,
    neurons: int = 1,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Tensors of the wider model.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the Llama, Gemma or OPT model that is widened.
    state : mapping
        Its tensors by name.
    hidden, neurons : int
        How many copies there are to be of each hidden dimension and attention head, and of each FFN neuron.
    generator : torch.Generator, optional
        Draws unequal parts, for training on; without it all parts are equal.

    Raises
    ------
    ValueError
        If the model is of another type, holds a tensor that is not known here, or a factor is below 1.
    """
    _check(config, hidden, neurons)
    tensors = dict(state)
    if hidden > 1:
        table = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        if config.tie_word_embeddings:
            tensors["lm_head.weight"] = tensors[table]
        if config.model_type == "gemma":  # it multiplies embeddings by the root of the hidden size
            tensors[table] = tensors[table] * hidden**-0.5
    factors = _factors(hidden, neurons)
    return {name: _widened(name, tensor, factors, generator) for name, tensor in tensors.items()}


def _factors(hidden: int, neurons: int) -> dict[WidenedUnit, int]:
    return {"hidden": hidden, "heads": hidden, "neurons": neurons}


def _check(config: Any, hidden: int, neurons: int) -> None:
    width = getattr(config, "word_embed_proj_dim", config.hidden_size)
    if config.model_type not in FAMILIES or width != config.hidden_size:
        raise ValueError(f"only plain {', '.join(FAMILIES)} models can be widened; got {config.model_type!r}")
    if min(hidden, neurons) < 1:
        raise ValueError(f"a model is widened 1 time or more; got {hidden} and {neurons}")


def _widened(
    name: str, tensor: Tensor, factors: Mapping[WidenedUnit, int], generator: torch.Generator | None
) -> Tensor:
    *_, layer, kind = name.split(".")
    if layer in _LINEARS:
        writes, reads = _LINEARS[layer]
        if kind == "weight":
            tensor = _shared(tensor, factors[reads], generator)
        return _copied(tensor, 0, factors[writes] if writes else 1)
    if layer in _TABLES or layer.endswith("norm"):
        return _copied(tensor, -1, factors["hidden"])
    raise ValueError(f"{name} is not a tensor that can be widened")


def _copied(tensor: Tensor, axis: int, factor: int) -> Tensor:
    return torch.cat([tensor] * factor, axis)


def _shared(tensor: Tensor, factor: int, generator: torch.Generator | None) -> Tensor:
    """The columns of a weight, each in `factor` parts."""
    parts = torch.ones(factor, tensor.shape[1])
    if generator is not None:
        parts = 0.5 + torch.rand(parts.shape, generator=generator)
    parts /= parts.sum(0)
    return torch.cat([tensor * part.to(tensor.dtype) for part in parts], 1)
