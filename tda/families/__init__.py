"""Model families: where the FFN of each supported decoder lives."""

from functools import reduce
from typing import Any

from torch import nn

from tda.contracts import FFN, Family
from tda.registry import Registry

FAMILIES: Registry[Family] = Registry("model family", "tda.families")


def family_of(model: nn.Module) -> Family:
    """Find the family of a model by its ``config.model_type``.

    Raises
    ------
    TypeError
        If `model` is no Hugging Face model.
    ValueError
        If no family declares its type.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise TypeError(f"expected a Hugging Face decoder with a config, got {type(model).__name__}")
    return family_for(model_type)


def family_for(model_type: object) -> Family:
    """Find the family of a ``model_type``, as a configuration names it.

    Raises
    ------
    ValueError
        If no family declares it.
    """
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    problem = "no model_type" if model_type is None else f"unsupported architecture {model_type!r}"
    supported = sorted(name for family in FAMILIES.values() for name in family.model_types)
    raise ValueError(
        f"{problem} in the model's configuration; supported: {', '.join(supported)}. "
        "CONTRIBUTING says how to add a family in one file."
    )


def find_ffns(model: nn.Module) -> list[FFN]:
    """List the FFNs of all layers, as the model's family declares them.

    Raises
    ------
    ValueError
        If the family is unknown, or the model does not look as the family says.
    """
    family = family_of(model)
    layers = _resolve(model, family.layers, family)
    return [_ffn(layer, index, family) for index, layer in enumerate(layers)]


def _ffn(layer: nn.Module, index: int, family: Family) -> FFN:
    ffn = FFN(
        index=index,
        gate=None if family.gate is None else _resolve(layer, family.gate, family),
        up=_resolve(layer, family.up, family),
        down=_resolve(layer, family.down, family),
        act=_resolve(layer, family.act, family),
        block=None if family.block is None else _resolve(layer, family.block, family),
    )
    for linear in ffn.linears:
        if type(linear) is not nn.Linear:
            raise ValueError(
                f"layer {index}: expected plain nn.Linear projections, got {type(linear).__name__}; "
                "quantised or adapted weights are not supported"
            )
    return ffn


def _resolve(root: nn.Module, path: str, family: Family) -> Any:
    try:
        return reduce(getattr, path.split("."), root)
    except AttributeError:
        raise ValueError(
            f"family {family.name!r} expects {path!r} in {type(root).__name__}, which has no such module"
        ) from None
