"""What of a model a method, a kernel and the engine see: its feed-forward networks, and its decoder around them.

Shapes: B rows, T tokens, F neurons (intermediate size), D hidden size, L layers. z is the neuron activation, the
input of the down projection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tda.as_built import is_transposed, linear_problem, tensor_problem

Source = Literal["z", "gate", "up"]
See = Callable[[Mapping[str, Tensor], Tensor | None], Tensor | None]
"""Shown the tensors of one call of an FFN by name ("x", "z", "gate", "up"), and which of the forward's tokens they are
(int64 [n]; None is all of them, in order); gives a masked z, or None."""


class Handle(Protocol):
    """What ends a watch."""

    def remove(self) -> None:
        """End it."""


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
    def problem(self) -> str | None:
        """Why it does not just multiply by a weight that can be read where it lies; None if it does."""
        if self.expert is None:
            return linear_problem(self.module)
        reason = tensor_problem(self.parameter)
        return None if reason is None else f"has a weight that {reason}"

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
        if self.module._parameters.get(self.name) is not None:
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
        Its number among the model's networks, from 0: the layer's, where each has one.
    gate, up, down : Linear
        Weights [F, D], [F, D] and [D, F]; gate is None in a plain FFN.
    act : nn.Module
        The activation function.
    block : nn.Module or None
        The module whose forward is the whole FFN; None where the layer calls the linears itself (OPT).
    layer : int
        Layer number, from 0.
    experts : Experts or None
        The layer's mixture of experts, where it is one of them.
    """

    index: int
    gate: Linear | None
    up: Linear
    down: Linear
    act: nn.Module
    block: nn.Module | None
    layer: int
    experts: Experts | None = None

    @property
    def F(self) -> int:  # noqa: N802
        """Number of neurons."""
        return self.up.out_features

    @property
    def D(self) -> int:  # noqa: N802
        """Hidden size."""
        return self.up.in_features

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(linear.weight.numel() for linear in self.linears)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.up.weight.device

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

    def watch(self, see: See, sources: Collection[str] = ("z",), *, inputs: bool = False) -> Iterator[Handle]:
        """Let somebody see what passes, and mask z; the handles end that.

        Parameters
        ----------
        see : callable
            Shown the tensors of each call.
        sources : collection of {"z", "gate", "up"}
            The activations that are to be shown.
        inputs : bool
            Whether x is to be shown.
        """
        if self.experts is not None:
            yield self.experts.watch(self, see)
            return
        passing: dict[str, Tensor] = {}

        def entering(module: nn.Module, args: tuple[Any, ...]) -> None:
            passing["x"] = args[0]

        def activated(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            passing["gate"] = output

        def projected(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            passing["up"] = self.up.output(output)

        def before_down(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            if args[0].shape[-1] != self.F:
                return None
            masked = see({**passing, "z": args[0]}, None)
            passing.clear()
            return None if masked is None else (masked,)

        if inputs:
            yield (self.block or self.up.module).register_forward_pre_hook(entering)
        if "gate" in sources:
            yield self.act.register_forward_hook(activated)
        if "up" in sources:
            yield self.up.module.register_forward_hook(projected)
        yield self.down.module.register_forward_pre_hook(before_down)

    def activation(self, x: Tensor) -> Tensor:
        """z for inputs x: [..., D] -> [..., F]."""
        return self.parts(x)["z"]

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """The activations for inputs x, by their names: [..., D] -> [..., F] each."""
        up = nn.functional.linear(x, self.up.weight, self.up.bias)
        if self.gate is None:
            return {"up": up, "z": _tensor(self.act(up))}
        gate = _tensor(self.act(nn.functional.linear(x, self.gate.weight, self.gate.bias)))
        return {"gate": gate, "up": up, "z": gate * up}

    @cached_property
    def down_norms(self) -> Tensor:
        """‖W_down[:, j]‖₂ of each neuron: float32 [F]."""
        norms: Tensor = torch.linalg.vector_norm(self.down.weight.detach(), dim=0, dtype=torch.float32)
        return norms


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


@dataclass(frozen=True, eq=False)
class LinearInput:
    """The input of one linear, of which a method may leave parts out.

    Attributes
    ----------
    index : int
        Its number among the model's linears, from 0.
    linear : Linear
        The linear.
    layer : int
        Layer number, from 0.
    name : str
        The linear's path in the layer.
    """

    index: int
    linear: Linear
    layer: int
    name: str

    experts: ClassVar[None] = None

    @property
    def F(self) -> int:  # noqa: N802
        """Number of inputs."""
        return self.linear.in_features

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.linear.weight.numel()

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.linear.weight.device

    def watch(self, see: See, sources: Collection[str] = ("z",), *, inputs: bool = False) -> Iterator[Handle]:
        """Let somebody see what comes in, as "z" and "x", and mask it; the handles end that."""

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            masked = see({"x": args[0], "z": args[0]}, None)
            return None if masked is None else (masked,)

        yield self.linear.module.register_forward_pre_hook(before)


Place = FFN | LinearInput
"""Where a method leaves something out: the neurons of a feed-forward network, or the inputs of a linear."""


class Experts:
    """The experts of one layer.

    While somebody watches one of them, they are computed here, one after another, as transformers' own plain code does.

    Parameters
    ----------
    module : nn.Module
        Its forward takes tokens [N, D], their experts [N, K] and the weights of those [N, K], and gives [N, D].
    chosen : int
        Experts that a token passes, K.

    Attributes
    ----------
    ffns : list of FFN
        One for each.
    """

    def __init__(self, module: nn.Module, chosen: int) -> None:
        self.module = module
        self.chosen = chosen
        self.ffns: list[FFN] = []
        self._watching: dict[int, list[See]] = {}

    def reach(self, rows: int) -> float:
        """Share of the experts that a step of so many rows reads, where all are as likely: of one row K of them."""
        return 1 - (1 - self.chosen / len(self.ffns)) ** rows

    def watch(self, ffn: FFN, see: See) -> Handle:
        """Let somebody see what passes one of them."""
        if not self._watching:
            self.module.forward = self.compute
        self._watching.setdefault(ffn.index, []).append(see)
        return _Unwatch(self, ffn.index, see)

    def forget(self, index: int, see: See) -> None:
        """Let somebody see no more; when nobody does, the module computes again."""
        self._watching[index].remove(see)
        if not any(self._watching.values()):
            self._watching.clear()
            del self.module.forward

    def compute(self, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """What the module computes: [N, D]."""
        output = torch.zeros_like(hidden)
        for number, ffn in enumerate(self.ffns):
            tokens, place = torch.where(experts == number)
            if not len(tokens):
                continue
            x = hidden[tokens]
            passing = ffn.parts(x)
            for see in self._watching.get(ffn.index, ()):
                masked = see({"x": x, **passing}, tokens)
                passing = passing if masked is None else {**passing, "z": masked}
            y = nn.functional.linear(passing["z"], ffn.down.weight, ffn.down.bias) * weights[tokens, place, None]
            output.index_add_(0, tokens, y.to(output.dtype))
        return output


@dataclass(frozen=True)
class _Unwatch:
    experts: Experts
    expert: int
    see: See

    def remove(self) -> None:
        self.experts.forget(self.expert, self.see)


def by_row(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where tokens of a batch, given by their numbers in it, stand when each row's come one after another.

    Parameters
    ----------
    tokens : Tensor
        Numbers of tokens in the flattened batch, ascending: int64 [n].
    mask : Tensor
        Which tokens of the batch are no padding: bool [B, T].

    Returns
    -------
    Tensor, Tensor
        Places among `tokens`, int64 [B, M], and which of those are meant, bool [B, M].
    """
    rows = tokens // mask.shape[1]
    counts = torch.bincount(rows, minlength=len(mask))
    starts = counts.cumsum(0) - counts
    column = torch.arange(int(counts.max()), device=tokens.device)
    inside = column < counts.unsqueeze(1)
    places = (starts.unsqueeze(1) + column).clamp(max=len(tokens) - 1)
    return places, inside & mask.flatten()[tokens][places]


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
