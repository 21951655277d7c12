"""The phases as named functions: prefill a prompt, decode tokens, on a cache of their own."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from tda.engine.transformers_api import cache_keyword, positions, returned_cache


class Prefilled(NamedTuple):
    """What a prompt's pass leaves: logits of its last token(s), and the cache.

    Attributes
    ----------
    logits : Tensor
        [B, T, V], or [B, 1, V] where only the last was asked for.
    cache : object
        Key-value cache of the prompt.
    """

    logits: Tensor
    cache: Any


def prefill(
    model: nn.Module, tokens: Tensor, mask: Tensor | None = None, *, all_logits: bool = False, cache: Any = None
) -> Prefilled:
    """Run prompts [B, T], padded on the left where mask [B, T] is false; the cache is new, or the empty one given."""
    arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": True}
    if cache is not None:
        arguments[cache_keyword(model)] = cache
    if mask is not None:
        arguments |= {"attention_mask": mask.long(), "position_ids": positions(mask)}
    if not all_logits:
        arguments["logits_to_keep"] = 1
    output = model(**arguments)
    return Prefilled(output.logits, returned_cache(output))


def decode(model: nn.Module, tokens: Tensor, cache: Any, mask: Tensor | None = None) -> Tensor:
    """Run further tokens [B, T] on a cache, one step or teacher-forced: logits [B, T, V].

    Parameters
    ----------
    model : nn.Module
        The model.
    tokens : Tensor
        int64 [B, T]
    cache : object
        The cache of `prefill`; it grows.
    mask : Tensor, optional
        bool [B, cached + T], where prompts were padded.
    """
    arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": True, cache_keyword(model): cache}
    if mask is not None:
        arguments |= {"attention_mask": mask.long(), "position_ids": positions(mask)[:, -tokens.shape[1] :]}
    logits = model(**arguments).logits
    assert isinstance(logits, Tensor)
    return logits
