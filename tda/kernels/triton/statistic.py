"""A prompt's sums of squares, straight from z: no float copy of [T, F] is made."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tda.kernels.triton import interpreted

SMALLEST: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).tiny)
"""A sum of squares below this counts as zero: its inverse may be infinite."""


@triton.jit
def _factors(a, mask, weights, factors, F, T, a_batch, a_token, a_neuron, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """factors[b, t] = 1/Σ_j (a_tj·w_j)²; 0 for a token that is masked or all zero, nan where the sum is not finite."""
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, F, BLOCK):
        j = start + tl.arange(0, BLOCK)
        value = tl.load(a + row * a_batch + token * a_token + j * a_neuron, mask=j < F, other=0.0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weights + j, mask=j < F, other=0.0)
        total += value * value
    norm = tl.sum(total, axis=0)
    left_out = (tl.load(mask + row * T + token) == 0) | (norm < SMALLEST)
    inverse = tl.where(norm < float("inf"), 1.0 / tl.where(norm < SMALLEST, 1.0, norm), float("nan"))
    tl.store(factors + row * T + token, tl.where(left_out, 0.0, inverse))


@triton.jit
def _sum(
    a, factors, weights, sums, F, T, a_batch, a_token, a_neuron,
    WEIGHTED: tl.constexpr, TOKENS: tl.constexpr, NEURONS: tl.constexpr,
):  # fmt: skip
    """sums[b, j] += Σ_t (a_tj·w_j)²·factors[b, t]."""
    row = tl.program_id(1).to(tl.int64)
    j = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    weight = tl.full([NEURONS], 1.0, dtype=tl.float32)
    if WEIGHTED:
        weight = tl.load(weights + j, mask=j < F, other=0.0)
    total = tl.zeros([TOKENS, NEURONS], dtype=tl.float32)
    for start in range(0, T, TOKENS):
        t = start + tl.arange(0, TOKENS)
        factor = tl.load(factors + row * T + t, mask=t < T, other=0.0).to(tl.float32)
        # A masked token is not even read: what is not finite there must not count as 0·∞.
        within = (factor != 0)[:, None] & (j < F)[None, :]
        place = row * a_batch + t.to(tl.int64)[:, None] * a_token + j[None, :] * a_neuron
        value = tl.load(a + place, mask=within, other=0.0).to(tl.float32) * weight[None, :]
        total += value * value * factor[:, None]
    so_far = tl.load(sums + row * F + j, mask=j < F, other=0.0)
    tl.store(sums + row * F + j, so_far + tl.sum(total, axis=0), mask=j < F)


def add_squares(sums: Tensor, a: Tensor, mask: Tensor, weights: Tensor | None, relative: bool) -> bool:
    """Add a prompt's squares to sums: Σ_t (a_tj·w_j)², each token's share of its own sum where `relative`; it can.

    Parameters
    ----------
    sums : Tensor
        float32 [B, F], contiguous.
    a : Tensor
        Activations [B, T, F], bfloat16 or float32, of any strides.
    mask : Tensor
        Tokens that count: bool [B, T].
    weights : Tensor or None
        float32 [F]; None is 1.
    """
    B, T, F = a.shape
    weighted = weights is not None
    if relative:
        factors = torch.empty(B, T, dtype=torch.float32, device=a.device)
        block = 16 if interpreted() else 1024
        inside = mask.contiguous().view(torch.uint8)
        _factors[(T, B)](a, inside, weights, factors, F, T, *a.stride(), WEIGHTED=weighted, BLOCK=block)
    else:
        factors = mask.to(torch.float32).contiguous()
    tokens, neurons = (4, 16) if interpreted() else (32, 64)
    _sum[(triton.cdiv(F, neurons), B)](
        a, factors, weights, sums, F, T, *a.stride(), WEIGHTED=weighted, TOKENS=tokens, NEURONS=neurons
    )
    return True
