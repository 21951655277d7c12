"""Dense with weights in eight bits: what a user would run instead of leaving neurons out."""

from dataclasses import dataclass, field
from typing import ClassVar

from tda.contracts import Method, Scope
from tda.methods import METHODS
from tda.names import Execution
from tda.view import Projection


@METHODS.register("int8")
@dataclass(frozen=True, kw_only=True)
class Int8(Method):
    """Leave nothing out, and round the weights of every linear, the head too, to int8 with a scale for each row.

    See `tda.quantizers.int8`. Other methods take the same weights by their option ``quantization="int8"``.
    """

    name: ClassVar[str] = "int8"
    scope: ClassVar[Scope] = "model"
    skips: ClassVar[tuple[Projection, ...]] = ()

    sparsity: float | None = field(default=None, init=False)
    quantization: str | None = field(default="int8", init=False)

    def __post_init__(self) -> None:
        """There is nothing to check."""

    @property
    def executions(self) -> tuple[Execution, ...]:
        """On the kernels, or "masked": dense arithmetic with what the rounded weights stand for."""
        return ("indexed", "masked")
