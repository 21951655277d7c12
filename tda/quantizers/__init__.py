"""Transforms of weights, which go with any method: one file each, found by the registry."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tda.registry import Registry


class Quantized(NamedTuple):
    """Quantized weights.

    Attributes
    ----------
    values : Tensor
        int8 [N, K].
    scale : Tensor
        Factor of each row: float32 [N].
    """

    values: Tensor
    scale: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights that they stand for: [N, K]."""
        return (self.values * self.scale.unsqueeze(1)).to(dtype)


class Quantizer(ABC):
    """What a model's linears compute with in place of their own weights.

    Attributes
    ----------
    name : str
        As it is registered.
    bytes_per_weight, bytes_per_row : int
        What a decode step reads of a weight, and beside the weights of each output.
    """

    name: ClassVar[str]
    bytes_per_weight: ClassVar[int]
    bytes_per_row: ClassVar[int]

    @abstractmethod
    def quantize(self, weight: Tensor) -> Quantized:
        """Quantize weights [N, K]."""


QUANTIZERS: Registry[Quantizer] = Registry(
    "quantizer of weights", "tda.quantizers", fits=lambda entry: isinstance(entry, Quantizer)
)
