"""The dense model: the baseline of everything."""

from dataclasses import dataclass, field
from typing import ClassVar

from tda.contracts import Method, Reads, Scope
from tda.methods import METHODS
from tda.names import Execution


@METHODS.register("dense")
@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Leave nothing out.

    Attributes
    ----------
    dense_kernel : {"torch"}
        Kernels that run the linears: the model's own ("torch").
    """

    name: ClassVar[str] = "dense"
    scope: ClassVar[Scope] = "model"
    reads: ClassVar[Reads] = Reads(gate=False, up=False, down=False)

    sparsity: float | None = field(default=0.0, init=False)
    dense_kernel: str = "torch"

    def __post_init__(self) -> None:
        if self.dense_kernel != "torch":
            raise ValueError(f"dense_kernel must be 'torch', got {self.dense_kernel!r}")

    @property
    def executions(self) -> tuple[Execution, ...]:
        """Dense needs no execution of ours; any asked one means the model's own."""
        return ("auto", "masked", "compact", "indexed")
