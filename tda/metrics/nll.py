"""Negative log likelihood."""

from torch import Tensor

from tda.engine.score import Scores
from tda.metrics import METRICS, document_mean


@METRICS.register("nll_nats")
def nll_nats(method: Scores, dense: Scores) -> Tensor:
    """Mean negative log likelihood of each document's sparse tokens, in nats."""
    return document_mean(method.nll, method)
