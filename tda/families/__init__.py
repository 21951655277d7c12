"""Model families: where the FFN of each supported decoder lives."""

from dataclasses import replace
from functools import reduce
from typing import Any

from torch import nn

from tda.as_built import is_compiled, is_linear, modules_of, path_of, place_problem
from tda.registry import Registry
from tda.view import FFN, Experts, Family, Linear, LinearInput

FAMILIES: Registry[Family] = Registry("model family", "tda.families", fits=lambda entry: isinstance(entry, Family))


def family_of(model: nn.Module) -> Family:
    """Find the family of a model by its ``config.model_type``.

    Raises
    ------
    TypeError
        If `model` is no Hugging Face model.
    ValueError
        If no family declares its type, or the model is wrapped in another.
    """
    wrapper = type(model).__name__
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        raise ValueError(
            f"{wrapper} wraps the model: give `model.get_base_model()`, whose adapters stay; calls of the wrapper "
            "pass through it"
        )
    if hasattr(model, "_orig_mod"):
        raise ValueError(f"{wrapper} is a compiled model, whose code has no place for a method: give `model._orig_mod`")
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
    raise ValueError(
        f"{problem} in the model's configuration; `tda models` lists those that are supported, and CONTRIBUTING says "
        "how to add a family in one file"
    )


def describe_families() -> list[dict[str, str]]:
    """One row per family: name, model types, kind of FFN, and how far the kernels in C run its decode."""
    return [
        {
            "family": family.name,
            "model_types": ", ".join(sorted(family.model_types)),
            "ffn": "plain" if family.gate is None else "gated",
            "decode_in_c": "layer by layer" if family.decoder is None else "whole steps",
        }
        for family in FAMILIES.values()
    ]


def find_ffns(model: nn.Module) -> list[FFN]:
    """List the FFNs of all layers, as the model's family declares them.

    Raises
    ------
    ValueError
        If the family is unknown, or the model does not look as the family says.
    """
    family = family_of(model)
    found: list[FFN] = []
    for number, layer in enumerate(layers_of(model)):
        if family.experts is None:
            found.append(_ffn(layer, number, family))
        else:
            found += _experts(family.experts(layer), number, len(found), family)
    return found


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, as its family tells where they are."""
    family = family_of(model)
    return list(_resolve(model, family.layers, family))


def find_inputs(model: nn.Module) -> list[LinearInput]:
    """List the inputs of every linear in a model's layers.

    Raises
    ------
    ValueError
        If the family is unknown, or a linear does not just multiply by a weight that can be read where it lies.
    """
    found: list[LinearInput] = []
    for number, layer in enumerate(layers_of(model)):
        for path, module in layer.named_modules():
            if isinstance(module, nn.Linear) or is_linear(module):
                linear = Linear(module)
                if linear.problem is not None:
                    raise ValueError(f"layer {number}: {path} {linear.problem}; its input cannot be left out")
                found.append(LinearInput(len(found), linear, number, path))
    return found


def check_model(model: nn.Module, ffns: list[FFN]) -> None:
    """Raise ValueError if a model cannot take a method: its weights, its code or its kind do not allow it."""
    if not hasattr(model, "generate"):
        raise ValueError(
            f"expected a causal language model (…ForCausalLM), got {type(model).__name__}, which has no `generate`"
        )
    compiled = next(filter(is_compiled, modules_of(model)), None)
    if compiled is not None:
        raise ValueError(
            f"{path_of(model, compiled)} is compiled by torch.compile, whose code has no place for a method: "
            "give a model that is not compiled"
        )
    reason = place_problem(model)
    if reason is not None:
        raise ValueError(f"{reason}; a method needs the whole model on one device: load it without offload or sharding")
    owners: dict[Any, int] = {}
    for ffn in ffns:
        for name, linear in ffn.named_linears():
            reason = linear.problem
            if reason is not None:
                raise ValueError(
                    f"layer {ffn.index}: {name} {reason}; quantised or adapted weights of the feed-forward network "
                    "are not supported (merge adapters first: `merge_and_unload()` in PEFT)"
                )
            shared = owners.setdefault(linear.key, ffn.index)
            if shared != ffn.index:
                raise ValueError(f"layers {shared} and {ffn.index} share {name}; a layer needs weights of its own")


def _ffn(layer: nn.Module, index: int, family: Family) -> FFN:
    return FFN(
        index=index,
        layer=index,
        gate=None if family.gate is None else _linear(layer, family.gate, family),
        up=_linear(layer, family.up, family),
        down=_linear(layer, family.down, family),
        act=_resolve(layer, family.act, family),
        block=None if family.block is None else _resolve(layer, family.block, family),
    )


def _experts(experts: Experts, layer: int, first: int, family: Family) -> list[FFN]:
    """The experts of a layer, whose weights lie in tensors of three dimensions: [E, N, K]."""
    module = experts.module

    def linear(path: str, expert: int) -> Linear:
        return _part(Linear(module, expert=expert, name=path.partition("[")[0]), path)

    for expert in range(len(_resolve(module, family.down, family))):
        ffn = FFN(
            index=first + expert,
            gate=None if family.gate is None else linear(family.gate, expert),
            up=linear(family.up, expert),
            down=linear(family.down, expert),
            act=_resolve(module, family.act, family),
            block=None,
            layer=layer,
            experts=experts,
        )
        experts.ffns.append(ffn)
    return experts.ffns


def _part(linear: Linear, path: str) -> Linear:
    """A linear, or the part of its outputs that ``path[1/2]`` tells."""
    _, _, part = path.rstrip("]").partition("[")
    if not part:
        return linear
    number, of = map(int, part.split("/"))
    size = linear.out_features // of
    return replace(linear, rows=slice(number * size, (number + 1) * size))


def _linear(layer: nn.Module, path: str, family: Family) -> Linear:
    """The linear at a path; ``path[1/2]`` is the second half of the outputs there."""
    return _part(Linear(_resolve(layer, path.partition("[")[0], family)), path)


def _resolve(root: nn.Module, path: str, family: Family) -> Any:
    try:
        return reduce(getattr, path.split("."), root)
    except AttributeError:
        raise ValueError(
            f"family {family.name!r} expects {path!r} in {type(root).__name__}, which has no such module"
        ) from None
