"""What methods, families, kernels and the engine agree on.

Shapes: B rows, T tokens, F neurons (intermediate size), D hidden size, L layers. z is the neuron activation, the
input of the down projection.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from tda.names import Allocation, Execution

if TYPE_CHECKING:
    from tda.thresholds import Thresholds

EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
Scope = Literal["model", "prompt", "token"]
Source = Literal["z", "gate", "up"]
Rows = Literal["per_row", "shared"]


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


@dataclass(frozen=True)
class Prompt:
    """What a selection may know of a batch of prompts besides its statistic.

    Attributes
    ----------
    tokens : Tensor
        Prompt tokens per row, padding left out: int64 [B].
    key : callable
        Gives for a row a number that depends on that row's own tokens only.
    """

    tokens: Tensor
    key: Callable[[int], int]

    @property
    def rows(self) -> int:
        """Batch rows."""
        return len(self.tokens)


@dataclass(frozen=True)
class Reads:
    """Which projections a decode step reads for kept neurons only; the others it reads whole."""

    gate: bool
    up: bool
    down: bool


def check_sparsity(sparsity: object) -> float:
    """Return a valid sparsity as float.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or not in 0 <= sparsity < 1.
    """
    number = check_number("sparsity", sparsity)
    if not 0 <= number < 1:
        raise ValueError(f"sparsity is the share of neurons left out, 0 <= sparsity < 1; got {sparsity}")
    return float(number)


def check_number(name: str, value: object) -> int | float:
    """Return an option's value; TypeError if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def kept_count(sparsity: float, F: int) -> int:
    """Neurons kept of F: F minus floor(sparsity·F + ½)."""
    return F - math.floor(sparsity * F + 0.5)


