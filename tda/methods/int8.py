"""Dense with weights in eight bits: what a user would run instead of leaving neurons out."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tda.contracts import Rounded, WeightMethod
from tda.methods import METHODS

LARGEST = 127


@METHODS.register("int8")
@dataclass(frozen=True, kw_only=True)
class Int8(WeightMethod):
    """Leave nothing out, and round the weights of every linear, the head too, to int8 with a scale for each row.

    Scale: the row's largest magnitude over 127; round to nearest. Weights alone: activations, norms, biases, embeddings
    and the key-value cache keep their type. This is round-to-nearest per output channel, as torchao's int8
    weight-only; finer blocks, as llama.cpp's q8_0 has, lose less and read more.
    """

    name: ClassVar[str] = "int8"

    def round(self, weight: Tensor) -> Rounded:
        """Weights [N, K] as int8 and a scale [N]."""
        wide = weight.float()
        scale = wide.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
        return Rounded((wide / scale.unsqueeze(1)).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale)

    def nbytes(self, weight: Tensor) -> int:
        """A byte a weight, and the scales."""
        return weight.numel() + torch.float32.itemsize * len(weight)
