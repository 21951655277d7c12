"""Where a model may leave something out: the neurons of feed-forward networks, experts among them, or linears' inputs.

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

from tda.view.linear import Linear, Site

Source = Literal["z", "gate", "up"]
Projection = Literal["gate", "up", "down"]
See = Callable[[Mapping[str, Tensor], Tensor | None], Tensor | None]
"""Shown the tensors of one call of an FFN by name ("x", "z", "gate", "up"), and which of the forward's tokens they are
(int64 [n]; None is all of them, in order); gives a masked z, or None."""


class Handle(Protocol):
    """What ends a watch."""

    def remove(self) -> None:
        """End it."""


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

    def reach(self, rows: int) -> float:
        """Fraction of it that a step of so many rows reads: of an expert, how likely a row reaches it."""
        return 1.0 if self.experts is None else self.experts.reach(rows)

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

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where a kept set of neurons lies: on the outputs of gate and up, and on the inputs of down."""
        return tuple(
            Site(self.layer, name, "in" if name == "down" else "out", linear.expert, linear)
            for name, linear in self.named_linears()
        )

    def named_linears(self) -> Iterator[tuple[Projection, Linear]]:
        """The FFN's linears by name."""
        named: tuple[tuple[Projection, Linear | None], ...] = (
            ("gate", self.gate),
            ("up", self.up),
            ("down", self.down),
        )
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
        weight = self.down.weight.detach()
        wide = torch.promote_types(weight.dtype, torch.float32)  # torch narrows no float64 on the way
        norms: Tensor = torch.linalg.vector_norm(weight, dim=0, dtype=wide).float()
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

    def reach(self, rows: int) -> float:
        """Fraction of it that a step of so many rows reads."""
        return 1.0

    @property
    def linears(self) -> Iterator[Linear]:
        """The linear."""
        yield self.linear

    @property
    def sites(self) -> tuple[Site, ...]:
        """The linear's inputs."""
        return (Site(self.layer, self.name, "in", None, self.linear),)

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
        self._own: Any = None  # a forward that was the module's own

    def reach(self, rows: int) -> float:
        """Share of the experts that a step of so many rows reads, where all are as likely: of one row K of them."""
        return 1 - (1 - self.chosen / len(self.ffns)) ** rows

    def watch(self, ffn: FFN, see: See) -> Handle:
        """Let somebody see what passes one of them."""
        if not self._watching:
            self._own = vars(self.module).get("forward")
            self.module.forward = self.compute
        self._watching.setdefault(ffn.index, []).append(see)
        return _Unwatch(self, ffn.index, see)

    def forget(self, index: int, see: See) -> None:
        """Let somebody see no more; when nobody does, the module computes again."""
        self._watching[index].remove(see)
        if not any(self._watching.values()):
            self._watching.clear()
            if self._own is None:
                del self.module.forward
            else:
                self.module.forward = self._own

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
