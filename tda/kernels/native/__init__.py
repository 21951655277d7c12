"""Kernels in C for decode on a CPU: whole steps, and feed-forward networks that read only what is kept."""

from collections.abc import Sequence

from tda.kernels.activations import UndescribedError
from tda.kernels.native import library
from tda.kernels.native.describe import check_ffn
from tda.view import FFN


def problem(ffns: Sequence[FFN]) -> str | None:
    """Why the kernels cannot run a model's feed-forward networks here; None if they can.

    The kernels are built on the first call.
    """
    try:
        for ffn in ffns:
            check_ffn(ffn)
    except UndescribedError as error:
        return str(error)
    return library.problem()
