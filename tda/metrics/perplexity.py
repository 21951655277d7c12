"""Perplexity."""

from torch import Tensor

from tda.engine.score import Scores
from tda.metrics import METRICS
from tda.metrics.nll import nll_nats


@METRICS.register("perplexity")
def perplexity(method: Scores, dense: Scores) -> Tensor:
    """Exponential of each document's mean negative log likelihood."""
    return nll_nats(method, dense).exp()
