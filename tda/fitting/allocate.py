"""How layers share a sparsity: the same share for each, or the same error (CETT) for all.

CETT of a token for a set D of left-out neurons: ‖Σ_{j∈D} n_j‖ / ‖Σ_j n_j‖, n_j = z_j·W_down[:, j], bias excluded
(arXiv 2402.03804). Errors come from a dense pass and do not propagate between layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tda.fitting.histogram import Histogram
from tda.view import FFN

GRID = torch.linspace(0, 0.99, 100).tolist()
"""Shares whose quantiles are the cuts that are tried."""


@dataclass
class Sample:
    """FFN inputs x [n, D] of a prompt's sampled tokens, and what its neurons are cut by: [F] or [n, F]."""

    x: Tensor
    scores: Tensor


@dataclass(frozen=True)
class ErrorCurve:
    """Mean CETT of one layer at each cut of the grid, and the share that each cut leaves out.

    Attributes
    ----------
    shares, errors : Tensor
        float64 [100]
    """

    shares: Tensor
    errors: Tensor

    def largest_share(self, error: float) -> float:
        """Share at the largest cut whose error is within a bound; the whole grid is looked at."""
        within = (self.errors <= error).nonzero()
        return float(self.shares[within.max()]) if len(within) else 0.0

    def error_at(self, share: float) -> float:
        """Error at the cut of the grid that is nearest to a share."""
        return float(self.errors[(self.shares - share).abs().argmin()])


@torch.no_grad()
def error_curve(ffn: FFN, histogram: Histogram, samples: list[Sample]) -> ErrorCurve:
    """CETT over the grid for one layer, from its sampled tokens."""
    cuts = [histogram.quantile(share) for share in GRID]
    down_rows = ffn.down.weight.detach().t().float().contiguous()  # [F, D]
    edges = torch.tensor(cuts, device=down_rows.device)
    errors = []
    for sample in samples:
        z = ffn.activation(sample.x).float()  # [n, F]
        scores = sample.scores.expand_as(z)
        errors += [_token_errors(z[n], scores[n], edges, down_rows) for n in range(len(z))]
    if not errors:  # of an expert that no token reached
        errors = [torch.zeros(len(cuts), dtype=torch.float64)]
    shares = torch.tensor([histogram.share_below(cut) for cut in cuts], dtype=torch.float64)
    return ErrorCurve(shares, torch.stack(errors).double().mean(0).cpu())


def _token_errors(z: Tensor, scores: Tensor, cuts: Tensor, down_rows: Tensor) -> Tensor:
    """CETT of one token at each cut: [100]. Neurons are summed in groups between cuts, then groups added up."""
    # Neuron j is left out at cuts[k] iff group_j <= k.
    group = torch.searchsorted(cuts, scores.contiguous(), right=True)
    order = torch.argsort(group, stable=True)
    starts = torch.searchsorted(group[order], torch.arange(len(cuts) + 1, device=z.device))
    sums = functional.embedding_bag(order, down_rows, starts, mode="sum", per_sample_weights=z[order])  # [101, D]
    partial = sums.double().cumsum(0)
    norms: Tensor = torch.linalg.vector_norm(partial, dim=1)
    return norms[:-1] / norms[-1].clamp(min=torch.finfo(torch.float64).tiny)


def equal_error(curves: Sequence[ErrorCurve], target: float) -> list[float]:
    """Layer shares at the one error level whose mean share is nearest to the target."""
    levels = torch.cat([curve.errors for curve in curves]).unique().tolist()
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if _mean_share(curves, levels[middle]) < target:
            low = middle + 1
        else:
            high = middle
    near = min(levels[max(low - 1, 0) : low + 1], key=lambda level: abs(_mean_share(curves, level) - target))
    return at_level(curves, near)


def at_level(curves: Sequence[ErrorCurve], error: float) -> list[float]:
    """Layer shares at an error level."""
    return [curve.largest_share(error) for curve in curves]


def _mean_share(curves: Sequence[ErrorCurve], error: float) -> float:
    shares = at_level(curves, error)
    return sum(shares) / len(shares)
