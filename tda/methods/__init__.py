"""The methods: one file each, found by the registry."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tda.cases import MethodSpec
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
    dial = {"sparsity": sparsity} if sparsity is not None and takes_sparsity(name) else {}
    return _made(name, {**dial, **options})


def _made(name: str, options: Mapping[str, Any]) -> Method:
    known = _options(METHODS[name])
    for option in options:
        if option not in known:
            raise ValueError(f"method {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {error}") from None


def takes_sparsity(name: str) -> bool:
    """Whether a method leaves out a share of the neurons that is asked for.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    return "sparsity" in _options(METHODS[name])


def _options(kind: type[Method]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def build(spec: MethodSpec, sparsities: Sequence[float] = ()) -> list[Method]:
    """Methods of a spec: one, or where it tells no sparsity and takes one, one for each of these (none: its default).

    Raises
    ------
    ValueError
        As `method`.
    """
    told = {name for name, value in spec.options.items() if value is not None}
    if told & {"sparsity", METHODS[spec.name].instead_of_sparsity} or not takes_sparsity(spec.name) or not sparsities:
        return [_made(spec.name, spec.options)]
    return [_made(spec.name, {**spec.options, "sparsity": sparsity}) for sparsity in dict.fromkeys(sparsities)]


def spec_of(built: Method) -> MethodSpec:
    """The spec of a method with all its options, so that equal methods have equal specs."""
    dial = {"sparsity": built.sparsity} if "sparsity" in _options(type(built)) and built.sparsity is not None else {}
    return MethodSpec(name=built.name, options={**dial, **built.options})


def __getattr__(name: str) -> Any:
    for kind in METHODS.values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module 'tda.methods' has no attribute {name!r}")
