"""What a dense pass over calibration text leaves behind for each method: histograms, means and a small sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tda.calibration.histogram import Histogram
from tda.contracts import FFN, TokenMethod
from tda.finite import NotFiniteError, not_finite
from tda.methods.static_mean import StaticMean
from tda.methods.tda import TDA

SAMPLE_PROMPTS = 32
SAMPLE_TOKENS = 8
"""Tokens kept of each sampled prompt: FFN inputs [D], never activations [F]."""


@dataclass
class Batch:
    """One calibration batch: which tokens are no padding [B, T], and their positions in their row [B, T]."""

    mask: Tensor
    positions: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens per row: int64 [B]."""
        return self.mask.sum(1)


@dataclass
class Sample:
    """FFN inputs x [n, D] of a prompt's sampled tokens, and what its neurons are cut by: [F] or [n, F]."""

    x: Tensor
    scores: Tensor


class Collector(ABC):
    """Sees every layer's activations of every batch, and keeps little."""

    def __init__(self, layers: int) -> None:
        self.samples: list[list[Sample]] = [[] for _ in range(layers)]

    @abstractmethod
    def observe(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        """See one layer of one batch: the activation it looks at [B, T, F], FFN inputs x [B, T, D]."""

    def _checked(self, ffn: FFN, values: Tensor) -> Tensor:
        """What is measured of a layer's neurons, if it is finite."""
        if found := not_finite(values):
            raise NotFiniteError(f"layer {ffn.index}: what calibration text gives of its neurons holds {found}")
        return values

    def _sampled(self, batch: Batch, row: int) -> Tensor:
        """Which tokens of a row are sampled: spread evenly, the first token left out where there are others."""
        columns = batch.mask[row].nonzero().squeeze(1)
        columns = columns[1:] if len(columns) > 1 else columns
        spread = torch.linspace(0, len(columns) - 1, min(SAMPLE_TOKENS, len(columns)), device=columns.device)
        return columns[spread.round().long()]


class TokenCollector(Collector):
    """Importance of each neuron and token, for methods that choose per token."""

    def __init__(self, method: TokenMethod, layers: int) -> None:
        super().__init__(layers)
        self.method = method
        self.histograms = [Histogram() for _ in range(layers)]

    def observe(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        """Count the importance of all tokens but each row's first, which is never decoded."""
        decodable = batch.mask & (batch.positions > 0)
        self.histograms[ffn.index].add(self._checked(ffn, self.method.importance(ffn, a[decodable])))
        for row in range(len(a)):
            if len(self.samples[ffn.index]) < SAMPLE_PROMPTS:
                columns = self._sampled(batch, row)
                scores = self.method.importance(ffn, a[row, columns])
                self.samples[ffn.index].append(Sample(x[row, columns].clone(), scores))


class PromptCollector(Collector):
    """Relative magnitude of each neuron and prompt, for every prefix of a power of two tokens.

    A causal model's activations of a prefix are those of the prefix alone, so one pass serves all lengths.
    """

    def __init__(self, method: TDA, layers: int) -> None:
        super().__init__(layers)
        self.method = method
        self.histograms: list[dict[int, Histogram]] = [{} for _ in range(layers)]
        self.prompts: dict[int, int] = {}

    def observe(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        """Count R of every prefix; keep R and inputs of some whole prompts."""
        statistic = self.method.new_statistic(ffn)
        begin, length = 0, 1
        longest = int(batch.lengths.max())
        while length <= longest:
            inside = batch.mask & (batch.positions >= begin) & (batch.positions < length)
            columns = inside.any(0).nonzero()
            first, last = int(columns[0]), int(columns[-1]) + 1
            statistic.add(a[:, first:last], inside[:, first:last])
            whole = batch.lengths >= length
            R = self._checked(ffn, self.method.relative_magnitude(ffn, statistic)[whole])
            self.histograms[ffn.index].setdefault(length, Histogram()).add(R)
            if ffn.index == 0:
                self.prompts[length] = self.prompts.get(length, 0) + int(whole.sum())
            begin, length = length, length * 2
        self._sample(ffn, a, x, batch)

    def _sample(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        room = SAMPLE_PROMPTS - len(self.samples[ffn.index])
        if room <= 0:
            return
        statistic = self.method.new_statistic(ffn)
        statistic.add(a[:room], batch.mask[:room])
        R = self.method.relative_magnitude(ffn, statistic)
        for row in range(len(R)):
            columns = self._sampled(batch, row)
            self.samples[ffn.index].append(Sample(x[row, columns].clone(), R[row].clone()))

    def lengths(self) -> list[int]:
        """Prompt lengths that at least a quarter of the prompts reach."""
        return [length for length, count in self.prompts.items() if 4 * count >= self.prompts[1]]


class MeanCollector(Collector):
    """Griffin's statistic over √T, summed over prompts."""

    def __init__(self, method: StaticMean, layers: int) -> None:
        super().__init__(layers)
        self.method = method
        self.sums: list[Tensor | None] = [None] * layers
        self.prompts = 0

    def observe(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        """Add the batch's prompts."""
        statistic = self.method.calibration_statistic(ffn)
        statistic.add(a, batch.mask)
        s = self._checked(ffn, (statistic.value() / statistic.tokens.unsqueeze(1)).sqrt().sum(0))
        held = self.sums[ffn.index]
        self.sums[ffn.index] = s if held is None else held + s
        self.prompts += len(a) if ffn.index == 0 else 0
