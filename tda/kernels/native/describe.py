"""Describe a model's modules to the C kernels: what a norm or an activation function computes is tried, not guessed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tda.contracts import FFN
from tda.kernels.native import library as c

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square(),
    "identity": lambda x: x,
}


class UndescribedError(ValueError):
    """A module computes something that the kernels do not know."""


def activation(act: nn.Module) -> int:
    """Number of the function that an activation module computes.

    Raises
    ------
    UndescribedError
        If it is none that the kernels know.
    """
    return c.ACTIVATIONS.index(activation_name(act))


@torch.no_grad()
def activation_name(act: nn.Module) -> str:
    """Name of the function that an activation module computes.

    Raises
    ------
    UndescribedError
        If it is none that the kernels know.
    """
    probe = torch.linspace(-6, 6, 97)
    got = act(probe)
    for name in c.ACTIVATIONS:
        if got.shape == probe.shape and torch.allclose(got.float(), _ACTIVATIONS[name](probe), atol=1e-5, rtol=1e-5):
            return name
    raise UndescribedError(f"the activation {type(act).__name__} is none of {', '.join(c.ACTIVATIONS)}")


@torch.no_grad()
def norm(module: Any) -> c.Norm:
    """Description of a norm; None is no norm.

    Raises
    ------
    UndescribedError
        If it computes no norm that the kernels know.
    """
    if module is None:
        return c.Norm()
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is None or (weight is None and not isinstance(module, nn.LayerNorm)):
        raise UndescribedError(f"{type(module).__name__} has no eps, or no weight")
    size = len(weight) if weight is not None else int(module.normalized_shape[0])
    x = torch.linspace(-2, 3, size, dtype=torch.float32 if weight is None else weight.dtype)
    got, wide = module(x.view(1, 1, -1)).view(-1).double(), x.double()
    scaled = wide / (wide.square().mean() + eps).sqrt()
    centred = wide - wide.mean()
    factor = 1 if weight is None else weight.double()
    known = {
        "rms": scaled * factor,
        "rms_plus_one": scaled * (1 + factor),
        "layer": centred / (centred.square().mean() + eps).sqrt() * factor,
    }
    for name, expected in known.items():
        expected = expected if bias is None else expected + bias.double()
        if torch.allclose(got, expected, rtol=2e-2, atol=1e-4):
            return c.Norm(_address(weight), _address(bias), eps, c.NORMS.index(name))
    raise UndescribedError(f"{type(module).__name__} computes none of {', '.join(known)}")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def matrix(linear: nn.Linear | None) -> c.Matrix:
    """Description of a linear in the layout of torch; None is none.

    Raises
    ------
    UndescribedError
        If its weights are of a type or layout that the kernels do not take.
    """
    if linear is None:
        return c.Matrix()
    check_linear(linear)
    return c.Matrix.of(linear.weight.detach(), linear.bias)


def check_linear(linear: nn.Linear) -> None:
    """Raise UndescribedError if a linear's weights are of a type, place or layout that the kernels do not take."""
    weight, bias = linear.weight, linear.bias
    if weight.device.type != "cpu" or weight.dtype not in c.KINDS:
        got = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        raise UndescribedError(f"weights are {got}; the kernels in C take bfloat16 and float32 on cpu")
    if bias is not None and (bias.dtype != weight.dtype or not bias.is_contiguous()):
        raise UndescribedError("a bias must be contiguous, and of its weight's type")
    if 1 not in weight.stride():
        raise UndescribedError(f"neither rows nor columns of a weight are contiguous: strides {weight.stride()}")


def feed_forward(ffn: FFN) -> c.FFN:
    """Description of a feed-forward network with all its neurons.

    The down projection may lie as torch has it, or transposed (a row for each neuron).

    Raises
    ------
    UndescribedError
        If the kernels cannot run it.
    """
    for linear in ffn.linears:
        check_linear(linear)
    down = ffn.down.weight.detach()
    transposed = down.stride(1) != 1
    return c.FFN(
        gate=matrix(ffn.gate),
        up=matrix(ffn.up),
        down=c.Matrix.of(down.t() if transposed else down, ffn.down.bias),
        act=activation(ffn.act),
        down_rows=int(transposed),
    )
