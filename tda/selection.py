"""What a method keeps: one shape from the method that chooses to the kernels, counts and records.

Shapes: L places (a feed-forward network of each layer, or each linear), B rows, F neurons or inputs of a place.
"""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tda.quantizers import Quantizer
from tda.view import Site


class Selection(tuple[Tensor, ...]):
    """Kept sets, bool [B, F], one for each place; not to be changed.

    Parameters
    ----------
    layers : iterable of Tensor
        The sets of each place.

    Attributes
    ----------
    sites : tuple of tuple of Site
        For each place the axes of linears that its set lies on: what is left out there is not read.
    whole : tuple of tuple of Site
        For each place the axes of linears that are read whole.
    quantizer : Quantizer or None
        What the weights are stored as.
    """

    sites: tuple[tuple[Site, ...], ...] = ()
    whole: tuple[tuple[Site, ...], ...] = ()
    quantizer: Quantizer | None = None

    def __repr__(self) -> str:
        if not self:
            return "Selection of no place"
        kept = ", ".join(f"{share:.3f}" for share in (1 - self.left_out.mean(1)).tolist())
        return f"Selection of {len(self)} places and {len(self[0])} rows, mean share kept of each place: {kept}"

    def like(self, other: "Selection") -> "Selection":
        """The selection, on the linears that another one is on."""
        self.sites, self.whole, self.quantizer = other.sites, other.whole, other.quantizer
        return self

    @cached_property
    def counts(self) -> Tensor:
        """Neurons that each row keeps: int64 [L, B]."""
        return torch.stack([layer.sum(1) for layer in self])

    @cached_property
    def left_out(self) -> Tensor:
        """Share of the neurons that each row leaves out: float64 [L, B]."""
        shares = zip(self.counts.double(), self, strict=True)
        return 1 - torch.stack([count / layer.shape[-1] for count, layer in shares])

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, and what is written to disk, are the sets alone: sites lead to the model."""
        return Selection, (tuple(self),)

    @cached_property
    def nbytes(self) -> Tensor:
        """Bytes of weights that a decode step of each row alone reads of each place: float64 [L, B].

        Of an expert what is read where a token reaches it. Known of `run.selection()`, not of copies.
        """
        if not self.sites:
            raise ValueError("nobody has told on which linears these sets lie; `run.selection()` does")
        read = [
            [sum(site.nbytes(share, self.quantizer) for site in sites) for share in shares]
            for sites, shares in zip(self.sites, (1 - self.left_out).tolist(), strict=True)
        ]
        others = [[sum(site.nbytes(1.0, self.quantizer) for site in sites)] for sites in self.whole]
        return torch.tensor(read, dtype=torch.float64) + torch.tensor(others, dtype=torch.float64)

    @cached_property
    def rows_alike(self) -> bool:
        """Whether all rows keep the same neurons."""
        return all(bool((layer == layer[:1]).all()) for layer in self)

    def union(self) -> list[float]:
        """Share of each layer's neurons that any row keeps: what a step of all rows together reads."""
        return [float(layer.any(0).double().mean()) for layer in self]

    def digest(self, row: int, place: int | None = None) -> float:
        """Hash of one row's sets over all places, or of a place's: an integer of 48 bits, exact in a float."""
        digest = hashlib.blake2b(digest_size=6)
        for kept in self if place is None else (self[place],):
            digest.update(kept[row].cpu().numpy().tobytes())
        return float(int.from_bytes(digest.digest(), "little"))

    def take(self, rows: Tensor) -> "Selection":
        """The selection whose row i is row rows[i] of this one: int64 [B]."""
        return Selection(kept[rows] for kept in self).like(self)

    @classmethod
    def stacked(cls, kept: Tensor) -> "Selection":
        """A selection from the sets of layers of one size, counted all at once: uint8 [L, B, F]."""
        found = cls(kept.bool())
        found.left_out = 1 - kept.sum(2, dtype=torch.float64) / kept.shape[2]
        return found

    @classmethod
    def together(cls, parts: Iterable["Selection"]) -> "Selection":
        """The rows of several selections, one after the other."""
        several = list(parts)
        return cls(torch.cat(places) for places in zip(*several, strict=True)).like(several[0])
