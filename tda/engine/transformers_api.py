"""The few places where transformers differs between versions."""

import inspect
from typing import Any

from torch import Tensor, nn


def cache_keyword(model: nn.Module) -> str:
    """Name of the forward argument that takes the key-value cache: ``past_key_values``, newer ``cache``."""
    parameters = inspect.signature(inspect.unwrap(type(model).forward)).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def text_config(model: nn.Module) -> Any:
    """Config of a model's language part: vocab_size, num_hidden_layers and so on."""
    config: Any = model.config
    return config.get_text_config()


def given_cache(arguments: dict[str, Any]) -> Any:
    """The key-value cache among a call's arguments, by either name; None where there is none."""
    found = arguments.get("cache")
    return arguments.get("past_key_values") if found is None else found


def returned_cache(output: Any) -> Any:
    """The key-value cache of a model output, by either name; None where there is none."""
    found = getattr(output, "cache", None)
    return getattr(output, "past_key_values", None) if found is None else found


def cached_tokens(key_values: Any) -> int:
    """Tokens that a cache holds; 0 for no cache."""
    return 0 if key_values is None else int(key_values.get_seq_length())


def positions(mask: Tensor) -> Tensor:
    """Position ids of the tokens of an attention mask [B, T]: padding does not count."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