def keep_top(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` largest scores of each row; ties keep the lower index.

    Parameters
    ----------
    scores : Tensor
        [..., F]
    count : int
        How many to keep.

    Returns
    -------
    Tensor
        bool [..., F]
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = torch.topk(scores, count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, level = scores > least, scores == least
    room = count - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def check_choice(name: str, value: object, accepted: tuple[str, ...]) -> None:
    """Raise ValueError unless value is one of the accepted ones."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to leave neurons out of decode: a frozen dataclass whose fields are its options.

    Attributes
    ----------
    name : str
        Its registered name.
    scope : {"model", "prompt", "token"}
        How often it chooses: once, once per prompt, or for every decode token.
    reads : Reads
        Which projections a kernel needs to read for kept neurons only.
    fast : bool
        Whether any execution really skips what it leaves out. Where not, it has a quality and no speed.
    needs_thresholds : bool
        Whether it needs an artifact of `tda.calibrate`.
    not_calibrated : frozenset of str
        Fields that its thresholds do not depend on.
    instead_of_sparsity : str or None
        A field that may be given in place of a sparsity.
    """

    name: ClassVar[str]
    scope: ClassVar[Scope]
    reads: ClassVar[Reads] = Reads(gate=True, up=True, down=True)
    fast: ClassVar[bool] = True
    needs_thresholds: ClassVar[bool] = False
    not_calibrated: ClassVar[frozenset[str]] = frozenset({"rows", "min_keep", "max_keep"})
    instead_of_sparsity: ClassVar[str | None] = None

    sparsity: float | None = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_sparsity(self.sparsity))

    @property
    def activation(self) -> Source:
        """The activation that it looks at: z, act(gate x), or up x."""
        return "z"

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is left out, whatever the thresholds."""
        return self.sparsity == 0

    @property
    def options(self) -> dict[str, Any]:
        """All fields but the sparsity, by name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if name != "sparsity"}

    @property
    def calibrated(self) -> dict[str, Any]:
        """What its thresholds depend on: name, and the fields that matter to calibration."""
        fields = {"sparsity": self.sparsity, **self.options}
        return {"name": self.name, **{k: v for k, v in fields.items() if k not in self.not_calibrated}}

    @property
    def executions(self) -> tuple[Execution, ...]:
        """The executions that it can run in, the one that skips first."""
        if not self.fast:
            return ("masked",)
        return ("indexed", "masked") if self.scope == "token" else ("indexed", "compact", "masked")

    def check(self, ffn: FFN) -> None:
        """Raise ValueError if this method is not defined for such an FFN."""
        if ffn.gate is None and self.activation != "z":
            raise ValueError(
                f"method {self.name!r} looks at {self.activation!r}, which a plain FFN lacks; it needs a gated FFN"
            )


@dataclass(frozen=True, kw_only=True)
class PromptMethod(Method):
    """A method whose set is fixed during decode: chosen once per prompt, or once for the model."""

    scope: ClassVar[Scope] = "prompt"

    def new_statistic(self, ffn: FFN) -> Statistic | None:
        """Return a fresh statistic to be filled in prefill; None where the prompt's activations do not matter."""
        return None

    @abstractmethod
    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt, thresholds: Thresholds | None) -> Tensor:
        """Score the neurons of one layer: float32 [B, F], or [1, F] where all rows share one set."""

    def keep(self, ffn: FFN, scores: Tensor, prompt: Prompt, thresholds: Thresholds | None) -> Tensor:
        """Turn scores [B, F] into kept sets: bool [B, F]. By default the top k, k from the sparsity."""
        assert self.sparsity is not None
        return keep_top(scores, kept_count(self.sparsity, ffn.F))

    def select(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt, thresholds: Thresholds | None) -> Tensor:
        """Kept set of one layer for a batch of prompts: bool [B, F]."""
        shape = (prompt.rows, ffn.F)
        if self.keeps_all:
            return torch.ones(shape, dtype=torch.bool, device=prompt.tokens.device)
        kept = self.keep(ffn, self.scores(ffn, statistic, prompt, thresholds), prompt, thresholds)
        return kept.expand(shape)


class Rounded(NamedTuple):
    """Weights in few bits.

    Attributes
    ----------
    values : Tensor
        int8 [N, K].
    scale : Tensor
        Factor of each row: float32 [N].
    """

    values: Tensor
    scale: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights that they stand for: [N, K]."""
        return (self.values * self.scale.unsqueeze(1)).to(dtype)


@dataclass(frozen=True, kw_only=True)
class WeightMethod(Method):
    """A method that leaves no neuron out, and reads the weights of linears in fewer bits."""

    scope: ClassVar[Scope] = "model"
    reads: ClassVar[Reads] = Reads(gate=False, up=False, down=False)

    sparsity: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """There is no sparsity to check."""

    @abstractmethod
    def round(self, weight: Tensor) -> Rounded:
        """Round weights [N, K]."""

    @abstractmethod
    def nbytes(self, weight: Tensor) -> int:
        """Bytes that a step reads of weights [N, K] when they are rounded."""

    @property
    def executions(self) -> tuple[Execution, ...]:
        """On the kernels, or "masked": dense arithmetic with what the rounded weights stand for."""
        return ("indexed", "masked")


@dataclass(frozen=True, kw_only=True)
class TokenMethod(Method):
    """A method that chooses anew for every decode token."""

    scope: ClassVar[Scope] = "token"

    @abstractmethod
    def importance(self, ffn: FFN, a: Tensor) -> Tensor:
        """Score a token's neurons from the activation it looks at: [..., F] -> float32 [..., F]."""

    @abstractmethod
    def keep(self, ffn: FFN, importance: Tensor, thresholds: Thresholds | None) -> Tensor:
        """Turn importance [..., F] into kept sets: bool [..., F]."""

    def select(self, ffn: FFN, a: Tensor, thresholds: Thresholds | None) -> Tensor:
        """Kept set of each token: [..., F] -> bool [..., F]."""
        if self.keeps_all:
            return torch.ones_like(a, dtype=torch.bool)
        return self.keep(ffn, self.importance(ffn, a), thresholds)


@dataclass(frozen=True, kw_only=True)
class ThresholdMethod(TokenMethod):
    """A per-token method that keeps what reaches a cut: abs(a)·weight ≥ cut of the layer. Kernels know this rule."""

    needs_thresholds: ClassVar[bool] = True

    def weights(self, ffn: FFN) -> Tensor | None:
        """Factor of each neuron: float32 [F]; None is 1."""
        return None

    def importance(self, ffn: FFN, a: Tensor) -> Tensor:
        """abs(a)·weight: [..., F] -> float32 [..., F]."""
        weights = self.weights(ffn)
        return a.abs().float() if weights is None else a.abs().float() * weights

    def keep(self, ffn: FFN, importance: Tensor, thresholds: Thresholds | None) -> Tensor:
        """Importance at or above the layer's threshold; a nan is kept, so that logits tell of it."""
        return ~(importance < self.cut(ffn, thresholds))

    def cut(self, ffn: FFN, thresholds: Thresholds | None) -> float:
        """The layer's threshold; everything reaches it where nothing is to be left out."""
        if self.keeps_all:
            return 0.0
        assert thresholds is not None
        return thresholds.cut(ffn.index)


@dataclass(frozen=True, kw_only=True)
class ErrorControlled(Method):
    """Options of the methods whose thresholds are controlled by the error they make (CETT).

    Attributes
    ----------
    sparsity : float or None
        Mean share left out over the layers; None where `cett` is given. 0.5 if neither is.
    allocation : {"uniform", "equal_error"}
        How layers share the sparsity: the same mean share for each, or one error level for all of them. The default is
        "uniform", and "equal_error" where `cett` is given, which is such a level.
    cett : float or None
        The error level itself, instead of a sparsity: the cumulative error of tail truncation, 0 < cett < 1.
    """

    needs_thresholds: ClassVar[bool] = True
    instead_of_sparsity: ClassVar[str | None] = "cett"

    sparsity: float | None = None
    allocation: Allocation | None = None
    cett: float | None = None

    def __post_init__(self) -> None:
        if self.allocation is None:
            object.__setattr__(self, "allocation", "uniform" if self.cett is None else "equal_error")
        check_choice("allocation", self.allocation, get_args(Allocation))
        if self.cett is None:
            if self.sparsity is None:
                object.__setattr__(self, "sparsity", 0.5)
            super().__post_init__()
            return
        if self.sparsity is not None:
            raise ValueError(
                f"give a sparsity or an error level, not both; got sparsity {self.sparsity}, cett {self.cett}"
            )
        if not 0 < check_number("cett", self.cett) < 1:
            raise ValueError(f"cett is a relative error, 0 < cett < 1; got {self.cett}")
        if self.allocation != "equal_error":
            raise ValueError(
                f"cett is one error level for all layers; it needs allocation 'equal_error', got {self.allocation!r}"
            )


Observer = Callable[[int, Tensor], None]
"""Told a layer's number and the sets, bool [N, F], that a per-token method kept of N tokens."""


class Executor(Protocol):
    """A fast path of one layer's FFN in decode."""

    def __call__(self, x: Tensor) -> Tensor:
        """FFN output for inputs x: [..., D] -> [..., D]."""


@runtime_checkable
class PromptExecutor(Executor, Protocol):
    """A fast path that takes a prompt's sets before it runs."""

    def load(self, kept: Tensor) -> None:
        """Take the kept neurons: bool [B, F]."""


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
