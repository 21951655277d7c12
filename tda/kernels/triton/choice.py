"""From kept sets to lists of indices and their counts, all on the device."""

import torch
import triton.language as tl
from torch import Tensor

from tda.kernels.triton.launch import Form, Kernel, Tile
from tda.kernels.triton.rows import Lists
from tda.spans import cost, counted


def _list(kept, index, counts, F: tl.int32, kept_row: tl.int64, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program for a row: the place of an index is the number of kept ones before it."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.zeros([], dtype=tl.int32)
    for start in range(0, F, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        chosen = tl.load(kept + row * kept_row + j, mask=j < F, other=0).to(tl.int32)
        chosen = (chosen != 0).to(tl.int32)
        place = count + tl.cumsum(chosen, axis=0) - chosen
        tl.store(index + row * F + place, j.to(tl.int32), mask=chosen != 0)
        count += tl.sum(chosen, axis=0)
    tl.store(counts + row, count)


BLOCK = Tile(1, 4096, 8)
LIST = Kernel(
    _list,
    {"kept": "uint8", "index": "int32", "counts": "int32", "F": "sixteen", "kept_row": "sixteen"},
    {"set": Form({}, (), True, (BLOCK,))},
    Tile(1, 16),
    dtypes=(torch.uint8,),
)


def fill(lists: Lists, kept: Tensor) -> None:
    """List the kept neurons, bool or uint8 [B, F], in ascending order; the host learns no count."""
    kept = (kept if kept.stride(-1) == 1 else kept.contiguous()).view(torch.uint8)
    given = {
        "kept": kept, "index": lists.index, "counts": lists.counts, "F": kept.shape[1], "kept_row": kept.stride(0)
    }  # fmt: skip
    LIST.launch(LIST.entry("set", torch.uint8, given, BLOCK), (len(kept),), given)
    if counted():
        cost(LIST.name, kept.nbytes + lists.index.element_size() * lists.total(len(kept)) + lists.counts.nbytes, 0)
