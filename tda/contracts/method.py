"""What every method is: its options, what it is fitted with, and where it leaves something out."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from abc import ABC
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from tda.cases import MethodSpec
from tda.contracts.options import check_quantization, check_sparsity
from tda.fitting.collect import Collector
from tda.names import Execution
from tda.quantizers import QUANTIZERS, Quantizer
from tda.results import write_whole
from tda.thresholds import THRESHOLDS_FILE, Thresholds
from tda.view import FFN, Place, Projection, Site, Source, SquaresSum, Statistic

EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
METHOD_FILE = "method.json"
Scope = Literal["model", "prompt", "token"]
Kind = Literal["dense", "prompt", "token", "threshold"]
"""What a method does in decode: leave nothing out; keep sets fixed before; keep sets of each token, by any rule or by a
cut, which kernels know."""
Window = Literal["prompt", "request"]


# long: the public contract of a method, each part of it explained
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
            tokenizer: each is cut where the model's context ends.
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

    def statistics(self, ffns: Sequence[Any], sweep: SquaresSum) -> list[Statistic | None]:
        """A fresh statistic of each place, which adds squares by a kernel; None where the prompt does not matter."""
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
