"""What a profile of a case says: phases, kernels, modules, memory, and the conditions they were taken under."""

from typing import Literal

from pydantic import Field

from tda.cases import Case, Frozen, Inputs
from tda.profiler.parts import FFN_PARTS, WEIGHT_PARTS
from tda.records import Commit, Flag, FlagName, Machine
from tda.telemetry import Telemetry

PROFILE_VERSION: Literal[1] = 1
PYTHON = "(python)"
"""In place of a kernel: the host's time between operators, in Python and in the framework's layers."""
GAPS = "(gaps between kernels)"
"""In place of a kernel: nothing ran on the device between two kernels of a step, though the second was launched."""
HOST = "(host)"
"""In place of a kernel: the device waited for the host: before a step's first kernel and after its last one, and where
a kernel was launched only when the device had nothing left to run."""
RowKey = tuple[str, str, str, str]
"""Phase, part, operator and kernel."""
OperatorRole = Literal["weights", "other", "framework"]
"""Operators that read the model's weights; other operators; Python and the layers of torch between them."""


class KernelRow(Frozen):
    """One kernel (on a CPU: operator) in one phase and part; per step of the phase.

    A device kernel's self time begins where the one before it has ended: kernels that overlap count once.
    """

    phase: str
    part: str
    op: str = Field(
        description="outermost operator that was counted; a device kernel outside is its own; empty for other time"
    )
    kernel: str
    calls: float
    recorded_ms: float = Field(description="self time as recorded")
    self_ms: float = Field(description="self time less the estimated cost of recording")
    se_ms: float = Field(description="standard error of recorded_ms over steps")
    share: float = Field(description="of the phase")
    bytes: float | None = Field(default=None, description="read and written, each tensor once a call; null if unknown")
    flops: float | None = Field(default=None, description="of matrix products and attention; null elsewhere")

    @property
    def ffn(self) -> bool:
        """Whether it belongs to the FFN, a method's work there included."""
        return self.part in FFN_PARTS or self.part in ("statistic", "selection", "gather")

    @property
    def role(self) -> OperatorRole:
        """What kind of time it is."""
        if not self.op:
            return "framework"
        return "weights" if self.part in WEIGHT_PARTS else "other"

    @property
    def gb_per_s(self) -> float | None:
        """Bytes over self time."""
        return self.bytes / self.self_ms / 1e6 if self.bytes is not None and self.self_ms > 0 else None

    @property
    def gflop_per_s(self) -> float | None:
        """FLOPs over self time."""
        return self.flops / self.self_ms / 1e6 if self.flops is not None and self.self_ms > 0 else None


class ModuleRow(Frozen):
    """Self time of one named module in one phase, per step."""

    phase: str
    part: str
    module: str
    self_ms: float


class PhaseTime(Frozen):
    """How long a phase took in the profiled pass, per step.

    `whole_ms` is the duration of the range that drove it (prefill with its statistic, selection with its gather, a
    decode step); null where a phase has no range of its own. `parts_ms` is the sum of all rows inside it.
    """

    steps: int
    typical: int = Field(description="steps whose mean is told")
    recorded_ms: float
    cost_ms: float = Field(description="of this, the estimated cost of recording")
    whole_ms: float | None = None
    parts_ms: float | None = None


class Timed(Frozen):
    """The timing pass: one value a round, unprofiled."""

    prefill_ms: tuple[float, ...]
    selection_ms: tuple[float, ...] = Field(description="none where nothing is chosen per prompt")
    decode_ms: tuple[float, ...] = Field(description="median step of each round")
    stream_gb_per_s: tuple[float, ...]


class Peak(Frozen):
    """Peak memory in a phase, or why it is unknown."""

    bytes: int | None = None
    missing: str | None = None


class Profile(Frozen):
    """One profiled case."""

    version: Literal[1] = PROFILE_VERSION
    case: Case
    inputs: Inputs = Inputs()
    commit: Commit
    machine: Machine
    started: str
    execution: str
    backend: str | None = Field(default=None, description="the kernels that really ran")
    achieved_sparsity: tuple[float, ...]
    weight_bytes: float = Field(description="weight bytes that a decode step must read")
    step_bytes: float = Field(description="the same with the KV cache")
    matmul_tflop_per_s: float = Field(description="peak of this machine in the case's dtype")
    event_us: dict[str, float] = Field(description="estimated cost of recording one event, by kind")
    timed: Timed
    flags: dict[FlagName, Flag] = Field(default_factory=dict, description="warnings about the timing pass")
    phases: dict[str, PhaseTime]
    kernels: tuple[KernelRow, ...]
    modules: tuple[ModuleRow, ...]
    memory: dict[str, Peak]
    telemetry: Telemetry
    trace: str = Field(description="file name of the Chrome trace beside this record")
    untold: tuple[str, ...] = Field(default=(), description="kernels of replayed steps whose part is not known")

    def rows(self, phase: str) -> list[KernelRow]:
        """Rows of a phase, the longest first."""
        return [row for row in self.kernels if row.phase == phase]
