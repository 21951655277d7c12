"""What a dense pass over calibration text leaves behind for a method: histograms, means and a small sample."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tda.finite import NotFiniteError, not_finite
from tda.fitting.allocate import Sample, error_curve
from tda.fitting.histogram import Histogram
from tda.view import FFN, Place, Statistic

SAMPLE_PROMPTS = 32
SAMPLE_TOKENS = 8
"""Tokens kept of each sampled prompt: FFN inputs [D], never activations [F]."""

Shares = Callable[[Sequence[Any]], Sequence[float]]
"""Share that each place is to leave out, by the error curves that its collector found."""


@dataclass
class Batch:
    """One calibration batch: which tokens are no padding [B, T], and their positions in their row [B, T]."""

    mask: Tensor
    positions: Tensor
    lengths: Tensor
    """Tokens per row, those too that do not reach an expert: int64 [B]."""

    @classmethod
    def of(cls, mask: Tensor, positions: Tensor) -> "Batch":
        """A batch of whole rows."""
        return cls(mask, positions, mask.sum(1))

    def part(self, tokens: Tensor, inside: Tensor) -> "Batch":
        """Some tokens of the batch, by their numbers in it: int64 [B, M], of which those inside are meant."""
        return Batch(inside, self.positions.flatten()[tokens], self.lengths)


@dataclass
class BlockCall:
    """One call of a whole block on a calibration batch, which can be made again.

    Attributes
    ----------
    module : nn.Module
        The block.
    args, kwargs
        What it was given.
    batch : Batch
        The batch.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: "Batch"

    def __call__(self) -> Tensor:
        """The block's output: [B, T, D]."""
        output = self.module(*self.args, **self.kwargs)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def distance(self, output: Tensor, other: Tensor) -> float:
        """L2 distance of outputs over the hidden dimension, mean over the last quarter of each document's tokens."""
        place, lengths = self.batch.mask.cumsum(1), self.batch.lengths.unsqueeze(1)
        late = self.batch.mask & (place > lengths - (lengths // 4).clamp(min=1))
        return float(torch.linalg.vector_norm((output - other)[late].double(), dim=-1).mean())


class Collector(ABC):
    """Sees every layer's activations of every batch, and keeps little."""

    sees_blocks: bool = False
    """Whether it is to be shown whole blocks too, on a few tokens."""

    def block(self, layer: int, call: BlockCall) -> None:
        """See a whole block's call."""
        raise NotImplementedError

    @abstractmethod
    def observe(self, ffn: Any, a: Tensor, x: Tensor, batch: Batch) -> None:
        """See one layer of one batch: the activation it looks at [B, T, F], FFN inputs x [B, T, D]."""

    @abstractmethod
    def found(self, ffns: Sequence[Any], shares: Shares, given: Sequence[float] | None) -> dict[str, Any]:
        """Fields of `tda.Thresholds` that a method is fitted with.

        Parameters
        ----------
        ffns : sequence of FFN
            The model's.
        shares : callable
            How the method shares a sparsity among layers.
        given : sequence of float or None
            Shares of the layers to take instead.
        """

    def _checked(self, ffn: Place, values: Tensor) -> Tensor:
        """What is measured of a layer's neurons, if it is finite."""
        if found := not_finite(values):
            raise NotFiniteError(f"layer {ffn.layer}: what calibration text gives of its neurons holds {found}")
        return values


class CutCollector(Collector):
    """Histograms of what neurons are cut by, and inputs of some tokens, whose errors the cuts make."""

    def __init__(self, layers: int) -> None:
        self.samples: list[list[Sample]] = [[] for _ in range(layers)]

    @abstractmethod
    def lengths(self) -> list[int]:
        """Prompt lengths that have histograms of their own; none where lengths do not matter."""

    @abstractmethod
    def histograms_of(self, layer: int) -> list[Histogram]:
        """Histograms of a layer: one for each length, or one."""

    def found(self, ffns: Sequence[FFN], shares: Shares, given: Sequence[float] | None) -> dict[str, Any]:
        """Cuts of each layer at its share, and the errors that they make."""
        per_layer = [self.histograms_of(ffn.index) for ffn in ffns]
        longest = [histograms[-1] for histograms in per_layer]
        curves = []
        if given is None:
            curves = [error_curve(ffn, longest[ffn.index], self.samples[ffn.index]) for ffn in ffns]
        targets = tuple(shares(curves) if given is None else given)
        cuts = [
            tuple(histogram.quantile(share) for histogram in histograms)
            for histograms, share in zip(per_layer, targets, strict=True)
        ]
        return {
            "lengths": tuple(self.lengths()),
            "cuts": tuple(cuts),
            "targets": targets,
            "achieved_sparsity": tuple(h.share_below(cut[-1]) for h, cut in zip(longest, cuts, strict=True)),
            "cett": tuple(curve.error_at(share) for curve, share in zip(curves, targets, strict=bool(curves))),
        }

    def _sampled(self, batch: Batch, row: int) -> Tensor:
        """Which tokens of a row are sampled: spread evenly, the first token left out where there are others."""
        columns = batch.mask[row].nonzero().squeeze(1)
        columns = columns[1:] if len(columns) > 1 else columns
        spread = torch.linspace(0, len(columns) - 1, min(SAMPLE_TOKENS, len(columns)), device=columns.device)
        return columns[spread.round().long()]


class TokenCollector(CutCollector):
    """Importance of each neuron and token, for methods that choose per token.

    Parameters
    ----------
    importance : callable
        Scores the neurons of an FFN from activations [..., F].
    layers : int
        Layers of the model.
    """

    def __init__(self, importance: Callable[[FFN, Tensor], Tensor], layers: int) -> None:
        super().__init__(layers)
        self._importance = importance
        self.histograms = [Histogram() for _ in range(layers)]

    def observe(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        """Count the importance of all tokens but each row's first, which is never decoded."""
        decodable = batch.mask & (batch.positions > 0)
        self.histograms[ffn.index].add(self._checked(ffn, self._importance(ffn, a[decodable])))
        held = self.samples[ffn.index]
        for row in range(len(a)):
            if len(held) == SAMPLE_PROMPTS:
                break
            columns = self._sampled(batch, row)
            if len(columns):
                held.append(Sample(x[row, columns].clone(), self._importance(ffn, a[row, columns])))

    def lengths(self) -> list[int]:
        """None: each token is cut alone."""
        return []

    def histograms_of(self, layer: int) -> list[Histogram]:
        """The histogram of a layer.

        Raises
        ------
        ValueError
            If no token was decodable.
        """
        if not any(histogram.total for histogram in self.histograms):
            raise ValueError(
                "the method chooses for decode tokens, and no calibration row has a second token; give longer text"
            )
        return [self.histograms[layer]]


class PromptCollector(CutCollector):
    """Relative magnitude of each neuron and prompt, for every prefix of a power of two tokens.

    A causal model's activations of a prefix are those of the prefix alone, so one pass serves all lengths.

    Parameters
    ----------
    new_statistic : callable
        Makes the statistic of an FFN.
    magnitude : callable
        Relative magnitudes [B, F] that a statistic of an FFN stands for.
    layers : int
        Layers of the model.
    """

    def __init__(
        self,
        new_statistic: Callable[[FFN], Statistic],
        magnitude: Callable[[FFN, Statistic], Tensor],
        layers: int,
    ) -> None:
        super().__init__(layers)
        self._new_statistic = new_statistic
        self._magnitude = magnitude
        self.histograms: list[dict[int, Histogram]] = [{} for _ in range(layers)]
        self.prompts: dict[int, int] = {}
        self._counted = torch.empty(0)

    def observe(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        """Count R of every prefix; keep R and inputs of some whole prompts."""
        statistic = self._new_statistic(ffn)
        begin, length = 0, 1
        longest, counted = int(batch.lengths.max()), self._counted is batch.lengths
        while length <= longest:
            inside = batch.mask & (batch.positions >= begin) & (batch.positions < length)
            columns = inside.any(0).nonzero()
            if len(columns):
                first, last = int(columns[0]), int(columns[-1]) + 1
                statistic.add(a[:, first:last], inside[:, first:last])
            whole = batch.lengths >= length
            if len(statistic.tokens):  # none of an expert's tokens may have come yet
                R = self._checked(ffn, self._magnitude(ffn, statistic)[whole & (statistic.tokens > 0)])
                self.histograms[ffn.index].setdefault(length, Histogram()).add(R)
            if not counted:
                self.prompts[length] = self.prompts.get(length, 0) + int(whole.sum())
            begin, length = length, length * 2
        self._counted = batch.lengths
        self._sample(ffn, a, x, batch)

    def _sample(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        room = SAMPLE_PROMPTS - len(self.samples[ffn.index])
        if room <= 0:
            return
        statistic = self._new_statistic(ffn)
        statistic.add(a[:room], batch.mask[:room])
        R = self._magnitude(ffn, statistic)
        for row in range(len(R)):
            columns = self._sampled(batch, row)
            if len(columns):
                self.samples[ffn.index].append(Sample(x[row, columns].clone(), R[row].clone()))

    def lengths(self) -> list[int]:
        """Prompt lengths that at least a quarter of the prompts reach."""
        return [length for length, count in self.prompts.items() if 4 * count >= self.prompts[1]]

    def histograms_of(self, layer: int) -> list[Histogram]:
        """A histogram for each length."""
        return [self.histograms[layer].get(length, Histogram()) for length in self.lengths()]


class SumCollector(Collector):
    """Means over calibration text of what a relative statistic tells of each neuron.

    Parameters
    ----------
    new_statistic : callable
        Makes the statistic of an FFN: Σ_t c_tj², c relative.
    layers : int
        Networks of the model.
    """

    field: ClassVar[str]
    """Of `tda.Thresholds`, that is found."""

    def __init__(self, new_statistic: Callable[[FFN], Statistic], layers: int) -> None:
        self._new_statistic = new_statistic
        self.sums: list[Tensor | None] = [None] * layers
        self.counts = [0] * layers

    @abstractmethod
    def _part(self, sums: Tensor, tokens: Tensor) -> tuple[Tensor, int]:
        """What rows add, [F], and how many times it counts; of sums [B, F] and their tokens [B]."""

    def observe(self, ffn: FFN, a: Tensor, x: Tensor, batch: Batch) -> None:
        """Add the batch's rows, of an expert those that reach it."""
        statistic = self._new_statistic(ffn)
        statistic.add(a, batch.mask)
        here = statistic.tokens > 0
        part, count = self._part(statistic.value()[here], statistic.tokens[here])
        part, held = self._checked(ffn, part), self.sums[ffn.index]
        self.sums[ffn.index] = part if held is None else held + part
        self.counts[ffn.index] += count

    def found(self, ffns: Sequence[FFN], shares: Shares, given: Sequence[float] | None) -> dict[str, Any]:
        """Means of each network's neurons, in float32; 0 where nothing came."""
        means = []
        for ffn, total, count in zip(ffns, self.sums, self.counts, strict=True):
            means.append((0.0,) * ffn.F if total is None or not count else tuple((total / count).float().tolist()))
        return {self.field: tuple(means)}


class PriorCollector(SumCollector):
    """Mean square of a relative statistic over tokens."""

    field = "prior"

    def _part(self, sums: Tensor, tokens: Tensor) -> tuple[Tensor, int]:
        return sums.double().sum(0), int(tokens.sum())


class MeanCollector(SumCollector):
    """Relative statistic s_j/√T, mean over prompts."""

    field = "scores"

    def _part(self, sums: Tensor, tokens: Tensor) -> tuple[Tensor, int]:
        return (sums / tokens.unsqueeze(1)).sqrt().sum(0), len(tokens)
