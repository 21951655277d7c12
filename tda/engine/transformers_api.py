"""The few places where transformers differs between versions."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def cache_keyword(model: nn.Module) -> str:
    """Name of the forward argument that takes the key-value cache: ``past_key_values``, newer ``cache``."""
    return "cache" if "cache" in _parameters(type(model).forward) else "past_key_values"


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters of a model class's forward, in order."""
    return tuple(inspect.signature(inspect.unwrap(forward)).parameters)[1:]


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a model by name, the positional ones too."""
    return {**dict(zip(_parameters(type(model).forward), args, strict=False)), **kwargs}


def text_config(model: nn.Module) -> Any:
    """Config of a model's language part: vocab_size, num_hidden_layers and so on."""
    config: Any = model.config
    return config.get_text_config()


def attention_function(implementation: str | None) -> Any:
    """The function that computes attention under an implementation's name; None where the model has its own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS.get(implementation)


def given_cache(arguments: dict[str, Any]) -> Any:
    """The key-value cache among a call's arguments, by either name; None where there is none."""
    found = arguments.get("cache")
    return arguments.get("past_key_values") if found is None else found


def returned_cache(output: Any) -> Any:
    """The key-value cache of a model output, by either name or in a tuple; None where there is none."""
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    kind: type = type(output)
    return getattr(output, _cache_field(kind), None) if dataclasses.is_dataclass(output) else None


def keeps_cache(model: nn.Module, arguments: dict[str, Any]) -> bool:
    """Whether a call leaves a cache that can be gone on with, as its arguments or the model say."""
    asked, config = arguments.get("use_cache"), model.config
    return bool(getattr(config, "use_cache", True) if asked is None else asked)


def asks_for_more(model: nn.Module, arguments: dict[str, Any]) -> bool:
    """Whether a call is to give more than logits and cache, or to drop out, as its arguments or the model say."""
    if arguments.get("labels") is not None or model.training:
        return True
    config: Any = model.config
    asked = {name: arguments.get(name) for name in ("output_attentions", "output_hidden_states", "return_dict")}
    found = {name: getattr(config, name, None) if value is None else value for name, value in asked.items()}
    return bool(found["output_attentions"] or found["output_hidden_states"] or found["return_dict"] is False)


def model_output(logits: Tensor, cache: Any) -> Any:
    """Output of a causal language model, its cache under the name of this version."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return CausalLMOutputWithPast(**{"logits": logits, _cache_field(CausalLMOutputWithPast): cache})


@functools.cache
def _cache_field(kind: type) -> str:
    return "cache" if "cache" in {field.name for field in dataclasses.fields(kind)} else "past_key_values"


def cached_tokens(key_values: Any) -> int:
    """Tokens that a cache holds; 0 for no cache."""
    return 0 if key_values is None else int(key_values.get_seq_length())


def new_cache() -> Any:
    """An empty cache that keeps every token, under sliding windows too, so that its last token can be cropped."""
    from transformers import DynamicCache

    return DynamicCache()


def positions(mask: Tensor) -> Tensor:
    """Position ids of the tokens of an attention mask [B, T]: padding does not count."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def neutral_generation() -> dict[str, Any]:
    """Settings of a generation config that change nothing: those of an empty one, and what stands for them."""
    from transformers import GenerationConfig

    standing: dict[str, Any] = GenerationConfig._get_default_generation_params()
    return {**GenerationConfig().to_dict(), **standing}
