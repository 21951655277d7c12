"""What methods, kernels and the engine agree on.

Shapes: B rows, T tokens, F neurons (intermediate size), D hidden size, L layers. z is the neuron activation, the
input of the down projection.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from tda.cases import MethodSpec
from tda.fitting.allocate import at_level, equal_error
from tda.fitting.collect import Collector, TokenCollector
from tda.names import Allocation, Execution
from tda.quantizers import QUANTIZERS, Quantizer
from tda.results import write_whole
from tda.thresholds import Thresholds
from tda.view import FFN, Place, Projection, Site, Source, Statistic

EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
METHOD_FILE, THRESHOLDS_FILE = "method.json", "thresholds.json"
Sweep = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], bool]
"""Kernel that adds to sums [B, F] the squares of a [B, T, F] where mask [B, T], times weights [F], relative or not.

It says whether it could."""
Scope = Literal["model", "prompt", "token"]
Kind = Literal["dense", "prompt", "token", "threshold"]
"""What a method does in decode: leave nothing out; keep sets fixed before; keep sets of each token, by any rule or by a
cut, which kernels know."""
Rows = Literal["per_row", "shared"]
Window = Literal["prompt", "request"]


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


def check_quantization(name: object) -> None:
    """Raise ValueError if a name is that of no quantizer of weights; None is none."""
    if name is not None:
        check_choice("quantization", name, tuple(QUANTIZERS))


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
    kind : {"dense", "prompt", "token", "threshold"}
        What it does in decode.
    scope : {"model", "prompt", "token"}
        How often it chooses: once, once per prompt, or for every decode token.
    skips : tuple of {"gate", "up", "down"}
        Projections of a feed-forward network that a decode step needs to read for kept neurons only.
    fast : bool
        Whether any execution really skips what it leaves out. Where not, it has a quality and no speed.
    not_calibrated : frozenset of str
        Fields that what it is fitted with does not depend on, beside `quantization`.
    unsaid : frozenset of str
        Options that a spec leaves out where they are not given.
    window : {"prompt", "request"}
        What a document of its calibration text is as long as: a prompt, or a prompt and its answer.
    in_presets : bool
        Whether presets measure it unasked.
    instead_of_sparsity : str or None
        A field that may be given in place of a sparsity.
    quantization : str or None
        Quantizer of the model's weights, prompt and decode alike, by its name ("int8"); None is none. Thresholds are
        those of the model as it is.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = "dense"
    scope: ClassVar[Scope]
    skips: ClassVar[tuple[Projection, ...]] = ("gate", "up", "down")
    fast: ClassVar[bool] = True
    not_calibrated: ClassVar[frozenset[str]] = frozenset({"rows", "min_keep", "max_keep"})
    unsaid: ClassVar[frozenset[str]] = frozenset({"quantization", "prior_tokens"})
    window: ClassVar[Window] = "prompt"
    in_presets: ClassVar[bool] = True
    instead_of_sparsity: ClassVar[str | None] = None

    sparsity: float | None = 0.5
    quantization: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_sparsity(self.sparsity))
        check_quantization(self.quantization)

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
        """What may be chosen of it but the sparsity, by name; what is unsaid is left out where it is not given."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}
        fields.pop("sparsity", None)
        return {name: value for name, value in fields.items() if value or name not in self.unsaid}

    @property
    def spec(self) -> MethodSpec:
        """Name and all options, so that equal methods have equal specs."""
        takes = any(field.name == "sparsity" and field.init for field in dataclasses.fields(self))
        dial = {"sparsity": self.sparsity} if takes and self.sparsity is not None else {}
        return MethodSpec(name=self.name, options={**dial, **self.options})

    @property
    def calibrated(self) -> dict[str, Any]:
        """What its thresholds depend on: name, and the fields that matter to calibration."""
        fields = {"sparsity": self.sparsity, **self.options}
        without = self.not_calibrated | {"quantization"}
        return {"name": self.name, **{name: value for name, value in fields.items() if name not in without}}

    # Fitting.

    def collector(self, layers: int) -> Collector | None:
        """What the next pass over calibration text is to fill; None where the method lacks nothing any more."""
        return None

    def shares(self, curves: Sequence[Any]) -> Sequence[float]:
        """Share that each layer is to leave out, by the error curves that its collector found: the same for each."""
        assert self.sparsity is not None
        return [self.sparsity] * len(curves)

    @property
    def needs_fit(self) -> bool:
        """Whether it must be fitted on calibration text before it can choose."""
        return dataclasses.replace(self).collector(0) is not None

    @property
    def thresholds(self) -> Thresholds | None:
        """What it was fitted with; None where it was not."""
        found: Thresholds | None = self.__dict__.get("_thresholds")
        return found

    @property
    def fitted(self) -> Thresholds:
        """What it was fitted with.

        Raises
        ------
        ValueError
            If it was not.
        """
        if self.thresholds is None:
            raise ValueError(
                f"method {self.name!r} needs thresholds: method.fit(model, texts, tokenizer) gives a fitted copy"
            )
        return self.thresholds

    def is_served_by(self, thresholds: Thresholds) -> bool:
        """Whether thresholds were made for this method; an option that they do not tell had its default."""
        options = {name: value for name, value in thresholds.method.items() if name != "name"}
        try:
            made_for = type(self)(**options).calibrated if thresholds.method["name"] == self.name else None
        except (TypeError, ValueError):
            made_for = None
        return made_for == self.calibrated

    def with_thresholds(self, thresholds: Thresholds) -> Self:
        """A copy that is fitted with thresholds made before.

        Raises
        ------
        TypeError, ValueError
            If they are none, or were made for another method or other options.
        """
        if not isinstance(thresholds, Thresholds):
            raise TypeError(f"thresholds must be a tda.Thresholds, got {type(thresholds).__name__}")
        if not self.is_served_by(thresholds):
            thresholds.check_method(self.calibrated)
        fitted = copy.copy(self)
        object.__setattr__(fitted, "_thresholds", thresholds)
        object.__setattr__(fitted, "_numbers", {})
        return fitted

    def numbers(self, field: Literal["scores", "prior"], ffn: FFN, device: torch.device) -> Tensor:
        """What it was fitted with for a network's neurons, on a device from the first use on: float32 [F]."""
        thresholds, place = self.fitted, (field, ffn.index, device)
        found: dict[Any, Tensor] = self.__dict__["_numbers"]
        if place not in found:
            with torch.inference_mode(False):
                found[place] = torch.tensor(getattr(thresholds, field)[ffn.index], device=device)
        return found[place]

    def fit(self, model: nn.Module, data: Iterable[Any], tokenizer: Any = None) -> Self:
        """Fit the method on calibration text.

        Parameters
        ----------
        model : nn.Module
            A supported decoder.
        data : iterable
            Batches ``{"input_ids": [B, T], "attention_mask": [B, T]}``, a row a document; or texts (str), with a
            tokenizer.
        tokenizer : object, optional
            Of the model, where texts are given.

        Returns
        -------
        Method
            A fitted copy; a method that needs no text is returned as it is.

        Raises
        ------
        TypeError, ValueError
            As `tda.calibrate`.
        """
        # The pass over the model stands floors above: it is looked up when it is called.
        fitted: Self = importlib.import_module("tda.calibration").fit(model, self, data, tokenizer)
        return fitted

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the method into a folder, which is made where it is missing; `tda.load_method` reads it.

        ``method.json`` is its spec, ``thresholds.json`` what it was fitted with.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        if self.thresholds is None:
            (place / THRESHOLDS_FILE).unlink(missing_ok=True)
        else:
            self.thresholds.save(place / THRESHOLDS_FILE)
        write_whole(place / METHOD_FILE, self.spec.model_dump_json() + "\n")

    # Running.

    @property
    def selects(self) -> bool:
        """Whether it keeps some neurons and leaves out others."""
        return self.kind in ("prompt", "token", "threshold")

    def statistics(self, ffns: Sequence[FFN], sweep: Sweep) -> list[Statistic | None]:
        """A fresh statistic of each layer, which adds squares by a kernel; None where the prompt does not matter."""
        return [None] * len(ffns)

    @property
    def executions(self) -> tuple[Execution, ...]:
        """The executions that it can run in, the one that skips first."""
        if not self.fast:
            return ("masked",)
        return ("indexed", "masked") if self.scope == "token" else ("indexed", "compact", "masked")

    def places(self, model: nn.Module, ffns: Sequence[FFN]) -> Sequence[Place]:
        """Where in a model it leaves something out: the neurons of its feed-forward networks."""
        return ffns

    def sites(self, place: Place) -> tuple[Site, ...]:
        """Where the kept set of a place lies: the axes of linears of which a decode step needs to read no more."""
        return tuple(site for site in place.sites if site.projection in self.skips)

    @property
    def quantizer(self) -> Quantizer | None:
        """What the model's linears compute with in place of their own weights; None is nothing."""
        return None if self.quantization is None else QUANTIZERS[self.quantization]

    def check(self, ffn: FFN) -> None:
        """Raise ValueError if this method is not defined for such an FFN."""
        if ffn.gate is None and self.activation != "z":
            raise ValueError(
                f"method {self.name!r} looks at {self.activation!r}, which a plain FFN lacks; it needs a gated FFN"
            )


