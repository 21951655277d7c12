"""Which model this is: id and hash of its config."""

from typing import Any

from torch import nn

from tda.thresholds import ModelIdentity, hash_config
from tda.view import FFN


def identify(model: nn.Module, ffns: list[FFN]) -> ModelIdentity:
    """Identity of a model, as thresholds keep it."""
    config: Any = model.config
    return ModelIdentity(
        id=getattr(config, "_name_or_path", "") or type(model).__name__,
        config_hash=hash_config(config.to_diff_dict()),
        layers=len(ffns),
        intermediate_size=ffns[0].F,
    )
