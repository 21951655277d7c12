"""Bytes that a decode step must read, and what follows from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tda.as_built import is_linear
from tda.contracts import Method
from tda.engine.transformers_api import text_config
from tda.view import Linear, Place


@dataclass(frozen=True)
class Traffic:
    """Bytes of one decode step.

    Attributes
    ----------
    weights : float
        Weight bytes: attention, FFN as far as it is read, norms, head; of an embedding table one row.
    cache : float
        Key-value cache bytes, all rows of the batch.
    """

    weights: float
    cache: float

    @property
    def total(self) -> float:
        """All bytes of the step."""
        return self.weights + self.cache


def decode_traffic(
    model: nn.Module,
    ffns: Sequence[Place],
    method: Method,
    kept: Sequence[float],
    cached_tokens: float,
    batch: int,
    cache: Any = None,
) -> Traffic:
    """Bytes that one decode step of a batch must read.

    Parameters
    ----------
    model : nn.Module
        The model.
    ffns : sequence of Place
        Where the method leaves something out.
    method : Method
        Tells what of a place is read for what it keeps only.
    kept : sequence of float
        Share that is kept of each place: for a batch the union over its rows.
    cached_tokens : float
        Tokens in the cache, mean over the steps meant.
    batch : int
        Rows.
    cache : object, optional
        A key-value cache of the model, which shows what it holds of a token; without one the configuration tells.
    """
    weights = float(always_read(model))
    for linear, read in linear_reads(model, ffns, method, kept, batch):
        weights += read - linear.nbytes()
    if not cached_tokens:
        return Traffic(weights, 0.0)
    token = _by_config(model) if cache is None else _shown(cache)
    return Traffic(weights, float(token * cached_tokens * batch))


def linear_reads(
    model: nn.Module, ffns: Sequence[Place], method: Method, kept: Sequence[float], batch: int
) -> Iterator[tuple[Linear, float]]:
    """Every linear of a model, and the bytes that a decode step of a batch reads of it; see `decode_traffic`."""
    quantizer, placed = method.quantizer, set()
    for place, share in zip(ffns, kept, strict=True):
        axes = {site.linear.key: site.axis for site in method.sites(place)}
        for linear in place.linears:
            axis = axes.get(linear.key)
            yield linear, place.reach(batch) * linear.nbytes(1.0 if axis is None else share, axis or "in", quantizer)
            placed.add(linear.module)
    for module in model.modules():
        if is_linear(module) and module not in placed:
            yield Linear(module), Linear(module).nbytes(quantizer=quantizer)


def always_read(model: Any) -> int:
    """Bytes of all parameters but embedding tables, of which a row is read; a tied table is the head."""
    head = model.get_output_embeddings()
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) and (head is None or module.weight is not head.weight)
    }
    return sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in tables)


def _by_config(model: nn.Module) -> int:
    """Bytes of a token in the key-value cache of a model whose heads are as its configuration says."""
    config = text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * next(model.parameters()).element_size())


def _shown(cache: Any) -> int:
    """Bytes of a token in a key-value cache: heads and widths may differ between layers, and keys from values."""
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]  # [B, H, T, W] each
    return sum(part.shape[1] * part.shape[3] * part.element_size() for part in parts)
