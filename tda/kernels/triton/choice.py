"""From kept sets to lists of indices and their counts, all on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tda.kernels.triton import interpreted
from tda.kernels.triton.rows import Lists


@triton.jit
def _list(kept, index, counts, F, kept_row, BLOCK: tl.constexpr):
    """One program for a row: the place of an index is the number of kept ones before it."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.zeros([], dtype=tl.int32)
    for start in range(0, F, BLOCK):
        j = start + tl.arange(0, BLOCK)
        chosen = tl.load(kept + row * kept_row + j, mask=j < F, other=0).to(tl.int32)
        chosen = (chosen != 0).to(tl.int32)
        place = count + tl.cumsum(chosen, axis=0) - chosen
        tl.store(index + row * F + place, j.to(tl.int32), mask=chosen != 0)
        count += tl.sum(chosen, axis=0)
    tl.store(counts + row, count)


def fill(lists: Lists, kept: Tensor) -> None:
    """List the kept neurons, bool or uint8 [B, F], in ascending order; the host learns no count."""
    kept = (kept if kept.stride(-1) == 1 else kept.contiguous()).view(torch.uint8)
    block = 16 if interpreted() else 4096
    _list[(len(kept),)](kept, lists.index, lists.counts, kept.shape[1], kept.stride(0), BLOCK=block, num_warps=8)
