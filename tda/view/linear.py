"""Linears of a model, and where on them a kept set lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from tda.as_built import is_transposed, linear_problem, tensor_problem
from tda.quantizers import Quantizer

Axis = Literal["in", "out"]


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
        return self.within(self.parameter)

    def within(self, held: Tensor) -> Tensor:
        """Its weight in a tensor like the one that holds it: a view, [N, K]."""
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

    def nbytes(self, share: float = 1.0, axis: Axis = "in", quantizer: Quantizer | None = None) -> float:
        """Bytes that a decode step reads where it reads a share of the inputs, or of the outputs.

        Parameters
        ----------
        share : float
            Share that is read.
        axis : {"in", "out"}
            Columns of the weight, with all of the bias, or rows, with their bias.
        quantizer : Quantizer, optional
            What the weight is stored as.
        """
        weight = self.weight
        each = weight.element_size() if quantizer is None else quantizer.bytes_per_weight
        beside = 0 if quantizer is None else quantizer.bytes_per_row * len(weight)
        beside += 0 if self.bias is None else self.bias.nbytes
        return share * weight.numel() * each + beside * (share if axis == "out" else 1.0)

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


@dataclass(frozen=True)
class Site:
    """An axis of a linear, of which a kept set picks parts: columns of the weight by its inputs, rows by its outputs.

    Attributes
    ----------
    layer : int
        Layer number, from 0.
    projection : str
        "gate", "up" or "down" of the layer's feed-forward network; of another linear its path in the layer.
    axis : {"in", "out"}
        Inputs or outputs.
    expert : int or None
        Its number among the layer's experts.
    linear : Linear
        The linear itself.
    """

    layer: int
    projection: str
    axis: Axis
    expert: int | None
    linear: Linear = field(compare=False, repr=False)

    def nbytes(self, share: float, quantizer: Quantizer | None = None) -> float:
        """Bytes of the linear that a decode step reads where it keeps a share of the axis."""
        return self.linear.nbytes(share, self.axis, quantizer)
