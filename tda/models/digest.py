"""Which model it is: a hash of its configuration and of every tensor of its state."""

import hashlib
from typing import Any

import torch
from torch import nn

from tda.thresholds import hash_config

PIECE = 1 << 26
"""Bytes that are copied from a device and hashed at once."""


def weights_digest(model: nn.Module) -> str:
    """Hash of a model's configuration, and of names, types, shapes and values of its parameters and buffers.

    The configuration holds what is in no tensor, such as epsilons of norms and the base of rotary positions. What is
    shared is read once.
    """
    config: Any = model.config
    found = hashlib.sha256(hash_config(config.to_diff_dict()).encode())
    seen: dict[object, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {seen.setdefault(place, name)}\n".encode())
        if seen[place] == name and tensor.numel():
            for piece in tensor.detach().contiguous().view(torch.uint8).flatten().split(PIECE):
                found.update(piece.cpu().numpy().data)
    return found.hexdigest()[:16]
