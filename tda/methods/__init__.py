"""The methods: one file each, found by the registry."""

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
    if sparsity is not None and name != "dense":
        options["sparsity"] = sparsity
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {error}") from None


def __getattr__(name: str) -> Any:
    for kind in METHODS.values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module 'tda.methods' has no attribute {name!r}")
