"""Describe a model's modules to the C kernels: what a norm or an activation function computes is tried, not guessed."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tda.kernels.activations import ACTIVATIONS, UndescribedError, activation_name
from tda.kernels.native import library as c
from tda.kernels.weights import AS_BUILT, Weights
from tda.view import FFN, Linear


def activation(act: nn.Module) -> int:
    """Number of the function that an activation module computes.

    Raises
    ------
    UndescribedError
        If it is none that the kernels know.
    """
    return list(ACTIVATIONS).index(activation_name(act))


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
    if bias is not None:
        known = {name: expected + bias.double() for name, expected in known.items()}
    # The nearest: with large weights, a weight and one more than it are both within rounding.
    nearest = min(known, key=lambda name: float((got - known[name]).abs().max()))
    if not torch.allclose(got, known[nearest], rtol=2e-2, atol=1e-4):
        raise UndescribedError(f"{type(module).__name__} computes none of {', '.join(known)}")
    return c.Norm(c.data_pointer(weight), c.data_pointer(bias), eps, c.NORMS.index(nearest))


def matrix(linear: Linear | None, weights: Weights = AS_BUILT) -> c.Matrix:
    """Description of a linear in the layout of torch; None is none.

    Raises
    ------
    UndescribedError
        If its weights are of a type or layout that the kernels do not take.
    """
    if linear is None:
        return c.Matrix()
    check_linear(linear)
    return c.Matrix.of(*weights.of(linear))


def check_linear(linear: Linear, *, transposed: bool = False) -> None:
    """Raise UndescribedError if a linear's weights are of a type, place or layout that the kernels do not take.

    Rows must be contiguous, or columns where `transposed` allows it.
    """
    reason = linear.problem if linear.expert is None else "is one of many experts'"
    if reason is not None:
        raise UndescribedError(f"a linear {reason}")
    weight, bias = linear.weight, linear.bias
    if weight.device.type != "cpu" or weight.dtype not in c.KINDS:
        got = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        raise UndescribedError(f"weights are {got}; the kernels in C take bfloat16 and float32 on cpu")
    if bias is not None and (bias.dtype != weight.dtype or not bias.is_contiguous()):
        raise UndescribedError("a bias must be contiguous, and of its weight's type")
    if weight.stride(1) != 1 and not (transposed and weight.stride(0) == 1):
        raise UndescribedError(f"rows of a weight are not contiguous: strides {weight.stride()}")


def check_ffn(ffn: FFN) -> None:
    """Raise UndescribedError if the kernels cannot run a feed-forward network."""
    for linear in ffn.linears:
        check_linear(linear, transposed=linear is ffn.down or linear.transposed)  # which are laid in rows
    check_types(ffn.linears, ffn.up.weight.dtype)
    activation(ffn.act)


def check_types(parts: Iterable[Any], dtype: torch.dtype) -> None:
    """Raise UndescribedError if a linear's or norm's parameters are of another type than the kernels are told."""
    for part in parts:
        parameters = () if part is None else part.parameters(recurse=False)
        found = next((parameter.dtype for parameter in parameters if parameter.dtype != dtype), None)
        if found is not None:
            raise UndescribedError(f"parameters of {found} beside others of {dtype}")


def feed_forward(ffn: FFN, weights: Weights = AS_BUILT) -> c.FFNStruct:
    """Description of a feed-forward network with all its neurons.

    The down projection may lie as torch has it, or transposed (a row for each neuron).

    Raises
    ------
    UndescribedError
        If the kernels cannot run it.
    """
    check_ffn(ffn)
    down = weights.of(ffn.down)
    transposed = down.values.stride(1) != 1
    rows = down.values.t() if transposed else down.values
    return c.FFNStruct(
        gate=matrix(ffn.gate, weights),
        up=matrix(ffn.up, weights),
        down=c.Matrix.of(rows, down.bias, down.scale),
        act=activation(ffn.act),
        down_rows=int(transposed),
    )
