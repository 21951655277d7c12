"""Room for the next token in a Hugging Face key-value cache, so that a decode step need not copy the cache."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SLACK = 64
"""Tokens of room made at once, beside an eighth of what is there."""
GROWING, SLIDING = "DynamicLayer", "DynamicSlidingWindowLayer"


@dataclass
class CacheBuffer:
    """What one layer's cache lies in: [1, H, capacity, W] each, tokens [start, start + count) of it filled."""

    keys: Tensor
    values: Tensor
    start: int
    count: int
    shown: tuple[Tensor, Tensor] | None = None  # what the cache was given to see

    @property
    def full(self) -> bool:
        """Whether there is no room for one more token."""
        return self.start + self.count == self.keys.shape[2]

    def shows(self, keys: Tensor, values: Tensor) -> bool:
        """Whether a layer's keys and values are still those that it was given."""
        return self.shown is not None and keys is self.shown[0] and values is self.shown[1]

    def view(self, of: Tensor) -> Tensor:
        """The filled tokens."""
        return of.narrow(2, self.start, self.count)


class KeyValues:
    """The layers of one cache, held in buffers with room; the cache sees views of what is filled.

    A cache that another hand has changed (cropped, reordered, copied, continued by the model's own code) is taken in
    anew, so what the caller sees in it is always what counts.

    Parameters
    ----------
    layers : int
        Layers of the cache.
    """

    def __init__(self, layers: int) -> None:
        self._held: list[CacheBuffer | None] = [None] * layers

    @staticmethod
    def problem(cache: Any, dtype: torch.dtype, layers: int) -> str | None:
        """Why a cache cannot be held; None if it can."""
        found = getattr(cache, "layers", ())
        if len(found) != layers:
            return f"a cache of {len(found)} layers for a model of {layers}"
        for layer in found:
            if type(layer).__name__ not in (GROWING, SLIDING) or getattr(layer, "record_past", False):
                return f"a key-value cache of {type(layer).__name__}"
            keys = layer.keys
            if not layer.is_initialized or keys.shape[0] != 1 or keys.dtype != dtype or keys.device.type != "cpu":
                return "a key-value cache that does not hold one row of the model's type on the cpu"
        return None

    def reserve(self, cache: Any, descriptions: Any, windows: list[int | None]) -> None:
        """Tell each layer's description where its keys and values are, with room for one more token."""
        for number, (layer, window) in enumerate(zip(cache.layers, windows, strict=True)):
            held = self._held[number]
            if held is None or held.full or not held.shows(layer.keys, layer.values):
                held = self._held[number] = _take(layer.keys, layer.values)
            hidden = 0 if window is None else max(0, held.count + 1 - window)
            width = held.keys.stride(2) * held.keys.element_size()
            description = descriptions[number]
            description.keys = held.keys.data_ptr() + (held.start + hidden) * width
            description.values = held.values.data_ptr() + (held.start + hidden) * width
            description.head_stride = held.keys.stride(1) * held.keys.element_size()
            description.cached = held.count - hidden

    def advance(self, cache: Any) -> None:
        """Let the cache see the token that a step has written."""
        for layer, held in zip(cache.layers, self._held, strict=True):
            assert held is not None
            held.count += 1
            if type(layer).__name__ == SLIDING:
                layer.cumulative_length += 1
                gone = max(0, held.count - (layer.sliding_window - 1))
                held.start, held.count = held.start + gone, held.count - gone
            layer.keys, layer.values = held.shown = (held.view(held.keys), held.view(held.values))


def _take(keys: Tensor, values: Tensor) -> CacheBuffer:
    """Copy a layer's keys and values [1, H, T, W] into buffers with room."""
    _, heads, tokens, width = keys.shape
    capacity = tokens + SLACK + tokens // 8
    with torch.inference_mode(False):
        both = [torch.empty(1, heads, capacity, width, dtype=keys.dtype) for _ in range(2)]
    held = CacheBuffer(both[0], both[1], 0, tokens)
    held.view(held.keys).copy_(keys)
    held.view(held.values).copy_(values)
    return held
