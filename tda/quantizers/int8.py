"""Weights in eight bits."""

import torch
from torch import Tensor

from tda.quantizers import QUANTIZERS, Quantized, Quantizer

LARGEST = 127


class Int8Quantizer(Quantizer):
    """Weights of every linear, the head too, rounded to int8 with a scale for each row.

    Scale: the row's largest magnitude over 127; round to nearest. Weights alone: activations, norms, biases, embeddings
    and the key-value cache keep their type. This is round-to-nearest per output channel, as torchao's int8
    weight-only; finer blocks, as llama.cpp's q8_0 has, lose less and read more.
    """

    name = "int8"
    bytes_per_weight = 1
    bytes_per_row = 4

    def quantize(self, weight: Tensor) -> Quantized:
        """Weights [N, K] as int8 and a scale [N]."""
        wide = weight.float()
        scale = wide.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
        return Quantized((wide / scale.unsqueeze(1)).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale)


QUANTIZERS.register(Int8Quantizer.name)(Int8Quantizer())
