"""A streaming histogram on a fixed grid that fits every scale: 64 bins per octave."""

import torch
from torch import Tensor

MANTISSA_BITS = 6
_SHIFT = 23 - MANTISSA_BITS
_LOWEST = (127 - 60) << MANTISSA_BITS
"""Grid number of 2⁻⁶⁰; what is smaller counts as zero."""
_HIGHEST = (127 + 30) << MANTISSA_BITS
BINS = _HIGHEST - _LOWEST + 2
"""Bin 0 holds zeros; the last one everything from 2³⁰ on."""


def _edge(number: Tensor) -> Tensor:
    """Lower edge of bins 1, 2, …: float64."""
    return ((number - 1 + _LOWEST) << _SHIFT).to(torch.int32).view(torch.float32).double()


class Histogram:
    """Counts of non-negative values; quantiles are interpolated within a bin (1.6% wide at most)."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count non-negative values of any shape."""
        bits = values.detach().float().contiguous().view(torch.int32).flatten() >> _SHIFT
        place = (bits.long() - (_LOWEST - 1)).clamp_(0, BINS - 1)
        self.counts += torch.bincount(place, minlength=BINS).cpu()

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """Cut that a share of the values lies below: 0 for a share of 0.

        Zeros cannot be cut apart: where the share falls among them, the cut lies just above zero.
        """
        if share <= 0:
            return 0.0
        below = self.counts.cumsum(0)
        target = share * self.total
        place = int(torch.searchsorted(below.double(), target))
        if place == 0:
            return float(_edge(torch.tensor(1)))
        place = min(place, BINS - 2)
        low, high = _edge(torch.tensor([place, place + 1])).tolist()
        inside = (target - int(below[place - 1])) / max(int(self.counts[place]), 1)
        return float(low + min(inside, 1.0) * (high - low))

    def share_below(self, cut: float) -> float:
        """Share of the values below a cut (interpolated within its bin)."""
        if cut <= 0 or not self.total:
            return 0.0
        edges = _edge(torch.arange(1, BINS + 1))
        place = int(torch.searchsorted(edges, cut, right=True))
        below = int(self.counts[:place].sum())
        if place == 0 or place >= BINS:
            return below / self.total
        low, high = float(edges[place - 1]), float(edges[place])
        return (below + int(self.counts[place]) * (cut - low) / (high - low)) / self.total
