"""Buffers between guards: whatever writes outside them is found out."""

from typing import Any

import torch
from torch import Tensor

GUARD = 256
"""Bytes on either side; a multiple of every vector, so that what is between is aligned."""
MARK = 0xA5


class Guards:
    """Buffers of a test; each lies alone between two marked regions."""

    def __init__(self) -> None:
        self._all: list[Tensor] = []

    def empty(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer of exactly this shape, filled with marks."""
        size = torch.Size(shape).numel() * dtype.itemsize
        whole = torch.full((size + 2 * GUARD,), MARK, dtype=torch.uint8)
        self._all.append(whole)
        return whole[GUARD : GUARD + size].view(dtype).view(shape)

    def copy(self, of: Tensor) -> Tensor:
        """A buffer that holds the values of a tensor."""
        return self.empty(of.shape, of.dtype).copy_(of)

    def check(self) -> None:
        """Fail if anything was written outside the buffers."""
        for whole in self._all:
            assert bool((whole[:GUARD] == MARK).all()), "written before a buffer"
            assert bool((whole[-GUARD:] == MARK).all()), "written behind a buffer"
