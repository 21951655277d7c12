"""The dense model: the baseline of everything."""

from dataclasses import dataclass, field
from typing import ClassVar

from tda.contracts import Method, Scope, check_choice
from tda.methods import METHODS
from tda.names import Execution
from tda.view import Projection


@METHODS.register("dense")
@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Leave nothing out.

    Attributes
    ----------
    dense_kernel : {"torch", "own"}
        Kernels that run decode: the model's own ("torch"), or tda's, where they can run the model ("own").
    """

    name: ClassVar[str] = "dense"
    scope: ClassVar[Scope] = "model"
    skips: ClassVar[tuple[Projection, ...]] = ()

    sparsity: float | None = field(default=0.0, init=False)
    quantization: str | None = field(default=None, init=False)
    dense_kernel: str = "torch"

    def __post_init__(self) -> None:
        check_choice("dense_kernel", self.dense_kernel, ("torch", "own"))

    @property
    def executions(self) -> tuple[Execution, ...]:
        """Any may be asked; "masked" means the model's own kernels."""
        return ("auto", "masked", "compact", "indexed")
