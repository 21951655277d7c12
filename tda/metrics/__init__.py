"""Metrics of quality: one file each. A metric gives one value per document, from its sparse tokens only."""

from collections.abc import Callable

import torch
from torch import Tensor

from tda.engine.score import Scores
from tda.records import MEASUREMENTS, MeasurementKind
from tda.registry import Registry

Metric = Callable[[Scores, Scores], Tensor]
"""(the method's scores, dense scores of the same documents) -> float64 [B]."""
METRICS: Registry[Metric] = Registry("metric", "tda.metrics", fits=callable)


def metric(name: str, kind: MeasurementKind) -> Callable[[Metric], Metric]:
    """Return a decorator that makes a function a metric whose values are of a kind; for a plug-in's own names.

    Raises
    ------
    ValueError
        If the name is taken.
    """

    def file(function: Metric) -> Metric:
        if MEASUREMENTS.get(name, kind) != kind:
            raise ValueError(f"{name!r} is a measurement of another kind")
        METRICS.register(name)(function)
        MEASUREMENTS[name] = kind
        return function

    return file


def document_mean(values: Tensor, scores: Scores) -> Tensor:
    """Mean of token values [B, G] over each document's sparse tokens: float64 [B].

    Raises
    ------
    ValueError
        If a document has no sparse token: its score would be the dense model's.
    """
    counts = scores.sparse.sum(1)
    if not bool(counts.all()):
        raise ValueError("a document has no sparsely computed token; its score would only repeat the dense model's")
    return values.double().where(scores.sparse, torch.zeros((), dtype=torch.float64)).sum(1) / counts
