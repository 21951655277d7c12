"""The block of each kernel and shape: as `tda tune` measured it on this card and kept it, else the default.

Triton's own autotuner is not used: it would time whatever list the first prompt gave, in the middle of a request, and
keeps no figures of what lost. What times a launch with the L2 cache flushed is Triton's.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from tda.kernels.native.build import kernels_folder
from tda.kernels.triton.launch import Kernel, Tile

DEFAULTS_TAKEN: dict[str, None] = {}
"""Keys of shapes that ran with a default block in this process, in the order in which they came."""
FORMAT = 1


def key_of(kernel: Kernel, form: str, dtype: torch.dtype, shape: Iterable[int]) -> str:
    """Name of a kernel, form, type and shape."""
    sizes = " x ".join(map(str, shape))
    return f"{kernel.name.strip('_')} {form} {str(dtype).removeprefix('torch.')} {sizes}"


def chosen(kernel: Kernel, form: str, dtype: torch.dtype, shape: Iterable[int]) -> Tile:
    """The block for a shape: the one kept on this card, else the form's default, which is noted."""
    default = kernel.forms[form].blocks[0]
    if not torch.cuda.is_available():
        return default
    key = key_of(kernel, form, dtype, shape)
    kept = kept_blocks(torch.cuda.current_device()).get(key)
    if kept in candidates(kernel):
        return kept
    DEFAULTS_TAKEN[key] = None
    return default


def candidates(kernel: Kernel) -> tuple[Tile, ...]:
    """Blocks of all forms of a kernel, each once."""
    return tuple(dict.fromkeys(block for form in kernel.forms.values() for block in form.blocks))


@cache
def kept_blocks(device: int) -> dict[str, Tile]:
    """The blocks that were measured on a card, by key."""
    return {key: Tile(*found["block"]) for key, found in read(path_of(device)).items()}


def path_of(device: int | None = None) -> Path:
    """Where the blocks of a card are kept, with what was measured."""
    name = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device))
    return kernels_folder() / f"triton-{name}-{triton.__version__}.json"


def read(path: Path) -> dict[str, Any]:
    """What a file keeps: by key the chosen block and the evidence; nothing where it is missing or not of this form."""
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            return {}
        return {key: one for key, one in found["shapes"].items() if _is_entry(one)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _is_entry(found: Any) -> bool:
    """Whether something that was read tells a block."""
    try:
        return bool(Tile(*map(int, found["block"])))
    except (ValueError, TypeError, KeyError, ArithmeticError):
        return False


def keep(path: Path, tuned: dict[str, Any]) -> None:
    """Write what was measured, beside what the file holds of other shapes.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    together = {"format": FORMAT, "shapes": read(path) | tuned}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        json.dump(together, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
    kept_blocks.cache_clear()
