"""Plain runs of a model: greedy, with a key-value cache, and no more output than asked, whatever its folder says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tda.engine.overrides import Overrides
from tda.engine.transformers_api import neutral_generation, text_config

FORWARD = {"use_cache": True, "output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""What a model's config is to say of every forward; `tda.thresholds.hash_config` counts none of it."""
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Settings of generation that are facts about the vocabulary."""
NO_SETTING = ("transformers_version", *TOKENS)


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Let nothing that the model's folder says decide how the model's own generate and its forwards run.

    Inside, the model has a generation config that is empty but for the cache, without an end of text too: who
    generates says all that is to hold. Enter it before `attach`, which looks at the generation config. Afterwards,
    also after an exception, the model says what it said.
    """
    from transformers import GenerationConfig

    own: Any = model
    overrides = Overrides()
    try:
        overrides.set(own, "generation_config", GenerationConfig(use_cache=True))
        if (custom := vars(own).pop("generate", None)) is not None:
            overrides.later(lambda: vars(own).update(generate=custom))
        for config in {id(config): config for config in (own.config, text_config(model))}.values():
            _set_forward(config, overrides)
        yield
    finally:
        overrides.undo()


def _set_forward(config: Any, overrides: Overrides) -> None:
    """Set `FORWARD`; what was there is put back as it lay, since a config may refuse to be given it."""
    before = dict(vars(config))
    for name, value in FORWARD.items():
        if getattr(config, name, value) != value:
            setattr(config, name, value)
    changed = {name: value for name, value in before.items() if vars(config)[name] is not value}
    overrides.later(lambda: vars(config).update(changed))


def left_aside(model: nn.Module) -> dict[str, Any]:
    """What a model's folder asks of generation and forwards that a plain run does not do; before `plain` and `attach`.

    A generate of the folder's own, which it may bring with code that is trusted, is called ``custom_generate``.
    """
    own: Any = model
    neutral = neutral_generation() | FORWARD
    asked = own.generation_config.to_dict() if getattr(own, "generation_config", None) is not None else {}
    if "generate" in vars(own):
        asked["custom_generate"] = True
    asked |= {name: found for name in FORWARD if (found := _forward(model, name)) != FORWARD[name]}
    return {
        name: value
        for name, value in asked.items()
        if value is not None and value != neutral.get(name) and name not in NO_SETTING and not name.startswith("_")
    }


def _forward(model: nn.Module, name: str) -> Any:
    """What the config, or its language part, says of every forward: the first that is not as in a plain run."""
    own: Any = model
    found = [getattr(config, name, FORWARD[name]) for config in (own.config, text_config(model))]
    return next((value for value in found if value is not None and value != FORWARD[name]), FORWARD[name])


def settings(asked: dict[str, Any]) -> str:
    """Settings in words, e.g. ``"num_beams=4, use_cache=False"``."""
    return ", ".join(f"{name}={value!r}" for name, value in asked.items())


def describe_generation(model: nn.Module, new_tokens: int) -> str:
    """How a plain run generates so many tokens, and what of the folder's settings it leaves aside; for a record."""
    aside = left_aside(model)
    words = f"greedy, {new_tokens} new tokens, key-value cache"
    return f"{words}; left aside of the model's folder: {settings(aside)}" if aside else words


def notice(model: nn.Module) -> str | None:
    """A sentence for a user about what the model's folder asks in vain; None where that is nothing."""
    aside = left_aside(model)
    if not aside:
        return None
    held = "it runs greedily where no option says otherwise, with a key-value cache"
    return f"its folder asks for {settings(aside)}; left aside: {held}"
