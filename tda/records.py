"""What ran and what it gave: the record that every other part writes or reads.

A line of ``results.jsonl`` is one `Record`: one case in one round. Round 0 holds what needs no repetition
(quality over documents, peak memory of a first request); rounds 1, 2, … hold timings. `merge` joins the lines
of a case. Raw samples are kept; medians, intervals and ratios are computed from them, never stored.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from tda.cases import Case, Frozen, Inputs, digest_of

MIN_GROUPS = 5
"""Fewer rounds or documents than this give no interval."""
RECORD_VERSION: Literal[3] = 3
RETIRED = {
    1: ("select_ms", "ttft_ms", "break_even_tokens", "roofline_speedup", "speedup_efficiency", "mbu"),
}
"""By version of a record, measurements that are not read from it: gone since, or of another meaning now."""
BUILD_STAMP = "build.json"
"""File in an installed package that names the `Commit` it was built from."""

FAKE = "FAKE"
"""In the name of a device that a test plays: its numbers are refused by everything that shows numbers."""


def _writable(text: str) -> str:
    r"""Text with what UTF-8 cannot hold, as half of a pair from a file's name, told as ``\udcff``."""
    return text.encode(errors="backslashreplace").decode()


Told = Annotated[str, AfterValidator(_writable)]
"""What others said, such as an error: it may hold anything, and has to stand in a file."""
Status = Literal["ok", "error", "oom", "timeout", "crash"]
FailureKind = Literal["host_memory", "gpu_memory", "crash", "killed", "lost", "hang", "timeout", "error"]
Better = Literal["lower", "higher"]
FlagName = Literal[
    "foreign_load", "oversubscribed", "throttling", "clocks", "few_samples", "cache_resident", "built_in_text"
]


class MeasurementKind(Frozen):
    """What a measurement name stands for.

    `speed` marks what only an execution that really skips can have, `positive` what cannot take no time at all.
    """

    unit: str
    better: Better | None
    meaning: str
    speed: bool = False
    positive: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """What a sample lies within; anything else was not measured."""
        low, high = RANGES.get(self.unit, (0.0, 1e18))
        return (1e-6 if self.positive else low), high


RANGES: Mapping[str, tuple[float, float]] = {
    "ms": (0.0, 1e9),
    "GB/s": (1e-6, 1e9),
    "B": (1.0, 1e18),
    "%": (0.0, 100.0),
    "share": (0.0, 1.0),
    "nats/token": (-1e-3, 1e9),
    "ratio": (0.99, 1e300),
}
"""By unit. A likelihood or a divergence may be below zero by what rounding makes of a tiny one."""


def _kind(
    unit: str, better: Better | None, meaning: str, *, speed: bool = False, positive: bool = False
) -> MeasurementKind:
    return MeasurementKind(unit=unit, better=better, meaning=meaning, speed=speed, positive=positive)


MEASUREMENTS: dict[str, MeasurementKind] = {
    "prefill_ms": _kind(
        "ms",
        "lower",
        "one pass of the prompt with the method attached, its statistic included",
        speed=True,
        positive=True,
    ),
    "ttft_ms": _kind(
        "ms", "lower", "time to the first token: prefill, and the token read from it", speed=True, positive=True
    ),
    "statistic_ms": _kind("ms", "lower", "what the method's statistic takes within prefill, all layers", speed=True),
    "selection_ms": _kind("ms", "lower", "once per prompt, after its first token: choice, lists, gather", speed=True),
    "choice_ms": _kind("ms", "lower", "the part of selection that decides what is kept", speed=True),
    "gather_ms": _kind("ms", "lower", "the part of selection that makes lists or copies of weights", speed=True),
    "decode_ms": _kind("ms", "lower", "one decode step, one sample per token and round", speed=True, positive=True),
    "generation_ms": _kind("ms", "lower", "end to end through the model's own generate", speed=True, positive=True),
    "attach_ms": _kind(
        "ms", "lower", "attaching the method: checks, layout, kernels, and on CUDA a step captured and a first request"
    ),
    "peak_memory_bytes": _kind("B", "lower", "peak memory while a request runs: allocator and graphs, or RSS on a CPU"),
    "weight_bytes_per_token": _kind("B", "lower", "weight bytes that one decode step must read", speed=True),
    "bytes_per_token": _kind("B", "lower", "bytes that one decode step must read: weights and KV cache", speed=True),
    "stream_gb_per_s": _kind("GB/s", "higher", "stream bandwidth just before and just after the decode steps"),
    "selection_digest": _kind("hash", None, "hash of the kept sets, as the integer of 48 of its bits"),
    "gpu_utilization_percent": _kind("%", "higher", "share of time in which some kernel ran"),
    "gpu_memory_bytes": _kind("B", "lower", "device memory in use, as the driver reports it"),
    "power_w": _kind("W", "lower", "board power, the driver's one-second mean"),
    "energy_j_per_token": _kind("J", "lower", "energy counter difference over decode, per token", speed=True),
    "perplexity": _kind("ratio", "lower", "exp of nll_nats of one document"),
    "nll_nats": _kind("nats/token", "lower", "mean negative log likelihood of one document's sparse tokens"),
    "kl_to_dense_nats": _kind("nats/token", "lower", "mean KL(dense || method) of one document's sparse tokens"),
    "top1_disagreement": _kind("share", "lower", "share of sparse tokens whose most likely token differs from dense"),
}
SPEED = tuple(name for name, kind in MEASUREMENTS.items() if kind.speed)
"""Measurements of speed: a masked execution has none of them."""


