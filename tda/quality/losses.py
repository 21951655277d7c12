"""What a method loses on the documents of a slice, beside dense."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tda.contracts import Method
from tda.metrics.nll import nll_nats
from tda.quality.evaluate import Evaluator
from tda.records import Measurement
from tda.statistics import Estimate, bootstrap, paired_difference


@dataclass(frozen=True)
class Loss:
    """What a method, or dense, loses on the documents of a slice.

    Attributes
    ----------
    nll : Measurement
        Mean NLL of a document's sparse tokens that are in the slice, in nats, one sample a document.
    tokens : float
        How many tokens these are, mean over documents.
    achieved : float or None
        Share left out, mean over layers and documents, over the whole passes; None where it was not told.
    """

    nll: Measurement
    tokens: float
    achieved: float | None = None

    @property
    def mean(self) -> Estimate | None:
        """Mean over documents, with its interval; None without any."""
        return bootstrap(self.nll.samples) if self.nll.samples else None


@dataclass(frozen=True)
class Slice:
    """A method's loss, and dense's, in one slice.

    Attributes
    ----------
    method : Method
        The method.
    value : str
        Which slice: "64" of prompt lengths, "5-16" of positions.
    own, dense : Loss
        The method's, and dense's on the same tokens.
    base : Slice or None
        The slice of the same method that this one is compared with; None where the documents are others.
    """

    method: Method
    value: str
    own: Loss
    dense: Loss
    base: "Slice | None" = None

    @property
    def documents(self) -> int:
        """Documents, or questions, that the intervals are over."""
        return len(self.own.nll.samples)

    @property
    def delta(self) -> Estimate | None:
        """NLL over dense's in nats a token, paired per document; None where one is missing."""
        own, dense = self.own.nll, self.dense.nll
        return paired_difference(own, dense) if own.samples and dense.samples else None

    @property
    def change(self) -> Estimate | None:
        """`delta` less that of the base, paired per document; None where there is no base, or it is this one."""
        if self.base is None or self.delta is None or self.base.delta is None:
            return None
        return paired_difference(self._over_dense(), self.base._over_dense())

    def _over_dense(self) -> Measurement:
        each = zip(self.own.nll.samples, self.dense.nll.samples, strict=True)
        return Measurement.of("nll_nats", [own - dense for own, dense in each], self.own.nll.groups)

    def row(self) -> dict[str, float | str | None]:
        """The slice as numbers: means over documents in nats a token, each with its 95% interval."""
        return {
            "value": self.value,
            "documents": self.documents,
            "tokens": self.own.tokens,
            "achieved_sparsity": self.own.achieved,
            **_columns("dense", self.dense.mean),
            **_columns("own", self.own.mean),
            **_columns("delta", self.delta),
            **_columns("change", self.change),
        }


def _columns(name: str, found: Estimate | None) -> dict[str, float | str | None]:
    value, low, high = (None, None, None) if found is None else (found.value, found.low, found.high)
    return {f"{name}_nll": value, f"{name}_low": low, f"{name}_high": high}


def losses(evaluator: Evaluator, method: Method, spans: Sequence[range]) -> list[Loss]:
    """The loss in each span of the continuation, all of the same passes."""
    values: list[list[float]] = [[] for _ in spans]
    counts = [0] * len(spans)
    numbers: list[int] = []
    left_out = 0.0
    for place, batch in enumerate(evaluator.batches):
        scores = evaluator.scores(place, method)
        numbers += [document.number for document in batch]
        for index, span in enumerate(spans):
            inside = torch.zeros_like(scores.sparse)
            inside[:, span.start : span.stop] = True
            part = replace(scores, sparse=scores.sparse & inside)
            values[index] += nll_nats(part, part).tolist()
            counts[index] += int(part.sparse.sum())
        left_out += len(batch) * sum(scores.achieved_sparsity) / len(scores.achieved_sparsity)
    achieved = left_out / len(numbers)
    return [
        Loss(Measurement.of("nll_nats", found, numbers), count / len(numbers), achieved)
        for found, count in zip(values, counts, strict=True)
    ]


def joined(parts: Sequence[Loss]) -> Loss:
    """The loss on the documents of several parts together, scored under one protocol."""
    samples = [value for part in parts for value in part.nll.samples]
    numbers = [number for part in parts for number in part.nll.groups]
    counts = [len(part.nll.groups) for part in parts]
    achieved = sum(count * (part.achieved or 0.0) for count, part in zip(counts, parts, strict=True)) / sum(counts)
    return Loss(Measurement.of("nll_nats", samples, numbers), parts[0].tokens, achieved)
