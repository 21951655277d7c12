"""Score methods on documents against the dense model: one value per document and metric."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from tda.contracts import Method
from tda.engine.score import Scores, score
from tda.finite import NotFiniteError
from tda.methods import METHODS
from tda.metrics import METRICS
from tda.names import Protocol
from tda.quality.documents import Document, rows_of
from tda.records import Measurement
from tda.statistics import paired_difference

CACHED_BYTES = 1 << 30
"""Dense logits beyond this are computed anew for each method."""


@dataclass
class Evaluation:
    """A method's quality over documents.

    Attributes
    ----------
    values : dict
        Measurement name to one value per document.
    documents : list of int
        The documents' numbers.
    achieved : list of tuple
        Share left out per layer, for each batch.
    sparse_share : float
        Share of the continuation tokens that were computed sparsely.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    documents: list[int] = field(default_factory=list)
    achieved: list[tuple[float, ...]] = field(default_factory=list)
    sparse_share: float = 0.0

    @property
    def achieved_sparsity(self) -> tuple[float, ...]:
        """Share left out per layer, mean over batches."""
        return tuple(sum(layer) / len(layer) for layer in zip(*self.achieved, strict=True))

    def measurements(self) -> dict[str, Measurement]:
        """The values as measurements, a group per document."""
        return {name: measured(name, values, self.documents) for name, values in self.values.items()}

    def summary(self, dense: "Evaluation") -> dict[str, float | str | None]:
        """Means over documents, with the interval of the difference to dense."""
        found = self.measurements()
        means = {name: sum(part.samples) / len(part.samples) if part.samples else None for name, part in found.items()}
        nll = means["nll_nats"]
        delta = paired_difference(found["nll_nats"], dense.measurements()["nll_nats"])
        layers = self.achieved_sparsity
        return {
            "achieved_sparsity": sum(layers) / len(layers),
            "perplexity": math.exp(nll) if nll is not None and found["perplexity"].samples else None,
            "nll_nats": nll,
            "delta_nll_nats": None if delta is None else delta.value,
            "delta_low": None if delta is None else delta.low,
            "delta_high": None if delta is None else delta.high,
            "kl_to_dense_nats": means["kl_to_dense_nats"],
            "top1_disagreement": means["top1_disagreement"],
            "sparse_share": self.sparse_share,
        }


class Evaluator:
    """Documents and the dense model's scores of them, which every method is compared with.

    Parameters
    ----------
    model : nn.Module
        A trained decoder.
    documents : sequence of Document
        Of equal lengths.
    batch : int
        Documents per pass.
    together : int
        Documents that share a set where a method has one for all rows of a batch.
    protocol : str
        As for `tda.score`.
    advance : callable
        Called after each batch of a method.
    """

    def __init__(
        self,
        model: nn.Module,
        documents: Sequence[Document],
        *,
        batch: int = 8,
        together: int = 1,
        protocol: Protocol = "decode",
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.together = together
        self.protocol = protocol
        self.advance = advance
        self.batches = [documents[start : start + batch] for start in range(0, len(documents), batch)]
        self._dense: dict[int, Scores] = {}

    def evaluate(self, method: Method, select_on: Sequence[Document] | None = None) -> Evaluation:
        """Score a method on all documents.

        Parameters
        ----------
        method : Method
            The method, fitted where it needs that.
        select_on : sequence of Document, optional
            Documents whose prompts the selections are taken from instead, one for one: the control that shows what
            a prompt's own selection is worth.
        """
        result = Evaluation()
        for number in range(len(self.batches)):
            self.add(result, number, method, select_on)
        return result

    def add(
        self,
        result: Evaluation,
        number: int,
        method: Method,
        select_on: Sequence[Document] | None = None,
    ) -> None:
        """Score a method on one batch of the documents, and add that to what there is; else as `evaluate`."""
        batch = self.batches[number]
        scores = self.scores(number, method, select_on)
        dense = scores if method.name == "dense" else self._dense_scores(number)
        for name, metric in METRICS.items():
            result.values.setdefault(name, []).extend(metric(scores, dense).tolist())
        if scores.selection:
            digests = [scores.selection.digest(row) for row in range(len(batch))]
            result.values.setdefault("selection_digest", []).extend(digests)
        result.documents += [document.number for document in batch]
        result.achieved.append(scores.achieved_sparsity)
        result.sparse_share = scores.sparse_share
        self.advance()

    def scores(self, number: int, method: Method, select_on: Sequence[Document] | None = None) -> Scores:
        """Score a method on one batch of the documents, token by token; else as `evaluate`."""
        batch = self.batches[number]
        start = sum(len(before) for before in self.batches[:number])
        chosen = None if select_on is None else select_on[start : start + len(batch)]
        size = self.together if shares_rows(method) else len(batch)
        parts = [(batch[at : at + size], chosen and chosen[at : at + size]) for at in range(0, len(batch), size)]
        return Scores.joined([self._score(method, *part) for part in parts])

    def _dense_scores(self, number: int) -> Scores:
        if number in self._dense:
            return self._dense[number]
        scores = self.scores(number, METHODS["dense"]())
        if sum(held.logits.nbytes for held in self._dense.values()) + scores.logits.nbytes <= CACHED_BYTES:
            self._dense[number] = scores
        return scores

    def _score(
        self,
        method: Method,
        documents: Sequence[Document],
        select_on: Sequence[Document] | None,
    ) -> Scores:
        device = next(self.model.parameters()).device
        prompts, continuations = rows_of(documents, device)
        selecting = None if select_on is None else rows_of(select_on, device)[0]
        try:
            return score(
                self.model,
                method,
                prompts,
                continuations,
                protocol=self.protocol,
                selection_ids=selecting,
            )
        except NotFiniteError as error:
            numbers = f"{documents[0].number} to {documents[-1].number}"
            raise NotFiniteError(f"{method.name} on documents {numbers}: {error}") from None


def shares_rows(method: Method) -> bool:
    """Whether all rows of a batch share one set: what is scored together then matters."""
    return method.options.get("rows") == "shared"


def measured(name: str, values: Sequence[float], documents: Iterable[int]) -> Measurement:
    """A score's samples, one per document; missing, with the reason, where one is beyond what a float holds."""
    numbers = list(documents)
    broken = next((place for place, value in enumerate(values) if not math.isfinite(value)), None)
    if broken is None:
        return Measurement.of(name, values, numbers)
    return Measurement.absent(name, f"that of document {numbers[broken]} is {values[broken]}")