class Commit(Frozen):
    """The state of the code that ran; nulls outside a git checkout."""

    hash: str | None = None
    dirty: bool | None = Field(default=None, description="whether anything that can change results is uncommitted")
    change: str | None = Field(default=None, description="digest of what is uncommitted; null where nothing is")


class Machine(Frozen):
    """What the numbers were taken on."""

    cpu: str
    cores: int
    allowed_cores: int | None = Field(default=None, description="that this process may run on; null for all of them")
    cpu_quota: float | None = Field(default=None, description="cores' worth of time that control groups leave it")
    threads: int = Field(description="that torch computes with")
    memory_bytes: int
    cache_bytes: int | None = Field(default=None, description="last-level cache; null where it cannot be read")
    gpu: str | None = None
    driver: str | None = None
    python: str
    torch: str
    transformers: str
    tda: str
    system: str
    products: str | None = Field(default=None, description="how products of each type of two bytes run on the CPU")
    compiler: str | None = Field(default=None, description="the C compiler that builds kernels; null where none is")

    @property
    def fingerprint(self) -> str:
        """Hash of all fields but this package's version: numbers of unlike fingerprints are not compared silently.

        Without limits to its cores, with bfloat16 products in hardware and without a compiler, a machine has the
        fingerprint that it had before records told of these.
        """
        usual = {name for name in ("allowed_cores", "cpu_quota", "products", "compiler") if getattr(self, name) is None}
        if self.products is not None and "bfloat16 in hardware" in self.products:
            usual.add("products")
        return digest_of(self.model_dump(mode="json", exclude={"tda", *usual}))

    @property
    def usable_cores(self) -> float:
        """How many cores' worth of time this process may use."""
        return min(self.allowed_cores or self.cores, self.cpu_quota or math.inf)

    @property
    def cores_told(self) -> str:
        """How many cores are there, and how many of them are used at most, in words."""
        allowed = f"{self.cores} cores" if self.allowed_cores is None else f"{self.allowed_cores} of {self.cores} cores"
        return allowed if self.cpu_quota is None else f"{allowed} with a quota of {self.cpu_quota:g}"


def _number(value: object) -> object:
    """A number, or JSON's words for those that it lacks; true is not 1."""
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity")):
        raise ValueError("expected a number")
    return value


class Measurement(Frozen):
    """Raw samples of one quantity, or the reason why there are none.

    `groups` names for each sample what it belongs to (a document's number, a round): the unit of resampling.
    """

    unit: str
    better: Better | None = None
    samples: tuple[Annotated[float, BeforeValidator(_number)], ...] = ()
    groups: tuple[Annotated[int, Strict()], ...] = ()
    missing: str | None = None

    @model_validator(mode="after")
    def _samples_or_reason(self) -> "Measurement":
        if bool(self.samples) == (self.missing is not None):
            raise ValueError("a measurement has samples or a reason why they are missing, and not both")
        if self.groups and len(self.groups) != len(self.samples):
            raise ValueError(f"{len(self.groups)} groups for {len(self.samples)} samples")
        return self

    @classmethod
    def of(cls, name: str, samples: Iterable[float], groups: Iterable[int] = ()) -> "Measurement":
        """Samples of the measurement called `name`, with its unit and direction."""
        kind = measurement_kind(name)
        return cls(unit=kind.unit, better=kind.better, samples=tuple(samples), groups=tuple(groups))

    @classmethod
    def absent(cls, name: str, reason: str) -> "Measurement":
        """No samples of the measurement called `name`, and why."""
        kind = measurement_kind(name)
        return cls(unit=kind.unit, better=kind.better, missing=reason)


