"""The methods: one file each, found by the registry."""

import dataclasses
from typing import Any

from tda.contracts import Method
from tda.registry import Registry

METHODS: Registry[type[Method]] = Registry("method", "tda.methods")


def method(name: str, sparsity: float | None = None, **options: Any) -> Method:
    """Build a method by its registered name; a sparsity of None takes the method's own default.

    Raises
    ------
    ValueError
        If the name, the sparsity or an option is unknown.
    """
    kind = METHODS[name]
    if sparsity is not None and takes_sparsity(name):
        options["sparsity"] = sparsity
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {error}") from None


def takes_sparsity(name: str) -> bool:
    """Whether a method leaves out a share of the neurons that is asked for.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    return next(field.init for field in dataclasses.fields(METHODS[name]) if field.name == "sparsity")


def __getattr__(name: str) -> Any:
    for kind in METHODS.values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module 'tda.methods' has no attribute {name!r}")
