"""Divergence from the dense model."""

import torch
from torch import Tensor

from tda.engine.score import Scores
from tda.metrics import METRICS, document_mean


@METRICS.register("kl_to_dense_nats")
def kl_to_dense_nats(method: Scores, dense: Scores) -> Tensor:
    """Mean KL(dense || method) of the next-token distributions, in nats per token."""
    q = torch.log_softmax(method.logits.float(), -1)
    p = torch.log_softmax(dense.logits.float(), -1)
    return document_mean((p.exp() * (p - q)).sum(-1), method)
