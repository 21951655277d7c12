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

from tda.as_built import is_transposed


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear of a model, wherever its weights lie: ``y = weight x + bias``.

    Attributes
    ----------
    module : nn.Module
        Holds the parameters, and computes the linear: alone, or among others whose weights are fused with it.
    rows : slice or None
        Its outputs among those of a fused weight; None is all.
    expert : int or None
        Its place in weights of many experts, [E, N, K].
    name : str
        The weight's name in the module.
    """

    module: nn.Module
    rows: slice | None = None
    expert: int | None = None
    name: str = "weight"

    @cached_property
    def transposed(self) -> bool:
        """Whether the weight is stored [K, N]."""
        return is_transposed(self.module)

    @property
    def parameter(self) -> Tensor:
        """The tensor that holds the weight."""
        held: Tensor = getattr(self.module, self.name)
        return held

    @property
    def weight(self) -> Tensor:
        """A view of the weight: [N, K]."""
        held = self.parameter
        if self.expert is not None:
            held = held[self.expert]
        if self.transposed:
            held = held.t()
        return held if self.rows is None else held[self.rows]

    @property
    def bias(self) -> Tensor | None:
        """A view of the bias, [N]; experts have none."""
        held: Tensor | None = None if self.expert is not None else getattr(self.module, "bias", None)
        return held if held is None or self.rows is None else held[self.rows]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for the same linear of the same module."""
        rows = None if self.rows is None else (self.rows.start, self.rows.stop)
        return id(self.module), self.name, self.expert, rows

    @property
    def is_module(self) -> bool:
        """Whether it is all that its module computes."""
        return self.rows is None and self.expert is None

    @property
    def out_features(self) -> int:
        """Outputs."""
        return len(self.weight)

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.weight.shape[1]

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        """Views of weight and bias, as a module gives its own."""
        yield self.weight
        if self.bias is not None:
            yield self.bias

    def output(self, y: Tensor) -> Tensor:
        """Its part of its module's output: [..., N]."""
        return y if self.rows is None else y[..., self.rows]

    def lay(self, weight: Tensor) -> None:
        """Let the weight, all that its parameter holds, lie where an equal one does: [N, K]."""
        assert self.is_module
        self.parameter.data = weight.t() if self.transposed else weight


@dataclass(frozen=True, eq=False)
class FFN:
    """One layer's feed-forward network, as its family declares it.

    ``z = act(gate x) * (up x)`` where there is a gate, else ``z = act(up x)``; ``y = down z``; each linear may
    have a bias.

    Attributes
    ----------
    index : int
        Layer number, from 0.
    gate, up, down : Linear
        Weights [F, D], [F, D] and [D, F]; gate is None in a plain FFN.
    act : nn.Module
        The activation function.
    block : nn.Module or None
        The module whose forward is the whole FFN; None where the layer calls the linears itself (OPT).
    """

    index: int
    gate: Linear | None
    up: Linear
    down: Linear
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
    def inputs(self) -> list[Linear]:
        """The linears that make a neuron's activation: gate (where there is one), up."""
        return [linear for linear in (self.gate, self.up) if linear is not None]

    @property
    def linears(self) -> Iterator[Linear]:
        """The FFN's linears: gate (where there is one), up, down."""
        yield from (*self.inputs, self.down)

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that hold and compute its linears, each once."""
        return list({id(linear.module): linear.module for linear in self.linears}.values())

    def named_linears(self) -> Iterator[tuple[str, Linear]]:
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
    query, key, value, output : Linear
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

    query: Linear
    key: Linear
    value: Linear
    output: Linear
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
    head : Linear
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
    head: Linear
    embed: Callable[[Tensor, Tensor], Tensor]
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    last: nn.Module | None = None
    project: Linear | None = None
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
        Paths from a layer to the linears and the activation function; `down` is the linear that consumes z. Where a
        weight holds several linears, one below the other, its path says which: ``"mlp.gate_up_proj[1/2]"`` is the
        second half.
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
