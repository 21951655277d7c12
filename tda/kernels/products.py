"""Products of two-byte types on processors that multiply only float32: operands are widened block by block.

torch's own product of such a type is several times slower there than its float32 product, and far slower again where
a weight lies transposed, as decode wants it. With blocks that fit the cache, weights are read once at their own size,
and a product runs at the rate of float32. `tda.processor.widens` says where.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tda.processor import widens

BLOCK_BYTES = 1 << 22
"""Float32 bytes of a block of widened weights."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear map with sums in float32: [..., K] -> [..., N], in x's type.

    Parameters
    ----------
    x : Tensor
        [..., K]
    weight : Tensor
        [N, K]; its rows or its columns are contiguous, and it is read in the order in which it lies.
    bias : Tensor, optional
        [N]
    """
    tokens = x.reshape(-1, x.shape[-1]).float()  # [T, K]
    sums = torch.empty(len(tokens), len(weight), dtype=torch.float32, device=x.device)
    if weight.stride(0) < weight.stride(1):
        sums.zero_()
        for columns, block in _blocks(weight.t()):
            sums.addmm_(tokens[:, columns], block)
    else:
        for rows, block in _blocks(weight):
            torch.mm(tokens, block.t(), out=sums[:, rows])
    if bias is not None:
        sums += bias
    return sums.to(x.dtype).view(*x.shape[:-1], len(weight))


def _blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of a weight, widened into one buffer."""
    height = max(BLOCK_BYTES // (4 * weight.shape[1]) // 16 * 16, 16)
    buffer = torch.empty(min(height, len(weight)), weight.shape[1], dtype=torch.float32, device=weight.device)
    for start in range(0, len(weight), height):
        rows = weight[start : start + height]
        yield slice(start, start + len(rows)), buffer[: len(rows)].copy_(rows)


def matmul(x: Tensor, other: Tensor) -> Tensor:
    """`torch.matmul` with sums in float32, in x's type."""
    if other.dim() == 2 and x.dim() >= 2:
        return linear(x, other.t())
    if x.dim() == 3 and other.dim() == 3 and len(x) == len(other):
        return torch.stack([linear(one, weights.t()) for one, weights in zip(x, other, strict=True)])
    return torch.matmul(x.float(), other.float()).to(x.dtype)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` in float32, in the query's type."""
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    wide = functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask, *args, **kwargs
    )
    return wide.to(query.dtype)


PRODUCTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.linear: linear,
    functional.scaled_dot_product_attention: attention,
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm), matmul
    ),
}
"""Functions of torch, and what computes the same from widened operands."""


class WidenedProducts(TorchFunctionMode):
    """While it is entered, products of types that `tda.processor.widens` names run widened, all others as they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch."""
        widened = PRODUCTS.get(func)
        given = kwargs or {}
        if widened is not None and len(args) > 1 and "out" not in given and _are_widened(*args[:2]):
            return widened(*args, **given)
        return func(*args, **given)


def _are_widened(one: Any, other: Any) -> bool:
    return _is_widened(one) and _is_widened(other) and one.dtype == other.dtype


def _is_widened(operand: Any) -> bool:
    """Whether an operand is widened: a plain matrix, since a class of its own may have a product of its own."""
    return (
        type(operand) in (Tensor, nn.Parameter)
        and operand.dim() > 1
        and operand.numel() > 0
        and operand.device.type == "cpu"
        and widens(operand.dtype)
        and not (operand.requires_grad and torch.is_grad_enabled())
    )


def needed(model: nn.Module) -> bool:
    """Whether some of a model's weights are of a type whose products are widened here."""
    return any(parameter.device.type == "cpu" and widens(parameter.dtype) for parameter in model.parameters())


@contextmanager
def widening(model: nn.Module) -> Iterator[None]:
    """Run forwards of a model inside with the products that are right for its type on this processor."""
    if not needed(model):
        yield
        return
    with WidenedProducts():
        yield
