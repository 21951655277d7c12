"""Linears of a single token by the matrix-vector kernel: what runs a step's projections where no whole step can."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tda.kernels.native import describe, ops
from tda.kernels.native import library as c
from tda.kernels.native.ffn import weights_cost
from tda.kernels.weights import AS_BUILT, Weights
from tda.view import Linear


class NativeLinear:
    """Forward of a linear; what is no single token of its weights' type takes the dense one.

    Over several tokens a product reads its weights once for all of them, and torch's is as fast as can be.

    Parameters
    ----------
    linear : nn.Linear
        Its weights are read where they lie.
    dense : callable
        Its own forward.
    weights : Weights
        Where the weights are.

    Raises
    ------
    UndescribedError
        If the kernels do not take its weights.
    """

    def __init__(
        self,
        linear: nn.Linear,
        dense: Callable[[Tensor], Tensor],
        weights: Weights = AS_BUILT,
    ) -> None:
        self._matrix = describe.matrix(Linear(linear), weights)
        self._dtype = linear.weight.dtype
        self._dense = dense
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")
        self._handle = ops.register(self)

    def __call__(self, x: Tensor) -> Tensor:
        """Output of tokens [..., K]: [..., N]."""
        if x.numel() != x.shape[-1] or x.dtype != self._dtype or x.requires_grad:
            return self._dense(x)
        if not ops.needs_operators():
            return self.compute(x)
        output: Tensor = torch.ops.tda.linear(x, self._handle, self._matrix.rows)
        return output

    def compute(self, x: Tensor) -> Tensor:
        """Output of one token [..., K]: [..., N]."""
        library, threads = c.library(), torch.get_num_threads()
        x = x if x.stride(-1) == 1 else x.contiguous()
        y = torch.empty(*x.shape[:-1], self._matrix.rows, dtype=x.dtype)
        matrix = ctypes.byref(self._matrix)
        self._scratch = c.ensure_scratch(self._scratch, library.tda_linear_floats(matrix, threads))
        scratch, kind = self._scratch.data_ptr(), c.KINDS[x.dtype]
        library.tda_linear(matrix, 1, x.data_ptr(), 0, y.data_ptr(), scratch, kind, threads)
        return y

    def cost(self) -> ops.Cost:
        """Bytes and FLOPs of a call."""
        return weights_cost([self._matrix])