TASK_SHARE = MeasurementKind(unit="share", better="higher", meaning="a task's score, one sample per item")
TASK_SCORES: Mapping[str, MeasurementKind] = {
    "nll": _kind("nats/token", "lower", "negative log likelihood of an item's answer"),
    "bits_per_byte": _kind("bits/byte", "lower", "negative log likelihood of an item's text"),
    "output_tokens": _kind("tokens", None, "tokens generated for an item, the stop string's included"),
}
"""Scores of a task that are no share, by the end of their name."""


def measurement_kind(name: str) -> MeasurementKind:
    """Look up a measurement name.

    Raises
    ------
    ValueError
        If the name is neither in `MEASUREMENTS` nor of the form ``task_<name>_<score>``.
    """
    if name in MEASUREMENTS:
        return MEASUREMENTS[name]
    if name.startswith("task_"):
        return next((kind for ending, kind in TASK_SCORES.items() if name.endswith(f"_{ending}")), TASK_SHARE)
    raise ValueError(f"unknown measurement {name!r}; known: {', '.join(MEASUREMENTS)}, task_<name>_<score>")


class Flag(Frozen):
    """One doubt about a record: raised, cleared, or (null) not observable here."""

    raised: bool | None
    detail: str


class FailureMeaning(Frozen):
    """What a kind of failure stands for: the status that records of it have, and what it is called."""

    status: Status
    words: str


FAILURES: Mapping[FailureKind, FailureMeaning] = {
    "host_memory": FailureMeaning(status="oom", words="did not fit into host memory"),
    "gpu_memory": FailureMeaning(status="oom", words="did not fit into GPU memory"),
    "crash": FailureMeaning(status="crash", words="its process crashed"),
    "killed": FailureMeaning(status="crash", words="its process was killed from outside"),
    "lost": FailureMeaning(status="crash", words="its machine or its worker was lost"),
    "hang": FailureMeaning(status="timeout", words="it hung: its process used no processor time any more"),
    "timeout": FailureMeaning(status="timeout", words="it was still computing at the end of its time"),
    "error": FailureMeaning(status="error", words="it raised an error"),
}
"""By kind. Only the first two say that a case does not fit; killed and lost say nothing of the case at all."""
NOT_ITS_FAULT: frozenset[FailureKind] = frozenset({"killed", "lost"})


class Failure(Frozen):
    """How a case failed, where more is known than its status."""

    kind: FailureKind
    stderr: Told | None = Field(default=None, description="the end of what its process wrote to stderr")


class TaskFacts(Frozen):
    """What the scores of a task are of: equal facts, and only those, may be compared."""

    digest: str = Field(description="of the items as they were asked, few-shot examples and chat template included")
    items: int
    shots: int = Field(description="examples before the question")
    protocol: str = Field(description="which tokens are computed sparsely, as for `tda.score`")
    source: str = Field(description="the data set's hub id, or the local file's name")
    harness: str = Field(description="version of lm-eval and of its task")
    sparse_share: float | None = Field(
        default=None, ge=0, le=1, description="share of the scored or generated tokens that was computed sparsely"
    )
    failure: Told | None = Field(default=None, description="why there are no scores")

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
    reason: Told | None = None
    failure: Failure | None = Field(default=None, description="how it failed; null where it did not, or is not known")
    achieved_sparsity: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(), description="share left out in decode, per layer"
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
        return [f"{name}: {flag.detail}" for name, flag in self.flags.items() if flag.raised]


class LeftOut(Frozen):
    """Something that a bench was asked to measure and had no time for, and why."""

    model: str
    what: str
    reason: Told
    command: str = Field(description="what measures it")

    def __str__(self) -> str:
        return f"{self.model}: {self.what} ({self.reason})"


def merge(records: Iterable[Record]) -> list[Record]:
    """Join the rounds of each series into one record, in the order in which the series first appeared.

    Samples are concatenated in order of rounds; where a measurement has no groups, its samples' group is their
    round. A round that two processes measured is two rounds, since only what ran side by side may be paired: the later
    one gets a number of its own, the same in all series. A failed round is left out of the samples while another round
    is ok; a series that only failed keeps its last failure. A flag that any round raised is raised. What needs no
    repetition may stand in several lines of round 0, e.g. a line for each task: a later one adds to those before it.
    """
    records = list(records)
    numbers = _numbers(records)
    rounds: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        held, number = rounds.setdefault(record.series, {}), numbers[turn(record)]
        before = held.get(number)
        if before is None or before.status != "ok":
            held[number] = record
        elif record.status == "ok":
            held[number] = record if number else _completed(before, record)
    return [_join(dict(sorted(held.items()))) for held in rounds.values()]


