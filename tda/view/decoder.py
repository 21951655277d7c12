"""A decoder around its feed-forward networks, and how a family says where everything lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tda.view.linear import Linear
from tda.view.places import Experts


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
    experts : callable or None
        Gives of a layer its experts, whose FFNs are all of the layer's: of families whose layers are mixtures.
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
    experts: Callable[[nn.Module], Experts] | None = None
