"""Feed-forward networks by the C kernels: of what is kept, weights are read where they lie, or copies of them."""

import ctypes
import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from tda.contracts import Observer, ThresholdMethod
from tda.kernels.compact import CompactFFN
from tda.kernels.native import describe, ops
from tda.kernels.native import library as c
from tda.kernels.weights import AS_BUILT, Weights
from tda.spans import span
from tda.view import FFN


class NativeFFN(ABC):
    """One layer's FFN in decode, described to the kernels.

    Parameters
    ----------
    ffn : FFN
        The layer's FFN; a method that leaves neurons out needs its down projection in rows (`lay_rows`).
    weights : Weights
        Where its weights are.

    Attributes
    ----------
    description : ctypes FFN
        What the kernels run for a single row.
    """

    def __init__(self, ffn: FFN, weights: Weights = AS_BUILT) -> None:
        self.ffn = ffn
        self.description = describe.feed_forward(ffn, weights)
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")
        self._handle = ops.register(self)

    def __call__(self, x: Tensor) -> Tensor:
        """FFN output of decode tokens: [..., D] -> [..., D]; x holds each batch row's tokens in turn."""
        if not ops.needs_operators():
            return self.compute(x)
        with span("gate_up_down"):
            output: Tensor = torch.ops.tda.ffn(x, self._handle)
        return output

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """FFN output: [..., D] -> [..., D]."""

    @abstractmethod
    def cost(self, x: Tensor) -> ops.Cost:
        """Bytes and FLOPs of the last call, on x."""

    def run(self, x: Tensor, descriptions: Sequence[c.FFNStruct]) -> Tensor:
        """FFN outputs of rows x [N, D], each by its own description: [N, D]."""
        library, threads = c.library(), torch.get_num_threads()
        x = x.to(self.ffn.up.weight.dtype)  # autocast may give another type
        x = x if x.stride(-1) == 1 else x.contiguous()
        y = torch.empty(x.shape, dtype=x.dtype)
        self._scratch = c.ensure_scratch(self._scratch, library.tda_ffn_floats(ctypes.byref(self.description), threads))
        library.tda_ffn(
            (c.FFNStruct * len(descriptions))(*descriptions),
            len(x),
            x.data_ptr(),
            x.stride(0) * x.element_size(),
            y.data_ptr(),
            self._scratch.data_ptr(),
            c.KINDS[x.dtype],
            threads,
        )
        return y


class ListedFFN(NativeFFN):
    """An FFN over the neurons that each batch row keeps."""

    def __init__(self, ffn: FFN, weights: Weights = AS_BUILT) -> None:
        super().__init__(ffn, weights)
        self._descriptions = [self.description]
        self._lists = torch.empty(0, 0, dtype=torch.int32)  # [B, F]

    @torch.no_grad()
    def load(self, kept: Tensor) -> None:
        """List the kept neurons: bool [B, F]."""
        if self._lists.shape != kept.shape:
            with torch.inference_mode(False):
                self._lists = torch.empty(kept.shape, dtype=torch.int32)
            self._descriptions = [self.description, *(c.FFNStruct.from_buffer_copy(self.description) for _ in kept[1:])]
        masks = kept.contiguous()
        for description, mask, places in zip(self._descriptions, masks, self._lists, strict=True):
            description.count = c.library().tda_list(mask.data_ptr(), self.ffn.F, places.data_ptr())
            description.index = places.data_ptr()

    def compute(self, x: Tensor) -> Tensor:
        """FFN output over the kept neurons."""
        rows = x.reshape(-1, x.shape[-1])  # [N, D]
        each = len(rows) // len(self._descriptions)
        return self.run(rows, [row for row in self._descriptions for _ in range(each)]).view_as(x)

    def cost(self, x: Tensor) -> ops.Cost:
        """Each token reads what its row keeps."""
        each = x.numel() // x.shape[-1] // len(self._descriptions)
        costs = [ffn_cost(description) for description in self._descriptions]
        return ops.Cost(each * sum(cost.bytes for cost in costs), each * sum(cost.flops for cost in costs))