def _completed(before: Record, record: Record) -> Record:
    """A line of round 0 with what earlier ones hold beside it."""
    return record.model_copy(
        update={
            "achieved_sparsity": record.achieved_sparsity or before.achieved_sparsity,
            "execution": record.execution or before.execution,
            "backend": record.backend or before.backend,
            "measurements": before.measurements | record.measurements,
            "tasks": before.tasks | record.tasks,
            "flags": before.flags | record.flags,
            "started": before.started,
            "seconds": before.seconds + record.seconds,
        }
    )


def turn(record: Record) -> tuple[int, object]:
    """The round that a line is of, and the process that timed it; what is not timed repeats exactly."""
    return record.round, record.conditions.get("process") if record.round else None


def _numbers(records: Iterable[Record]) -> dict[tuple[int, object], int]:
    """A number for each round of each process: its own, or where an earlier process has it, one that none has."""
    turns = list(dict.fromkeys(turn(record) for record in records))
    first = {one[0]: one for one in reversed(turns)}
    free = itertools.count(max(first, default=0) + 1)
    return {one: one[0] if first[one[0]] == one else next(free) for one in turns}


def _join(lines: Mapping[int, Record]) -> Record:
    good = {number: line for number, line in lines.items() if line.status == "ok"}
    if not good:
        return list(lines.values())[-1]
    names = dict.fromkeys(name for line in good.values() for name in line.measurements)
    measurements = {name: _join_measurement(name, good) for name in names}
    last, done = list(good.values())[-1], {line.round for line in good.values()}
    failed = {line.round: line.reason for line in lines.values() if line.round not in done}
    told = f"{len(failed)} of {len(failed) + len(done)} rounds failed: {list(failed.values())[-1]}" if failed else None
    return last.model_copy(
        update={
            "reason": told,
            "achieved_sparsity": _mean_layers(
                [line.achieved_sparsity for line in good.values() if line.achieved_sparsity]
            ),
            "measurements": measurements,
            "tasks": {name: facts for line in good.values() for name, facts in line.tasks.items()},
            "flags": _counted(join_flags([line.flags for line in good.values()]), measurements.get("decode_ms")),
            "conditions": {**last.conditions, "processes": _processes(good.values())},
            "started": next(iter(good.values())).started,
            "seconds": sum(line.seconds for line in lines.values()),
        }
    )


def _processes(lines: Iterable[Record]) -> float | None:
    """Processes that timed rounds ran in; null where older records do not tell."""
    told = {line.conditions.get("process", line.conditions.get("processes")) for line in lines if line.round}
    counts = [one for one in told if isinstance(one, float)]
    return counts[0] if counts else float(len(told)) if told - {None} else None


def _counted(flags: dict[FlagName, Flag], timed: Measurement | None) -> dict[FlagName, Flag]:
    """Flags with the number of rounds that there are in the end: a line can only tell how many were planned."""
    if "few_samples" not in flags or timed is None:
        return flags
    return flags | {"few_samples": few_samples(len(set(timed.groups)))}


def few_samples(rounds: int) -> Flag:
    """The flag of so many rounds."""
    told = f"{rounds} round{'s' * (rounds != 1)}; an interval needs {MIN_GROUPS}"
    return Flag(raised=rounds < MIN_GROUPS, detail=told)


def _mean_layers(shares: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sum(layer) / len(layer) for layer in zip(*shares, strict=True))


def join_flags(rounds: Sequence[Mapping[FlagName, Flag]]) -> dict[FlagName, Flag]:
    """Join the flags of several rounds: one that some of them raised says how many, and what the last of them saw."""
    flags: dict[FlagName, Flag] = {}
    for name in dict.fromkeys(name for found in rounds for name in found):
        seen = [found[name] for found in rounds if name in found]
        raised = [flag for flag in seen if flag.raised]
        if raised and len(raised) < len(seen):
            flags[name] = Flag(raised=True, detail=f"{len(raised)} of {len(seen)} rounds; {raised[-1].detail}")
        else:
            flags[name] = (raised or seen)[-1]
    return flags


def _join_measurement(name: str, lines: Mapping[int, Record]) -> Measurement:
    newest = {line.round: number for number, line in lines.items()}
    present = [(number, line) for number, line in lines.items() if name in line.measurements]
    filled = [
        (number, part)
        for number, line in present
        if (part := line.measurements[name]).samples
        and (not part.groups or newest[line.round] == number)  # what has groups, such as documents, counts once
    ]
    if not filled:
        return present[-1][1].measurements[name]
    samples = tuple(sample for _, part in filled for sample in part.samples)
    groups = tuple(group for number, part in filled for group in (part.groups or (number,) * len(part.samples)))
    return filled[0][1].model_copy(update={"samples": samples, "groups": groups})


def json_schema() -> dict[str, Any]:
    """JSON schema of one line of ``results.jsonl``."""
    return Record.model_json_schema()
