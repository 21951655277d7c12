"""Whether a model's weights fit into the memory that there is."""

import contextlib

import psutil
import torch

from tda.cores import GROUPS, OWN_GROUPS, control_groups

FILES = {
    "memory.max": ("memory.current", "inactive_file"),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_inactive_file"),
}
"""A control group's limit, in version 2 and 1: its usage, and the part of it that is given up on demand."""


def check_memory(parameters: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError if so many parameters of a type need more memory than a device has available."""
    needed, available = parameters * dtype.itemsize, available_bytes(device)
    if needed <= available:
        return
    half = f"; in bfloat16 they need {_gib(needed / 2)}" if dtype == torch.float32 else ""
    raise ValueError(
        f"its {parameters:,} parameters need {_gib(needed)} in {str(dtype).removeprefix('torch.')}, and "
        f"{_gib(available)} of memory are available on {device}{half}"
    )


def available_bytes(device: torch.device) -> int:
    """Bytes that can be had on a device now without swapping; a control group's limit counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([psutil.virtual_memory().available, *_left_by_groups()])


def _left_by_groups() -> list[int]:
    """What each limit of a control group leaves; none where there is no limit that can be read."""
    left = []
    with contextlib.suppress(OSError):
        for group in control_groups(GROUPS, OWN_GROUPS, "memory"):
            for limit, (usage, reclaimable) in FILES.items():
                with contextlib.suppress(OSError, ValueError, KeyError):  # it is not there, or "max"
                    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    used = int((group / usage).read_text()) - int(stat[reclaimable])
                    left.append(max(0, int((group / limit).read_text()) - used))
    return left


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
