"""The methods: one file each, found by the registry."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tda.cases import MethodSpec, first_problem
from tda.contracts import METHOD_FILE, Method
from tda.registry import Registry
from tda.thresholds import THRESHOLDS_FILE, Thresholds

METHODS: Registry[type[Method]] = Registry(
    "method",
    "tda.methods",
    fits=lambda entry: isinstance(entry, type) and issubclass(entry, Method) and not inspect.isabstract(entry),
)


def method(name: str, sparsity: float | None = None, **options: Any) -> Method:
    """Build a method by its registered name; a sparsity of None takes the method's own default.

    Raises
    ------
    ValueError
        If the name, the sparsity or an option is unknown.
    """
    dial = {"sparsity": sparsity} if sparsity is not None and takes_sparsity(name) else {}
    return _made(name, {**dial, **options})


def _made(name: str, chosen: Mapping[str, Any]) -> Method:
    known = option_names(METHODS[name])
    for option in chosen:
        if option not in known:
            raise ValueError(f"method {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    try:
        return METHODS[name](**chosen)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {error}") from None


def takes_sparsity(name: str) -> bool:
    """Whether a method leaves out a share of the neurons that is asked for.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    return "sparsity" in option_names(METHODS[name])


def option_names(kind: type[Method]) -> list[str]:
    """Names of the options of a kind of method, its sparsity among them."""
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


def load_method(source: str | Path) -> Method:
    """A method by its spec, or fitted, as it was saved.

    Parameters
    ----------
    source : str or Path
        A folder of `Method.save_pretrained`; a file of `tda calibrate`; or a spec, as ``"tda:sparsity=0.5"``, of a
        method that is not fitted then.

    Raises
    ------
    ValueError
        If it is none of them, or what was saved is not of this version.
    """
    if isinstance(source, str) and source in METHODS and not Path(source, METHOD_FILE).is_file():
        return _made(source, {})
    place = Path(source)
    if place.name == METHOD_FILE:
        place = place.parent
    if place.is_file():
        return _of_artifact(Thresholds.load(place), place)
    if not place.is_dir():
        if isinstance(source, Path) or "/" in source or "\\" in source:
            raise ValueError(f"there is no {source}; a method is saved by method.save_pretrained(folder)")
        return build(MethodSpec.parse(source))[0]
    if not (place / METHOD_FILE).is_file():
        raise ValueError(f"{place} has no {METHOD_FILE}; a method is saved by method.save_pretrained(folder)")
    try:
        spec = MethodSpec.model_validate_json((place / METHOD_FILE).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{place / METHOD_FILE} is no method: {first_problem(error)}") from None
    made = _made(spec.name, spec.options)
    artifact = place / THRESHOLDS_FILE
    return made.with_thresholds(Thresholds.load(artifact)) if artifact.is_file() else made


def _of_artifact(thresholds: Thresholds, place: Path) -> Method:
    """The method that thresholds were made for, fitted with them."""
    options = {name: value for name, value in thresholds.method.items() if name != "name"}
    try:
        return _made(str(thresholds.method.get("name")), options).with_thresholds(thresholds)
    except ValueError as error:
        raise ValueError(f"{place} is of a method that this version does not have: {error}; calibrate anew") from None


def __getattr__(name: str) -> Any:
    for kind in METHODS.values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module 'tda.methods' has no attribute {name!r}")
