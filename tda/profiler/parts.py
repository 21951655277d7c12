"""The parts of a decoder: which modules a profile names, and ranges around their forwards."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import nn

from tda.as_built import is_linear
from tda.families import family_of, find_ffns, layers_of
from tda.spans import span

FFN_PARTS = ("gate", "up", "gate_up", "gate_up_down", "down", "ffn")
"""Parts of the FFN; "gate_up" and "gate_up_down" are one kernel that serves them, "ffn" is what lies between."""
WEIGHT_PARTS = ("gate", "up", "gate_up", "gate_up_down", "down", "projection", "head")
"""Parts whose operators read weights: what decode is bound by."""
PARTS = (*FFN_PARTS, "projection", "attention", "norm", "embedding", "head", "layer", "model")
"""All parts; "projection" is a linear outside FFN and head, "layer" and "model" are the code around the others."""
SEPARATOR = ": "
"""Between a part and the path of its module in the name of a range."""


class Named(NamedTuple):
    """A module with the part it plays and its path in the model."""

    module: nn.Module
    part: str
    path: str


def named_parts(model: nn.Module) -> Iterator[Named]:
    """Every module of a decoder that a profile names.

    Raises
    ------
    ValueError
        If the model's family is not known.
    """
    roles = _roles(model)
    for path, module in model.named_modules():
        part = roles.get(id(module)) or _by_kind(module)
        if part is not None:
            yield Named(module, part, path or "model")


def _roles(model: Any) -> dict[int, str]:
    """Parts that the family tells, by the identity of the module."""
    roles = {id(model): "model"}
    for ffn in find_ffns(model):
        roles |= {id(ffn.block): "ffn"} if ffn.block is not None else {}
        if ffn.experts is not None:
            roles[id(ffn.experts.module)] = "ffn"
            continue
        for name, linear in ffn.named_linears():
            roles[id(linear.module)] = name if linear.is_module else "gate_up"
    attention = family_of(model).attention
    for layer in layers_of(model):
        roles |= {id(layer): "layer", id(layer.get_submodule(attention)): "attention"}
    head = model.get_output_embeddings()
    return roles | ({id(head): "head"} if head is not None else {})


def _by_kind(module: nn.Module) -> str | None:
    """Part of a module that the family does not name."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear) or is_linear(module):
        return "projection"
    return "norm" if "norm" in type(module).__name__.lower() else None


@contextmanager
def ranges(model: nn.Module) -> Iterator[None]:
    """Open a range around the forward of every part inside the block."""
    with ExitStack() as hooks:
        for module, part, path in named_parts(model):
            for handle in around(module, f"{part}{SEPARATOR}{path}"):
                hooks.callback(handle.remove)
        yield


def around(module: nn.Module, name: str) -> list[Any]:
    """Open a range of a name around each forward of a module, until the hooks that are returned are removed."""
    opened: list[AbstractContextManager[object]] = []

    def before(_module: nn.Module, _args: object) -> None:
        opened.append(span(name))
        opened[-1].__enter__()

    def after(_module: nn.Module, _args: object, _output: object) -> None:
        if opened:  # it is empty where another's hook failed before this one's
            opened.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True),
    ]
