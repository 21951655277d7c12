"""What of a model is plain torch, so that its weights may be read where they lie and its forwards replaced."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor_problem(tensor: Tensor) -> str | None:
    """Why a tensor's memory cannot be read as a plain array of floats; None if it can."""
    kind = type(tensor)
    if kind not in (Tensor, nn.Parameter):
        return f"is a {kind.__module__}.{kind.__qualname__}, a tensor class with an arithmetic of its own"
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout})"
    if tensor.dtype not in FLOATS:
        return f"is of {str(tensor.dtype).removeprefix('torch.')}, which needs an arithmetic of its own"
    return _memory_problem(tensor)


def _memory_problem(tensor: Tensor) -> str | None:
    """Why a tensor holds no data where it says that it lies; None if it does."""
    if tensor.is_meta:
        return "holds no data: it is on the device 'meta', as offloaded or not yet loaded weights are"
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if is_plain and tensor.numel() and not tensor.data_ptr():
        return "holds no data: its memory was given back"
    return None


LINEARS = {
    "torch.nn.modules.linear.Linear": False,
    "transformers.models.falcon.modeling_falcon.FalconLinear": False,
    "transformers.pytorch_utils.Conv1D": True,
}
"""Classes of modules that multiply by a weight and add a bias, and no more; whether the weight is stored [in, out]."""


def _class_of(module: nn.Module) -> str:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def is_linear(module: nn.Module) -> bool:
    """Whether a module's class is a plain linear."""
    return _class_of(module) in LINEARS


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear module's weight is stored [in, out]."""
    return LINEARS.get(_class_of(module), False)


def linear_problem(linear: Any) -> str | None:
    """Why a linear does not just multiply by a weight that can be read where it lies; None if it does."""
    if not is_linear(linear):
        return f"is a {_class_of(linear)}, not a plain torch.nn.Linear"
    for name in ("weight", "bias"):
        tensor = linear._parameters.get(name)
        if tensor is None and getattr(linear, name, None) is not None:
            return f"has a {name} that is computed anew for every forward"
        reason = None if tensor is None else tensor_problem(tensor)
        if reason is not None:
            return f"has a {name} that {reason}"
    return None


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module of a model once, as `nn.Module.modules`, without the paths that make that one slow."""
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += [child for child in module._modules.values() if child is not None]
    return list(found.values())


def path_of(model: nn.Module, part: nn.Module) -> str:
    """Path of a module in a model; ``the model`` for itself."""
    return next((path for path, module in model.named_modules() if module is part and path), "the model")


INERT = ("transformers.", "tda.")
"""Modules whose hooks need not be called where a fast path runs: ours are a profile's ranges, and a method's own."""


def are_foreign(hooks: dict[int, Any]) -> bool:
    """Whether some of a module's hooks do something: those of transformers do nothing until a forward asks for more."""
    return any(not str(getattr(hook, "__module__", "")).startswith(INERT) for hook in hooks.values())


def addition(module: nn.Module) -> str | None:
    """What was added to a module, beside what its class computes; None if nothing was."""
    if "forward" in module.__dict__:
        return "a forward of its own"
    tables = (module._forward_hooks, module._forward_pre_hooks, *EVERY)
    return "hooks" if any(tables) and any(map(are_foreign, tables)) else None


EVERY = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)
"""The tables of the hooks that torch calls for every module."""


def hook_tables(modules: Iterable[nn.Module]) -> Iterator[dict[int, Any]]:
    """The tables in which the hooks on modules' forwards stand, also those that torch calls for every module."""
    yield from EVERY
    for module in modules:
        yield from (module._forward_hooks, module._forward_pre_hooks)


class NewHooks:
    """Whether modules have got hooks that do something since this was made; asked in every step, so quick to say.

    Parameters
    ----------
    modules : iterable of nn.Module
        The modules.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        tables = list(hook_tables(modules))
        self._empty = [table for table in tables if not table]
        self._known = [(table, frozenset(table)) for table in tables if table]

    def __bool__(self) -> bool:
        if any(self._empty) and any(map(are_foreign, self._empty)):
            return True
        grown = ((table, known) for table, known in self._known if len(table) > len(known))
        return any(are_foreign({key: table[key] for key in table.keys() - known}) for table, known in grown)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has compiled a module, in place or by wrapping it."""
    own = module.__dict__
    forward = own.get("forward")
    return (
        own.get("_compiled_call_impl") is not None
        or "_orig_mod" in module._modules
        or (hasattr(forward, "_torchdynamo_orig_callable") and not hasattr(forward, "_torchdynamo_disable"))
        or hasattr(forward, "get_compiler_config")
    )


def place_problem(model: nn.Module) -> str | None:
    """Why a model's weights do not lie whole on one device; None if they do."""
    devices: dict[torch.device, nn.Module] = {}
    for module in modules_of(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                reason = _memory_problem(parameter)
                if reason is not None:
                    return f"{path_of(model, module)}.{name} {reason}"
                devices.setdefault(parameter.device, module)
    if len(devices) > 1:
        places = (f"{device} ({path_of(model, module)})" for device, module in devices.items())
        return f"its weights are spread over {', '.join(places)}"
    return None


CHANGING = (
    "a method is attached, which reads the weights where they lie: leave the `with` block, then move, convert, copy, "
    "adapt or load the model"
)
"""What to do with a model whose weights are to change."""


class Addresses:
    """Where weights lie; asked in every forward, so quick to compare.

    Parameters
    ----------
    parameters : iterable of Tensor
        The weights.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        self._parameters = [one for one in parameters if tensor_problem(one) is None]
        self._places = self._now()

    def _now(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._parameters]

    @property
    def moved(self) -> bool:
        """Whether a parameter has got other memory since this was made."""
        return self._now() != self._places
