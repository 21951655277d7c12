"""Sums over a prompt's tokens in float32, without a float copy of all of z: by the kernels in C, else in blocks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tda.kernels.native.statistic import add_squares
from tda.view import SquaresSum

BLOCK = 32
"""Tokens per block: a float32 block of 32 x 5632 neurons stays in the L2 cache."""


NOTHING = torch.zeros(0)


class PromptSum:
    """Base of the statistics: counts tokens, walks over blocks.

    A prompt passes all layers before anything is chosen, so nothing is launched in a layer but what sums: tokens are
    counted when they are asked for, and `begin` makes the sums of all layers at once.

    Parameters
    ----------
    weights : Tensor, optional
        Factor per neuron that the activations are multiplied by first: float32 [F].

    Attributes
    ----------
    relative : bool or None
        Whether it sums relative squares or plain ones; None where it sums something else.
    sweep : callable
        Kernel that adds squares where it can.
    """

    relative: ClassVar[bool | None] = None

    def __init__(self, weights: Tensor | None = None) -> None:
        self.weights = weights
        self.sweep: SquaresSum = add_squares
        self.sums = NOTHING
        self._masks: list[Tensor] = []

    def add(self, a: Tensor, mask: Tensor) -> None:
        """Add activations a [B, T, F] of the tokens where mask [B, T] is true."""
        if self.sums.numel() == 0:
            with torch.inference_mode(False):  # a prompt may go on outside of it
                self.sums = torch.zeros(a.shape[0], a.shape[2], dtype=torch.float32, device=a.device)  # [B, F]
        self._masks.append(mask)
        if self.relative is None or not self.sweep(self.sums, a, mask, self.weights, self.relative):
            for block, inside in self._blocks(a, mask):
                self._add(block, inside)

    @property
    def tokens(self) -> Tensor:
        """Prompt tokens that counted, per row: int64 [B]; none before anything was added."""
        if not self._masks:
            return NOTHING.long()
        with torch.inference_mode(False):
            return torch.cat(self._masks, 1).sum(1)

    def _blocks(self, a: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, a.shape[1], BLOCK):
            inside = mask[:, start : start + BLOCK]
            block = a[:, start : start + BLOCK].float().masked_fill(~inside.unsqueeze(-1), 0)
            yield block if self.weights is None else block * self.weights, inside

    def _add(self, block: Tensor, inside: Tensor) -> None:
        raise NotImplementedError

    def value(self) -> Tensor:
        """The sum so far: float32 [B, F]."""
        return self.sums

    def take(self, rows: Tensor) -> None:
        """Let row i be what row rows[i] was: int64 [B]."""
        with torch.inference_mode(False):
            self.sums = self.sums[rows].clone()
        self._masks = [mask[rows] for mask in self._masks]


def begin(statistics: Sequence[Any], rows: int, sizes: Sequence[int], device: torch.device) -> None:
    """Let sums of so many rows start, each [B, F] of its own size, in memory that is cleared at once."""
    own = [(one, size) for one, size in zip(statistics, sizes, strict=True) if isinstance(one, PromptSum)]
    if not own:
        return
    with torch.inference_mode(False):
        sums = torch.zeros(rows * sum(size for _, size in own), dtype=torch.float32, device=device)
        for (one, size), part in zip(own, sums.split([rows * size for _, size in own]), strict=True):
            one.sums = part.view(rows, size)


def _inverse(values: Tensor, inside: Tensor) -> Tensor:
    """1/values inside the mask: nan where they are not finite, 0 where it would be infinite, as of all-zero ones."""
    inverse = torch.where(values < math.inf, 1 / values, math.nan)
    return inverse.masked_fill(~inside | (inverse == math.inf), 0)


class RelativeSquares(PromptSum):
    """Σ_t (a_tj / ‖a_t‖₂)²."""

    relative = True

    def _add(self, block: Tensor, inside: Tensor) -> None:
        squares = block.square()
        self.sums += torch.bmm(_inverse(squares.sum(-1), inside).unsqueeze(1), squares).squeeze(1)


class Squares(PromptSum):
    """Σ_t a_tj²."""

    relative = False

    def _add(self, block: Tensor, inside: Tensor) -> None:
        self.sums += torch.bmm(inside.float().unsqueeze(1), block.square()).squeeze(1)


class RelativeMaximum(PromptSum):
    """max_t abs(a_tj) / ‖a_t‖₂."""

    def _add(self, block: Tensor, inside: Tensor) -> None:
        norms = torch.linalg.vector_norm(block, dim=-1)
        relative = block.abs() * _inverse(norms, inside).unsqueeze(-1)
        self.sums = torch.maximum(self.sums, relative.amax(1))
