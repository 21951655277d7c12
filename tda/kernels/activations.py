"""The activation functions that kernels know: what a module computes is tried, not guessed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square(),
    "identity": lambda x: x,
}
"""By name, in the order in which the kernels in C number them."""


class UndescribedError(ValueError):
    """A module computes something that the kernels do not know."""


@torch.no_grad()
def activation_name(act: nn.Module) -> str:
    """Name of the function that an activation module computes.

    Raises
    ------
    UndescribedError
        If it is none that the kernels know.
    """
    probe = torch.linspace(-6, 6, 97, dtype=torch.float32, device="cpu")
    got = act(probe)
    for name, function in ACTIVATIONS.items():
        if got.shape == probe.shape and torch.allclose(got.float(), function(probe), atol=1e-5, rtol=1e-5):
            return name
    raise UndescribedError(f"the activation {type(act).__name__} is none of {', '.join(ACTIVATIONS)}")
