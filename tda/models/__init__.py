"""Models by name: ``ref:NAME`` ships with the package, ``shape:NAME`` is an architecture, else a folder or hub id."""

from tda.models.load import (
    LoadedModel,
    describe_models,
    is_shape,
    larger_than_cache,
    load_model,
    needs_training,
    parameter_count,
)

__all__ = [
    "LoadedModel",
    "describe_models",
    "is_shape",
    "larger_than_cache",
    "load_model",
    "needs_training",
    "parameter_count",
]
