"""Large pages for weights: rows picked from anywhere then cost no walk through the page tables."""

import ctypes
import functools
import mmap
import sys

import torch
from torch import Tensor, nn

LARGE = 1 << 22
"""Bytes of a tensor from which large pages are asked for."""
MADV_HUGEPAGE = 14


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def advise(fresh: Tensor) -> Tensor:
    """Ask the system to back a tensor that nothing was written to yet with large pages; it may not."""
    library = _libc()
    if library is not None and fresh.device.type == "cpu" and fresh.nbytes >= LARGE:
        page = mmap.PAGESIZE
        begin = -(-fresh.data_ptr() // page) * page
        size = (fresh.data_ptr() + fresh.nbytes - begin) // page * page
        library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), MADV_HUGEPAGE)
    return fresh


@torch.no_grad()
def rehome(model: nn.Module) -> None:
    """Copy a model's large weights, one at a time, to memory on large pages."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.nbytes >= LARGE and parameter.is_contiguous():
            parameter.data = advise(torch.empty_like(parameter.data)).copy_(parameter.data)
