"""What a bench run measures: models, methods, sizes, and the cases that follow."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tda.cases import Case, Control, MethodSpec
from tda.contracts import EXECUTIONS, Method, check_choice
from tda.methods import METHODS, build
from tda.models import LoadedModel, needs_training
from tda.names import Execution, Protocol
from tda.tasks import Ask


def unasked() -> tuple[str, ...]:
    """The methods that a plan measures where none is named."""
    return tuple(name for name, kind in METHODS.items() if kind.in_presets)


TOGETHER = 16
"""Requests of a task in a batch; one that does not fit is halved."""
TIMED_METHODS = ("dense", "tt", "griffin", "tda", "cats", "int8")


@dataclass(frozen=True)
class Subject:
    """One model of a plan.

    Attributes
    ----------
    model : str
        Name, folder or hub id.
    prompt_tokens, new_tokens : int
        Sizes of a request.
    dtype : str
        Type of weights and activations.
    quality, speed : bool
        What is measured: scores over documents, timed rounds.
    layer_sparsity_from : str or None
        A model of the same plan whose achieved sparsity per layer this one is run with.
    """

    model: str
    prompt_tokens: int = 256
    new_tokens: int = 64
    dtype: str = "float32"
    quality: bool = True
    speed: bool = True
    layer_sparsity_from: str | None = None

    @property
    def weight(self) -> int:
        """Its part of the time: rounds take twice what quality does."""
        return self.quality + 2 * self.speed

    def __post_init__(self) -> None:
        if self.quality:
            needs_training(self.model, "quality number")
        if self.prompt_tokens < 1 or self.new_tokens < 2:
            raise ValueError(
                f"need at least 1 prompt token and 2 new tokens; got {self.prompt_tokens} and {self.new_tokens}"
            )


@dataclass(frozen=True)
class Plan:
    """A matrix of model × method × sparsity, and how often it is measured.

    Attributes
    ----------
    subjects : tuple of Subject
        The models.
    methods : tuple of MethodSpec or Method
        Those without a sparsity of their own are crossed with `sparsities`; those that are not defined for a model's
        FFN are left out and named.
    sparsities : tuple of float
        Of these methods.
    speed_methods : tuple of str
        Names of methods that are timed: controls cost what Griffin costs.
    rounds : int
        Timed rounds; each runs every case once.
    documents : int
        Documents scored; 0 where tasks alone are.
    calibration_documents : int
        Documents that thresholds are made from.
    tasks : tuple of Ask
        Tasks of lm-eval that trained models are scored on.
    protocol : str
        Which tokens of the tasks' answers are computed sparsely, as for `tda.score`.
    recall : bool
        Whether questions over long contexts are asked, as many as documents; they take longer than the documents.
    batch, device, execution, seed
        As in a record's case.
    text, calibration_text : Path or None
        JSONL files to evaluate and calibrate on; None is the built-in stream.
    revision : str or None
        Branch, tag or commit of hub models.
    trust_remote_code : bool
        As for `tda.load_model`.
    loaded : mapping
        Models by name that are in memory already.
    budget_s : float or None
        Seconds after which everything is to have ended; None is no limit.
    precision : float or None
        Half-width of a speed-up's interval, as a fraction of it, at which a case gets no more rounds; None is never.
    most_rounds : int
        Rounds of a case whose interval stays wider; at least `rounds`, and no more than those where there is neither a
        budget nor a precision.
    """

    subjects: tuple[Subject, ...]
    methods: tuple[MethodSpec | Method | str, ...] = field(default_factory=unasked)
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75)
    speed_methods: tuple[str, ...] = TIMED_METHODS
    rounds: int = 7
    documents: int = 48
    calibration_documents: int = 64
    tasks: tuple[Ask, ...] = ()
    protocol: Protocol = "all_sparse"
    recall: bool = True
    batch: int = 1
    device: str = "cpu"
    execution: Execution = "auto"
    seed: int = 0
    text: Path | None = None
    calibration_text: Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    loaded: Mapping[str, LoadedModel] = field(default_factory=dict)
    budget_s: float | None = None
    precision: float | None = None
    most_rounds: int = 0

    def __post_init__(self) -> None:
        limited = self.budget_s is not None or self.precision is not None
        object.__setattr__(self, "most_rounds", max(self.most_rounds, self.rounds) if limited else self.rounds)
        least = {"rounds": 1, "documents": 0 if self.tasks else 1, "batch": 1}
        for what, count in least.items():
            if getattr(self, what) < count:
                raise ValueError(f"{what} must be at least {count}, got {getattr(self, what)}")
        check_choice("execution", self.execution, EXECUTIONS)
        list(self.build())

    def build(self) -> Iterator[Method]:
        """Every method, each once; dense first, asked or not: every ratio needs it."""
        asked = [one for spec in self.methods for one in self.methods_of(spec)]
        kinds = dict(METHODS)
        for one in dict.fromkeys([*self.methods_of("dense"), *asked]):
            kind = kinds.setdefault(one.name, type(one))
            if type(one) is not kind:
                own, other = type(one).__name__, kind.__name__
                raise ValueError(f"{own} is named as {other} is, {one.name!r}; give it a name of its own")
            yield one

    def methods_of(self, asked: MethodSpec | Method | str) -> list[Method]:
        """The methods that one entry of `methods` stands for."""
        if isinstance(asked, Method):
            return [asked]
        spec = MethodSpec.parse(asked) if isinstance(asked, str) else asked
        return build(spec.model_copy(update={"options": {**self._options(spec.name), **spec.options}}), self.sparsities)

    def _options(self, name: str) -> dict[str, Any]:
        """Dense runs on the methods' kernels: else a ratio to it would count better kernels as a method's gain."""
        if name == "dense":
            return {"dense_kernel": "torch" if self.execution == "masked" else "own"}
        return {"seed": self.seed} if name == "random" else {}

    def case(self, subject: Subject, built: Method, control: Control | None = None) -> Case:
        """The case of one method on one model."""
        return Case(
            model=subject.model,
            method=built.name,
            options=built.options,
            sparsity=built.sparsity,
            control=control,
            layer_sparsity_from=subject.layer_sparsity_from if built.needs_fit else None,
            execution=self.execution,
            device=self.device,
            dtype=subject.dtype,
            batch=self.batch,
            prompt_tokens=subject.prompt_tokens,
            new_tokens=subject.new_tokens,
            seed=self.seed,
        )

    def cases(self) -> list[Case]:
        """Every case, controls aside."""
        return [self.case(subject, built) for subject in self.subjects for built in self.build()]
