"""How many positions a model has, and requests that need more refused before anything is computed."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from tda.engine.transformers_api import text_config

STRETCHED = ("linear", "dynamic", "yarn")
"""Rotary scalings by whose factor a model reaches beyond the positions that it was trained on."""


class ContextError(ValueError):
    """A request needs more positions than the model has."""


def context_length(config: Any) -> int | None:
    """Tell how many positions a model of this config has; None where its config sets no limit.

    Parameters
    ----------
    config : PretrainedConfig
        Of the model's language part. Where it stretches the rotary embedding, `max_position_embeddings` may be the
        length before or after it: what is longer holds.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if positions is None or not isinstance(rope, Mapping):
        return positions
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in STRETCHED or not rope.get("factor"):
        return positions
    trained = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(trained * rope["factor"]))


def check_context(model: nn.Module, prompt_tokens: int, new_tokens: int) -> None:
    """Refuse a request that is longer than the model's context; its last token is fed to no pass.

    Raises
    ------
    ContextError
        If the model has fewer positions than the request needs.
    """
    if fits(model, prompt_tokens, new_tokens):
        return
    own: Any = model
    positions = context_length(text_config(model))
    assert positions is not None
    name = getattr(own.config, "_name_or_path", "") or type(model).__name__
    has = f"and {name} has {positions} (max_position_embeddings of its config, and what its rope_parameters make of it)"
    if new_tokens == 1:
        raise ContextError(f"{prompt_tokens} tokens need as many positions, {has}; give at most {positions} tokens")
    raise ContextError(
        f"{prompt_tokens} prompt and {new_tokens} new tokens need {prompt_tokens + new_tokens - 1} positions, {has}; "
        f"ask for at most {positions + 1} tokens together"
    )


def fits(model: nn.Module, prompt_tokens: int, new_tokens: int) -> bool:
    """Whether a request is no longer than the model's context."""
    positions = context_length(text_config(model))
    return positions is None or prompt_tokens + new_tokens - 1 <= positions
