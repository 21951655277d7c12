"""One case in one round: a line of ``results.jsonl``."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tda.cases import Case, Frozen, Inputs, digest_of
from tda.records.failures import FAILURES, Failure, Status, WritableText
from tda.records.measurements import MEASUREMENTS, Measurement
from tda.records.origin import Commit, Machine

RECORD_VERSION: Literal[3] = 3
RETIRED = {
    1: ("select_ms", "ttft_ms", "break_even_tokens", "roofline_speedup", "speedup_efficiency", "mbu"),
}
"""By version of a record, measurements that are not read from it: gone since, or of another meaning now."""
FlagName = Literal[
    "foreign_load", "oversubscribed", "throttling", "clocks", "few_samples", "cache_resident", "built_in_text"
]


def flag_words(name: FlagName) -> str:
    """What people read in place of a stored name."""
    return "background load" if name == "foreign_load" else name.replace("_", " ")


class Flag(Frozen):
    """One warning about a record: raised, cleared, or (null) not observable here."""

    raised: bool | None
    detail: str


class TaskFacts(Frozen):
    """What the scores of a task are of: equal facts, and only those, may be compared."""

    digest: str = Field(description="of the items as they were prompted, few-shot examples and chat template included")
    items: int
    shots: int = Field(description="examples before the question")
    protocol: str = Field(description="which tokens are computed sparsely, as for `tda.score`")
    source: str = Field(description="the data set's hub id, or the local file's name")
    harness: str = Field(description="version of lm-eval and of its task")
    sparse_share: float | None = Field(
        default=None, ge=0, le=1, description="fraction of the scored or generated tokens that was computed sparsely"
    )
    failure: WritableText | None = Field(default=None, description="why there are no scores")

    @property
    def setting(self) -> str:
        """Hash of what must be equal for scores to be compared: not what came of it."""
        return digest_of(self.model_dump(mode="json", exclude={"sparse_share", "failure"}))


class Record(Frozen):
    """One case in one round: a line of ``results.jsonl``."""

    version: Literal[1, 2, 3] = RECORD_VERSION
    case: Case
    inputs: Inputs = Inputs()
    round: Annotated[int, Field(ge=0)]
    commit: Commit
    machine: Machine
    status: Status
    reason: WritableText | None = None
    failure: Failure | None = Field(default=None, description="how it failed; null where it did not, or is not known")
    achieved_sparsity: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(), description="fraction left out in decode, per layer"
    )
    execution: str | None = Field(default=None, description="the execution that really ran")
    backend: str | None = Field(default=None, description="the kernels that really ran")
    measurements: dict[str, Measurement] = Field(default_factory=dict)
    tasks: dict[str, TaskFacts] = Field(default_factory=dict, description="tasks that were scored, by name")
    flags: dict[FlagName, Flag] = Field(default_factory=dict)
    conditions: dict[str, float | str | None] = Field(default_factory=dict)
    started: str
    seconds: float

    @model_validator(mode="before")
    @classmethod
    def _from_older(cls, value: Any) -> Any:
        """Until version 2 the A/A control was no part of the case."""
        if not isinstance(value, dict) or not isinstance(value.get("case"), dict) or "control" not in value:
            return value
        control = {"control": "a_a"} if value["control"] is True else {}
        return {**{k: v for k, v in value.items() if k != "control"}, "case": {**value["case"], **control}}

    @model_validator(mode="after")
    def _without_retired(self) -> "Record":
        for name in RETIRED.get(self.version, ()):
            self.measurements.pop(name, None)
        return self

    @model_validator(mode="after")
    def _within_range(self) -> "Record":
        for name, measurement in self.measurements.items():
            low, high = MEASUREMENTS[name].range if name in MEASUREMENTS else (-math.inf, math.inf)
            if name in MEASUREMENTS and measurement.unit != MEASUREMENTS[name].unit:
                raise ValueError(f"{name} is in {measurement.unit!r}; it is told in {MEASUREMENTS[name].unit!r}")
            wrong = [sample for sample in measurement.samples if not low <= sample <= high]
            if wrong:
                raise ValueError(f"{name} is {wrong[0]:g}; it lies between {low:g} and {high:g} {measurement.unit}")
        return self

    @property
    def series(self) -> tuple[str, str]:
        """Lines of equal series are rounds of the same thing."""
        return self.case.key, self.inputs.key

    @property
    def setting(self) -> tuple[str, str, str | None]:
        """Records of equal settings may be compared: one request, one text and one state of the code."""
        return self.case.setting, self.inputs.setting, self.inputs.change

    def samples(self, name: str) -> tuple[float, ...]:
        """Samples of a measurement; empty where it is missing."""
        found = self.measurements.get(name)
        return found.samples if found else ()

    @property
    def outcome(self) -> str:
        """How it failed in words, where that is known; else its status."""
        return self.status if self.failure is None else FAILURES[self.failure.kind].words

    def raised(self) -> list[str]:
        """Names and details of the raised flags."""
        return [f"{flag_words(name)}: {flag.detail}" for name, flag in self.flags.items() if flag.raised]


class LeftOut(Frozen):
    """Something that a bench was asked to measure and had no time for, and why."""

    model: str
    what: str
    reason: WritableText
    command: str = Field(description="what measures it")

    def __str__(self) -> str:
        return f"{self.model}: {self.what} ({self.reason})"


def json_schema() -> dict[str, Any]:
    """JSON schema of one line of ``results.jsonl``."""
    return Record.model_json_schema()
