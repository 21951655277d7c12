"""What attachments of a model leave for the next ones: copies of weights in rows, executors, captured steps.

On CUDA attaching is dear: weights are laid in rows, kernels loaded, a step captured. Who attaches to one model again
and again, as a bench does, keeps all that in a cache. The model's own weights are left as they lie, so a prompt runs on
the layout that it has without a method, and the model needs no undoing; the copies take the bytes of the down
projections once more. A plain attach has no cache: it changes the layout in place, and needs no second copy.

Weights that are written to through ``.data`` or NumPy bump no version: copies in a cache are then those of before.
"""

import gc
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tda.as_built import is_transposed, modules_of
from tda.contracts import Observer
from tda.engine.backends.decoding import Decoding
from tda.engine.selfcheck import structure
from tda.view import FFN, Linear

RESERVE = 0.1
"""Share of a device's memory that is left to requests: what is in a cache goes before that is touched."""

ModelState = tuple[object, ...]
CACHES: "weakref.WeakKeyDictionary[nn.Module, AttachmentCache]" = weakref.WeakKeyDictionary()
"""Those that are open, by their model."""


def free_bytes(device: torch.device) -> float | None:
    """Bytes that a cache may still take of a device; less than none where it holds too much, None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    if free < RESERVE * total:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
    return free - RESERVE * total


@dataclass(frozen=True, eq=False)
class _Copied(Linear):
    """A linear that is read in a copy of its weight, [N, K]."""

    copied: Tensor = field(kw_only=True)

    @property
    def weight(self) -> Tensor:
        """The copy."""
        return self.copied


class AttachmentCache:
    """What is kept for the attachments of a model, as long as its weights and modules are what they were.

    Parameters
    ----------
    model : nn.Module
        The model.

    Attributes
    ----------
    keeps : bool
        Whether anything is kept of it: on CUDA, where no linear is stored transposed, since each attachment lays those
        anew.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self.keeps = free_bytes(self._device) is not None and not any(map(is_transposed, modules_of(model)))
        self._decodings: dict[Hashable, Decoding] = {}  # the one that was used last is last
        self._rows: list[FFN] = []
        self._weights: list[Tensor] = []  # held, so that no other tensor gets their addresses
        self._state: ModelState = ()
        self._observe: Observer = observe_nothing

    def is_open(self) -> bool:
        """Whether there is room for what is kept; what is not true any more is dropped first."""
        state = self._now()
        if state != self._state:
            self.clear()
        if not self.keeps or not state or not self._make_room(0):
            self.clear()
            return False
        self._weights = [held.detach() for held in _tensors(self._model)]
        self._state = state
        return True

    def rows(self, ffns: list[FFN]) -> list[FFN] | None:
        """The networks with copies of their down projections that have a row for each neuron; None without room."""
        if not self._rows:
            if not self._make_room(sum(ffn.down.weight.nbytes for ffn in ffns)):
                return None
            with torch.inference_mode(False), torch.no_grad():
                self._rows = [replace(ffn, down=_copied(ffn.down)) for ffn in ffns]
        return self._rows

    def decoding(self, key: Hashable, observe: Observer, make: Callable[[Observer], Decoding]) -> Decoding:
        """What runs decode and tells `observe` what is kept: left by an earlier attachment under the key, else made."""
        self._observe = observe
        found = self._decodings.pop(key, None)
        self._decodings[key] = found or make(lambda layer, kept: self._observe(layer, kept))
        return self._decodings[key]

    def clear(self) -> None:
        """Give everything back."""
        had = bool(self._rows or self._decodings)
        self._decodings.clear()
        self._rows, self._weights, self._state = [], [], ()
        self._observe = observe_nothing
        if had:
            _collect(self._device)

    def _make_room(self, wanted: float) -> bool:
        """Drop what was used longest ago until there is room for so many bytes; whether there is."""
        while (found := free_bytes(self._device)) is not None and found < wanted and self._decodings:
            del self._decodings[next(iter(self._decodings))]
            _collect(self._device)
        return found is not None and found >= wanted

    def _now(self) -> ModelState:
        """What is kept holds as long as this is the same: modules, configuration, where weights lie, their versions."""
        same = structure(self._model)
        tensors = list(_tensors(self._model))
        if same is None or any(map(torch.is_inference, tensors)):
            return ()  # hooks were added, or nobody counts how often weights change
        return same, *((held.data_ptr(), held._version) for held in tensors)


def observe_nothing(layer: int, kept: Tensor) -> None:
    """Where nobody is to be told what is kept."""


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _copied(linear: Linear) -> Linear:
    """A linear [D, F] that is read in a copy with a row for each input."""
    copied = linear.weight.detach().t().clone(memory_format=torch.contiguous_format).t()
    return _Copied(linear.module, linear.rows, linear.expert, linear.name, copied=copied)


def _collect(device: torch.device) -> None:
    """Free what was dropped: executors and their step hold each other."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def attachment_cache(model: nn.Module) -> Iterator[AttachmentCache]:
    """Let attachments of a model use what earlier ones left, until the context ends; one within another is the same.

    Yields
    ------
    Shelf
        What is kept.
    """
    outer = CACHES.get(model)
    if outer is not None:
        yield outer
        return
    made = AttachmentCache(model)
    try:
        CACHES[model] = made
        yield made
    finally:
        CACHES.pop(model, None)
        made.clear()


def cache_of(model: nn.Module) -> AttachmentCache | None:
    """The cache that an attachment of a model may use now; None where there is none, or no room for it."""
    found = CACHES.get(model)
    return found if found is not None and found.is_open() else None
