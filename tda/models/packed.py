"""Weights in groups of 4 or 8 bits, for a file of a quarter of the size; what is unpacked is the model itself.

A group is 32 neighbours in a row, with one scale in float16: weight = scale · level. Levels of 4 bits run from -8 to 7,
and the scale is such that the weight of the largest magnitude is level -8; levels of 8 bits run from -127 to 127.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Bits = Literal[4, 8]
GROUP = 32
LEVELS, SCALES = ".levels", ".scales"
"""Ends of the names under which the two parts of a tensor are kept; what has neither end is kept as it is."""


def pack(weights: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Levels and scales of a matrix whose rows hold whole groups.

    Returns
    -------
    levels : Tensor
        8 bits: int8 [rows, columns]. 4 bits: uint8 [rows, columns / 2], the first of two in the lower half.
    scales : Tensor
        float16 [rows, columns / 32]
    """
    groups = weights.detach().float().unflatten(-1, (-1, GROUP))
    if bits == 8:
        scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
        return _levels(groups, scales, -127, 127).flatten(-2).to(torch.int8), scales.squeeze(-1)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (extreme / -8).half()
    nibbles = (_levels(groups, scales, -8, 7) + 8).flatten(-2).to(torch.uint8)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4, scales.squeeze(-1)


def _levels(groups: Tensor, scales: Tensor, lowest: int, highest: int) -> Tensor:
    exact = scales.float()
    return (groups / exact.where(exact != 0, 1)).round().clamp(lowest, highest)


def unpack(levels: Tensor, scales: Tensor) -> Tensor:
    """Weights: float32 [rows, columns]; each is exactly scale · level."""
    if levels.dtype == torch.uint8:
        levels = torch.stack((levels & 15, levels >> 4), -1).flatten(-2).to(torch.int8) - 8
    groups = levels.float().unflatten(-1, (-1, GROUP))
    weights: Tensor = (groups * scales.float().unsqueeze(-1)).flatten(-2)
    return weights


def pack_state(state: Mapping[str, Tensor], bits: Callable[[str], Bits]) -> dict[str, Tensor]:
    """Tensors to be kept: matrices in so many bits as are asked for their names, vectors in bfloat16."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() == 2:
            kept[name + LEVELS], kept[name + SCALES] = pack(tensor, bits(name))
        else:
            kept[name] = tensor.detach().to(torch.bfloat16)
    return kept


def unpack_state(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name; those that were not packed stay as they are."""
    state = {}
    for name, tensor in kept.items():
        if name.endswith(LEVELS):
            base = name.removesuffix(LEVELS)
            state[base] = unpack(tensor, kept[base + SCALES])
        elif not name.endswith(SCALES):
            state[name] = tensor
    return state
