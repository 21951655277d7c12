"""The neurons that a method keeps: one shape from the method that chooses to the kernels, counts and records.

Shapes: L layers, B rows, F neurons.
"""

import hashlib
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor


class Selection(tuple[Tensor, ...]):
    """Kept sets, bool [B, F], one for each layer; not to be changed.

    Parameters
    ----------
    layers : iterable of Tensor
        The sets of each layer.
    """

    @cached_property
    def counts(self) -> Tensor:
        """Neurons that each row keeps: int64 [L, B]."""
        return torch.stack([layer.sum(1) for layer in self])

    @cached_property
    def left_out(self) -> Tensor:
        """Share of the neurons that each row leaves out: float64 [L, B]."""
        shares = zip(self.counts.double(), self, strict=True)
        return 1 - torch.stack([count / layer.shape[-1] for count, layer in shares])

    @cached_property
    def rows_alike(self) -> bool:
        """Whether all rows keep the same neurons."""
        return all(bool((layer == layer[:1]).all()) for layer in self)

    def union(self) -> list[float]:
        """Share of each layer's neurons that any row keeps: what a step of all rows together reads."""
        return [float(layer.any(0).double().mean()) for layer in self]

    def digest(self, row: int) -> float:
        """Hash of one row's sets over all layers: an integer of 48 bits, exact in a float."""
        digest = hashlib.blake2b(digest_size=6)
        for layer in self:
            digest.update(layer[row].cpu().numpy().tobytes())
        return float(int.from_bytes(digest.digest(), "little"))

    def take(self, rows: Tensor) -> "Selection":
        """The selection whose row i is row rows[i] of this one: int64 [B]."""
        return Selection(layer[rows] for layer in self)

    @classmethod
    def stacked(cls, kept: Tensor) -> "Selection":
        """A selection from the sets of layers of one size, counted all at once: uint8 [L, B, F]."""
        found = cls(kept.bool())
        found.left_out = 1 - kept.sum(2, dtype=torch.float64) / kept.shape[2]
        return found

    @classmethod
    def together(cls, parts: Iterable["Selection"]) -> "Selection":
        """The rows of several selections, one after the other."""
        return cls(torch.cat(layers) for layers in zip(*parts, strict=True))
