"""The backends: kernels of each kind of device under one interface."""

from torch import nn

from tda.engine.backends.base import Backend
from tda.engine.backends.native import NativeBackend
from tda.engine.backends.triton import TritonBackend
from tda.view import FFN

BACKENDS: dict[str, type[Backend]] = {"cpu": NativeBackend, "cuda": TritonBackend}
"""Backend of each kind of device; on others the kernels in C say why they cannot run."""


def backend_of(model: nn.Module, ffns: list[FFN]) -> Backend:
    """The backend of the device that a model lies on."""
    return BACKENDS.get(ffns[0].device.type, NativeBackend)(model, ffns)
