"""What of a model a method, a kernel and the engine see: its feed-forward networks, and its decoder around them.

Shapes: B rows, T tokens, F neurons (intermediate size), D hidden size, L layers. z is the neuron activation, the
input of the down projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class FFN:
    """One layer's feed-forward network, as its family declares it.

    ``z = act(gate x) * (up x)`` where there is a gate, else ``z = act(up x)``; ``y = down z``; each linear may
    have a bias.

    Attributes
    ----------
    index : int
        Layer number, from 0.
    gate, up, down : nn.Linear
        Weights [F, D], [F, D] and [D, F]; gate is None in a plain FFN.
    act : nn.Module
        The activation function.
    block : nn.Module or None
        The module whose forward is the whole FFN; None where the layer calls the linears itself (OPT).
    """

    index: int
    gate: nn.Linear | None
    up: nn.Linear
    down: nn.Linear
    act: nn.Module
    block: nn.Module | None

    @property
    def F(self) -> int:  # noqa: N802
        """Number of neurons."""
        return self.up.out_features

    @property
    def D(self) -> int:  # noqa: N802
        """Hidden size."""
        return self.up.in_features

    @property
    def inputs(self) -> list[nn.Linear]:
        """The linears that make a neuron's activation: gate (where there is one), up."""
        return [linear for linear in (self.gate, self.up) if linear is not None]

    @property
    def linears(self) -> Iterator[nn.Linear]:
        """The FFN's linears: gate (where there is one), up, down."""
        yield from (*self.inputs, self.down)

    def named_linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """The FFN's linears by name."""
        named = (("gate", self.gate), ("up", self.up), ("down", self.down))
        yield from ((name, linear) for name, linear in named if linear is not None)

    def activation(self, x: Tensor) -> Tensor:
        """z for inputs x: [..., D] -> [..., F]."""
        up = nn.functional.linear(x, self.up.weight, self.up.bias)
        if self.gate is None:
            return _tensor(self.act(up))
        return _tensor(self.act(nn.functional.linear(x, self.gate.weight, self.gate.bias))) * up

    @cached_property
    def down_norms(self) -> Tensor:
        """‖W_down[:, j]‖₂ of each neuron: float32 [F]."""
        norms: Tensor = torch.linalg.vector_norm(self.down.weight.detach(), dim=0, dtype=torch.float32)
        return norms


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


class Statistic(Protocol):
    """A sum over a prompt's tokens, kept per row and neuron."""

    tokens: Tensor
    """Prompt tokens that counted, per row: int64 [B]."""

    def add(self, a: Tensor, mask: Tensor) -> None:
        """Add activations a [B, T, F] of the tokens where mask [B, T] is true."""

    def value(self) -> Tensor:
        """The statistic of the tokens so far: float32 [B, F]."""

    def take(self, rows: Tensor) -> None:
        """Let row i be what row rows[i] was: int64 [B]. Rows move where a cache's do."""


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """One layer of a decoder around its FFN, for kernels that run a whole decode step.

    ``h = h + out(attention(in(h)))`` and ``h = h + out(ffn(in(h)))``; a norm "sum" comes after the addition. A norm
    that a layer does not have is None.

    Attributes
    ----------
    query, key, value, output : nn.Linear
        Projections of the attention.
    name, ffn_name : str
        Paths of attention and FFN in the model.
    scale, softcap : float
        Factor of the attention scores; bound c of ``c·tanh(score / c)``, 0 for none.
    window : int or None
        Tokens that a token sees, itself among them; None is all.
    query_norm, key_norm : nn.Module or None
        Norms of each head.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    name: str
    ffn_name: str
    scale: float
    softcap: float = 0.0
    window: int | None = None
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None
    attention_in: nn.Module | None = None
    attention_out: nn.Module | None = None
    attention_sum: nn.Module | None = None
    ffn_in: nn.Module | None = None
    ffn_out: nn.Module | None = None
    ffn_sum: nn.Module | None = None


@dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder as a decode step of one token sees it.

    Attributes
    ----------
    layers : tuple of DecoderLayer
        All layers.
    heads, kv_heads, head_dim : int
        Of the attention.
    head : nn.Linear
        The language model's head.
    embed : callable
        Token ids and positions, int64 [1, 1] each -> hidden state [1, 1, D].
    rotary : callable or None
        Hidden state and positions -> cosines and sines [1, 1, R]; None without rotary positions.
    last, project : nn.Module or None
        Norm after the last layer; linear between it and the head.
    softcap : float
        Bound of the logits, 0 for none.
    """

    layers: tuple[DecoderLayer, ...]
    heads: int
    kv_heads: int
    head_dim: int
    head: nn.Linear
    embed: Callable[[Tensor, Tensor], Tensor]
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    last: nn.Module | None = None
    project: nn.Linear | None = None
    softcap: float = 0.0


@dataclass(frozen=True)
class Family:
    """Where a decoder's FFN lives, said in dotted paths.

    Attributes
    ----------
    name : str
        Registered name.
    model_types : tuple of str
        Values of ``config.model_type`` that belong to it.
    layers : str
        Path from the model to its list of layers.
    up, down, act : str
        Paths from a layer to the linears and the activation function; `down` is the linear that consumes z.
    gate : str or None
        Path to the gate; None for a plain FFN.
    block : str or None
        Path to the module whose forward is the whole FFN; None where the layer calls the linears itself.
    attention : str
        Path to the attention module.
    decoder : callable or None
        Describes a model's whole decode step; None where only its FFN is known.
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    up: str
    down: str
    act: str
    gate: str | None = None
    block: str | None = None
    attention: str = "self_attn"
    decoder: Callable[[Any], Decoder] | None = None
