"""Memory for weights, on large pages: rows picked from anywhere then cost no walk through page tables."""

import ctypes
import mmap

import torch
from torch import Tensor, nn

LARGE = 1 << 22
"""Bytes of a tensor from which it gets memory of its own."""


def empty_on_huge_pages(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor; a large one on the CPU lies on large pages, where the system has them.

    Such a tensor has a mapping of its own, which the system gets back when the tensor goes: what the allocator of the C
    library frees, it may keep.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@torch.no_grad()
def move_to_huge_pages(model: nn.Module) -> None:
    """Copy a model's large weights, one at a time, to memory of their own."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.nbytes >= LARGE and parameter.is_contiguous():
            parameter.data = empty_on_huge_pages(parameter.shape, parameter.dtype, parameter.device).copy_(
                parameter.data
            )
    trim_malloc()


def trim_malloc() -> None:
    """Return what the C library's allocator has kept of freed memory; nothing where it cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