@dataclass(frozen=True, kw_only=True)
class PromptMethod(Method):
    """A method whose set is fixed during decode: chosen once per prompt, or once for the model."""

    kind: ClassVar[Kind] = "prompt"
    scope: ClassVar[Scope] = "prompt"

    @property
    def knows_unseen(self) -> bool:
        """Whether it can choose of an expert that no token of a prompt reached. Where not, that one keeps all."""
        return False

    def new_statistic(self, ffn: FFN) -> Statistic | None:
        """Return a fresh statistic to be filled in prefill; None where the prompt's activations do not matter."""
        return None

    def statistics(self, ffns: Sequence[FFN], sweep: Sweep) -> list[Statistic | None]:
        """A fresh statistic of each layer, which adds squares by a kernel; None where the prompt does not matter."""
        statistics: list[Any] = [self.new_statistic(ffn) for ffn in ffns]
        for statistic in statistics:
            if statistic is not None:
                statistic.sweep = sweep
        return statistics

    @abstractmethod
    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """Score the neurons of one layer: float32 [B, F], or [1, F] where all rows share one set."""

    def keep(self, ffn: FFN, scores: Tensor, prompt: Prompt) -> Tensor:
        """Turn scores [B, F] into kept sets: bool [B, F]. By default the top k, k from the sparsity."""
        assert self.sparsity is not None
        return keep_top(scores, kept_count(self.sparsity, ffn.F))

    def select(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """Kept set of one layer for a batch of prompts: bool [B, F]."""
        shape = (prompt.rows, ffn.F)
        if self.keeps_all:
            return torch.ones(shape, dtype=torch.bool, device=prompt.tokens.device)
        kept = self.keep(ffn, self.scores(ffn, statistic, prompt), prompt).expand(shape)
        if ffn.experts is None or statistic is None or self.knows_unseen:
            return kept
        return kept | (statistic.tokens == 0).unsqueeze(1)  # of an expert that a prompt did not reach nothing is known


@dataclass(frozen=True, kw_only=True)
class PriorMethod(PromptMethod):
    """A prompt-wise method over mean squares of a relative statistic, which a prior may shrink to the model's own.

    S_j² = (Σ_t c_tj² + prior_tokens·m_j) / (T + prior_tokens), c the method's relative statistic and m_j its mean
    square over calibration windows: as if so many more tokens had been seen. The prior is ours: no paper has it.

    Attributes
    ----------
    prior_tokens : float
        Tokens that the prior is worth; 0 is the method as published.
    """

    prior_tokens: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= check_number("prior_tokens", self.prior_tokens) < math.inf:
            raise ValueError(f"prior_tokens is a count of tokens, 0 or more; got {self.prior_tokens}")

    @property
    def window(self) -> Window:  # type: ignore[override]
        """A prior is of whole requests."""
        return "request" if self.prior_tokens else "prompt"

    @property
    def knows_unseen(self) -> bool:
        """By its prior."""
        return self.prior_tokens > 0

    @property
    def lacks_prior(self) -> bool:
        """Whether it needs a prior and has none."""
        return self.prior_tokens > 0 and not (self.thresholds and self.thresholds.prior)

    def squares(self, ffn: FFN, statistic: Statistic) -> tuple[Tensor, Tensor]:
        """Sums of squares [B, F] and their tokens [B], the prior among them."""
        if not self.prior_tokens:
            return statistic.value(), statistic.tokens
        prior = self.numbers("prior", ffn, statistic.tokens.device)
        return statistic.value() + self.prior_tokens * prior, statistic.tokens + self.prior_tokens


@dataclass(frozen=True, kw_only=True)
class TokenMethod(Method):
    """A method that chooses anew for every decode token."""

    kind: ClassVar[Kind] = "token"
    scope: ClassVar[Scope] = "token"

    @abstractmethod
    def importance(self, ffn: Any, a: Tensor) -> Tensor:
        """Score what a place has, a token's neurons or inputs, from its activation: [..., F] -> float32 [..., F]."""

    @abstractmethod
    def keep(self, ffn: Any, importance: Tensor) -> Tensor:
        """Turn importance [..., F] into kept sets: bool [..., F]."""

    def select(self, ffn: Place, a: Tensor) -> Tensor:
        """Kept set of each token: [..., F] -> bool [..., F]."""
        if self.keeps_all:
            return torch.ones_like(a, dtype=torch.bool)
        return self.keep(ffn, self.importance(ffn, a))


@dataclass(frozen=True, kw_only=True)
class ThresholdMethod(TokenMethod):
    """A per-token method that keeps what reaches a cut: abs(a)·factor ≥ cut of the layer. Kernels know this rule."""

    kind: ClassVar[Kind] = "threshold"

    def collector(self, layers: int) -> Collector | None:
        """Importance of every neuron and token."""
        return None if self.thresholds else TokenCollector(self.importance, layers)

    def factors(self, ffn: FFN) -> Tensor | None:
        """Factor of each neuron: float32 [F]; None is 1."""
        return None

    def importance(self, ffn: FFN, a: Tensor) -> Tensor:
        """abs(a)·factor: [..., F] -> float32 [..., F]."""
        factors = self.factors(ffn)
        return a.abs().float() if factors is None else a.abs().float() * factors

    def keep(self, ffn: FFN, importance: Tensor) -> Tensor:
        """Importance at or above the layer's threshold; a nan is kept, so that logits tell of it."""
        return ~(importance < self.cut(ffn))

    def cut(self, ffn: FFN) -> float:
        """The layer's threshold; everything reaches it where nothing is to be left out."""
        if self.keeps_all:
            return 0.0
        return self.fitted.cut(ffn.index)


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
        check_quantization(self.quantization)
        if not 0 < check_number("cett", self.cett) < 1:
            raise ValueError(f"cett is a relative error, 0 < cett < 1; got {self.cett}")
        if self.allocation != "equal_error":
            raise ValueError(
                f"cett is one error level for all layers; it needs allocation 'equal_error', got {self.allocation!r}"
            )

    def shares(self, curves: Sequence[Any]) -> Sequence[float]:
        """The same for each layer, or what one error level for all of them gives."""
        if self.cett is not None:
            return at_level(curves, self.cett)
        if self.allocation == "equal_error":
            assert self.sparsity is not None
            return equal_error(curves, self.sparsity)
        return super().shares(curves)


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
