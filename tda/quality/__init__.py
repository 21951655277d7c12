"""Quality: documents, and methods scored on them against the dense model."""

from tda.quality.documents import Document, calibration_batches, evaluation_documents, random_documents, rows_of
from tda.quality.evaluate import Evaluation, Evaluator, measured
from tda.quality.losses import Slice
from tda.quality.recall import recall, recall_questions
from tda.quality.slices import slices

__all__ = [
    "Document",
    "Evaluation",
    "Evaluator",
    "Slice",
    "calibration_batches",
    "evaluation_documents",
    "measured",
    "random_documents",
    "recall",
    "recall_questions",
    "rows_of",
    "slices",
]
