"""Agreement with the dense model."""

from torch import Tensor

from tda.engine.score import Scores
from tda.metrics import METRICS, document_mean


@METRICS.register("top1_disagreement")
def top1_disagreement(method: Scores, dense: Scores) -> Tensor:
    """Share of tokens whose most likely token is not the dense model's."""
    return document_mean((method.logits.argmax(-1) != dense.logits.argmax(-1)).double(), method)
