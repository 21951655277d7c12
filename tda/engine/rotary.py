"""Rotary positions that a model scales anew as sequences grow: what one request leaves would change the next."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from tda.as_built import modules_of

FREQUENCIES = "inv_freq"


class Rotary:
    """The modules of a model whose frequencies depend on the longest sequence that they have seen.

    Transformers keeps those frequencies, so the same prompt has other logits the second time. After a `reset` they
    follow from the length of the next forward's sequence alone.

    Parameters
    ----------
    model : nn.Module
        The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in modules_of(model) if is_dynamic(module)]

    def reset(self) -> None:
        """Let every module have the frequencies that it was built with."""
        for module in self._modules:
            for prefix, original in _originals(module):
                module._buffers[f"{prefix}{FREQUENCIES}"] = original
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    def keep(self) -> Callable[[], None]:
        """Remember the frequencies as they are now; return what puts them back."""
        kept = [(module, dict(vars(module)), dict(module._buffers)) for module in self._modules]

        def restore() -> None:
            for module, attributes, buffers in kept:
                vars(module).clear()
                vars(module).update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)

        return restore


def is_dynamic(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding whose frequencies change with the length of what it sees."""
    types = module.__dict__.get("rope_type")
    named = types.values() if isinstance(types, dict) else (types,)
    return hasattr(module, "original_max_seq_len") and any("dynamic" in str(name) for name in named)


def _originals(module: Any) -> Iterator[tuple[str, Tensor]]:
    """Prefix of each kind of layer that has frequencies of its own, and what they were at first."""
    suffix = f"original_{FREQUENCIES}"
    for name, buffer in [*module._buffers.items()]:
        if name.endswith(suffix):
            yield name.removesuffix(suffix), buffer
