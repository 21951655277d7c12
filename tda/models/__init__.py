"""Models by name: ``ref:NAME`` ships with the package, ``shape:NAME`` is an architecture, else a folder or hub id."""

from tda.models.load import (
    LoadedModel,
    describe_models,
    is_shape,
    load_model,
    needs_training,
    parameter_count,
    sizes_beyond_cache,
)

__all__ = [
    "LoadedModel",
    "describe_models",
    "is_shape",
    "load_model",
    "needs_training",
    "parameter_count",
    "sizes_beyond_cache",
]