class GatheredFFN(NativeFFN):
    """An FFN over copies of the kept neurons' weights: dense arithmetic for a single row, several rows on torch."""

    def __init__(self, ffn: FFN, weights: Weights = AS_BUILT) -> None:
        super().__init__(ffn, weights)
        self._down = weights.of(ffn.down)
        self._copies = CompactFFN(ffn, functools.partial(_gather, self.description), weights)

    def load(self, kept: Tensor) -> None:
        """Gather the weights of the kept neurons: bool [B, F]."""
        copies = self._copies
        copies.load(kept)
        R, D, K = copies.columns.shape
        if R > 1:
            return
        P = len(self.ffn.inputs)
        biases, scales = (
            [None] * P if vectors is None else vectors.view(P, K) for vectors in (copies.bias, copies.scale)
        )
        inputs = list(map(c.Matrix.of, copies.rows.view(P, K, D), biases, scales))
        down = c.Matrix.of(copies.columns[0], self._down.bias, self._down.scale)
        gate = inputs[0] if self.ffn.gate is not None else c.Matrix()
        self.description = c.FFNStruct(gate=gate, up=inputs[-1], down=down, act=self.description.act)

    def __call__(self, x: Tensor) -> Tensor:
        """FFN output over the loaded neurons: [..., D] -> [..., D]."""
        return super().__call__(x) if x.numel() == self.ffn.D else self._copies(x)

    def compute(self, x: Tensor) -> Tensor:
        """FFN output of a single row's token."""
        return self.run(x.view(1, -1), [self.description]).view_as(x)

    def cost(self, x: Tensor) -> ops.Cost:
        """A token reads every copy."""
        return ffn_cost(self.description)


def _gather(whole: c.FFNStruct, ffn: FFN, index: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Copy neurons of a network that has all of them; see `tda.kernels.compact.Gather`."""
    gate, *_ = inputs = [c.Matrix.of(copy) for copy in rows]
    listed = index.int()
    source = c.FFNStruct.from_buffer_copy(whole)
    source.index, source.count = listed.data_ptr(), len(listed)
    copies = c.FFNStruct(gate=gate if whole.gate.data else c.Matrix(), up=inputs[-1], down=c.Matrix.of(columns))
    c.library().tda_gather(ctypes.byref(source), ctypes.byref(copies), torch.get_num_threads())


class ThresholdFFN(NativeFFN):
    """An FFN whose neurons are kept token by token, where they reach the layer's cut.

    Parameters
    ----------
    ffn : FFN
        The layer's FFN.
    method : ThresholdMethod
        Says weights and cut.
    observe : callable
        Told the layer's number and the kept sets [N, F] of each call.
    kept : Tensor
        Where a whole step leaves which neurons it kept: uint8 [F].
    weights : Weights
        Where its weights are.
    """

    def __init__(
        self, ffn: FFN, method: ThresholdMethod, observe: Observer, kept: Tensor, weights: Weights = AS_BUILT
    ) -> None:
        super().__init__(ffn, weights)
        self._observe = observe
        self._factors = method.factors(ffn)
        self.description.norms = c.data_pointer(self._factors)
        self.description.cut = method.cut(ffn)
        self.description.rule = c.RULES.index("gate" if method.activation == "gate" else "contribution")
        self.description.kept = kept.data_ptr()
        self._costs: list[ops.Cost] = []

    def compute(self, x: Tensor) -> Tensor:
        """FFN output with each token's own set."""
        rows = x.reshape(-1, x.shape[-1])  # [N, D]
        kept = torch.empty(len(rows), self.ffn.F, dtype=torch.uint8)
        descriptions = []
        for places in kept:
            descriptions.append(c.FFNStruct.from_buffer_copy(self.description))
            descriptions[-1].kept = places.data_ptr()
        y = self.run(rows, descriptions).view_as(x)
        self._costs = [ffn_cost(description) for description in descriptions] if ops.needs_operators() else []
        self._observe(self.ffn.index, kept.bool())
        return y

    def cost(self, x: Tensor) -> ops.Cost:
        """Each token reads what it keeps, and what it must read to know that."""
        return ops.Cost(sum(cost.bytes for cost in self._costs), sum(cost.flops for cost in self._costs))


def weights_cost(matrices: Sequence[c.Matrix]) -> ops.Cost:
    """Bytes and FLOPs of reading matrices once."""
    elements = [matrix.rows * matrix.columns for matrix in matrices]
    read = sum(count * matrix.itemsize for count, matrix in zip(elements, matrices, strict=True))
    return ops.Cost(read, 2 * sum(elements))


def ffn_cost(ffn: c.FFNStruct) -> ops.Cost:
    """Bytes and FLOPs of a feed-forward network as it last ran on one row."""
    total, hidden = ffn.up.rows, ffn.up.columns
    kept = ffn.count if ffn.index else total
    if ffn.rule:
        kept = sum((ctypes.c_uint8 * total).from_address(ffn.kept))
    whole = {c.RULES.index("gate"): 1, c.RULES.index("contribution"): 2 if ffn.gate.data else 1}.get(ffn.rule, 0)
    elements = hidden * (whole * total + ((3 if ffn.gate.data else 2) - whole) * kept)
    return ops.Cost(elements * ffn.up.itemsize, 2 * elements)
