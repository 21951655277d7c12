"""Kernels in Triton for decode on CUDA: feed-forward networks that read only what is kept; lists lie on the device.

Where there is no GPU, Triton's interpreter tests what they compute, and its compiler that they compile for several
architectures. They have run on one H100. Triton itself is loaded only where these kernels run.
"""

import importlib.util
import os
from collections.abc import Sequence

import torch

from tda.kernels.activations import UndescribedError, activation_name
from tda.view import FFN, Linear

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def interpreted() -> bool:
    """Whether Triton was told to interpret its kernels: slow, on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def problem(ffns: Sequence[FFN]) -> str | None:
    """Why the kernels cannot run a model's feed-forward networks here; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    try:
        for ffn in ffns:
            for linear in ffn.linears:
                check_linear(linear)
            activation_name(ffn.act)
    except UndescribedError as error:
        return str(error)
    return None


def check_linear(linear: Linear) -> None:
    """Raise UndescribedError if a linear's weights are of a type or place that the kernels do not take."""
    weight = linear.weight
    if weight.dtype not in DTYPES or not (weight.is_cuda or interpreted()):
        got = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        raise UndescribedError(f"weights are {got}; the kernels in Triton take bfloat16, float16 and float32 on cuda")
