"""What a bench run measures: models, methods, sizes; the presets; and the cases that follow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tda.bench.budget import MOST_ROUNDS
from tda.contracts import EXECUTIONS, Method, check_choice
from tda.methods import METHODS, method, takes_sparsity
from tda.models import is_shape, needs_training
from tda.names import Execution, Preset
from tda.records import LAYER_PROFILE, Case

MISSION = ("dense", "tt", "griffin", "tda", "cats", "int8")


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
    layer_profile : str or None
        A model of the same plan whose achieved sparsity per layer this one is run with.
    """

    model: str
    prompt_tokens: int = 256
    new_tokens: int = 64
    dtype: str = "float32"
    quality: bool = True
    speed: bool = True
    layer_profile: str | None = None

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
    methods, sparsities : tuple
        Crossed for quality; methods that are not defined for a model's FFN are left out and named.
    speed_methods : tuple of str
        Methods that are timed: controls cost what Griffin costs.
    rounds : int
        Timed rounds; each runs every case once.
    documents : int
        Documents scored.
    calibration_documents : int
        Documents that thresholds are made from.
    batch, device, execution, seed
        As in a record's case.
    budget_s : float or None
        Seconds after which everything is to have ended; None is no limit.
    precision : float or None
        Half-width of a speed-up's interval, as a fraction of it, at which a case gets no more rounds; None is never.
    most_rounds : int
        Rounds of a case whose interval stays wider; at least `rounds`, and no more than those where there is neither a
        budget nor a precision.
    """

    subjects: tuple[Subject, ...]
    methods: tuple[str, ...] = field(default_factory=lambda: tuple(METHODS))
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75)
    speed_methods: tuple[str, ...] = MISSION
    rounds: int = 7
    documents: int = 48
    calibration_documents: int = 64
    batch: int = 1
    device: str = "cpu"
    execution: Execution = "auto"
    seed: int = 0
    budget_s: float | None = None
    precision: float | None = None
    most_rounds: int = 0

    def __post_init__(self) -> None:
        limited = self.budget_s is not None or self.precision is not None
        object.__setattr__(self, "most_rounds", max(self.most_rounds, self.rounds) if limited else self.rounds)
        for count, what in ((self.rounds, "rounds"), (self.documents, "documents"), (self.batch, "batch")):
            if count < 1:
                raise ValueError(f"{what} must be at least 1, got {count}")
        check_choice("execution", self.execution, EXECUTIONS)
        list(self.build())

    def build(self) -> Iterator[Method]:
        """Every method at every sparsity, those without one once; dense first, asked or not: every ratio needs it."""
        for name in dict.fromkeys(("dense", *self.methods)):
            for sparsity in dict.fromkeys(self.sparsities) if takes_sparsity(name) else (0.0,):
                yield method(name, sparsity, **self._options(name))

    def _options(self, name: str) -> dict[str, Any]:
        """Dense runs on the methods' kernels: else a ratio to it would count better kernels as a method's gain."""
        if name == "dense":
            return {"dense_kernel": "torch" if self.execution == "masked" else "own"}
        return {"seed": self.seed} if name == "random" else {}

    def case(self, subject: Subject, built: Method, extra: dict[str, Any] | None = None) -> Case:
        """The case of one method on one model."""
        options = {**built.options, **(extra or {})}
        if subject.layer_profile is not None and built.needs_thresholds:
            options[LAYER_PROFILE] = subject.layer_profile
        return Case(
            model=subject.model,
            method=built.name,
            options=options,
            sparsity=built.sparsity,
            execution=self.execution,
            device=self.device,
            dtype=subject.dtype,
            batch=self.batch,
            prompt_tokens=subject.prompt_tokens,
            new_tokens=subject.new_tokens,
            seed=self.seed,
        )


def _reference(name: str, **sizes: Any) -> Subject:
    return Subject(f"ref:{name}", **{"prompt_tokens": 256, "new_tokens": 128, "speed": False, **sizes})


def _shape(name: str, **options: Any) -> Subject:
    return Subject(f"shape:{name}", **{"dtype": "bfloat16", "quality": False, "layer_profile": "ref:swiglu", **options})


PRESETS: dict[Preset, Plan] = {
    "smoke": Plan(
        (
            _reference("swiglu", prompt_tokens=128, new_tokens=32),
            _shape("0.1b", prompt_tokens=64, new_tokens=8),
        ),
        sparsities=(0.5,),
        rounds=5,
        documents=8,
        calibration_documents=16,
        budget_s=50,
        precision=0.02,
    ),
    "default": Plan(
        (_reference("swiglu"), _shape("0.3b", prompt_tokens=128, new_tokens=12)),
        rounds=6,
        budget_s=300,
        precision=0.02,
        most_rounds=MOST_ROUNDS,
    ),
    "nightly": Plan(
        (
            *(_reference(name) for name in ("swiglu", "relu", "geglu")),
            _shape("0.3b", prompt_tokens=128, new_tokens=32),
            _shape("1b", prompt_tokens=128, new_tokens=32),
        ),
        sparsities=(0.25, 0.5, 0.75, 0.9),
        rounds=11,
        documents=96,
    ),
    "paper": Plan(
        (
            _reference("swiglu"),
            *(
                _shape(name, prompt_tokens=512, new_tokens=128)
                for name in ("opt-350m", "opt-2.7b", "gemma-2b", "llama-2-7b", "llama-3-8b", "mistral-7b")
            ),
        ),
        sparsities=(0.25, 0.5, 0.75, 0.9),
        rounds=11,
        documents=96,
    ),
    "gpu": Plan(
        (_reference("swiglu"), _shape("llama-3-8b", prompt_tokens=512, new_tokens=64)),
        sparsities=(0.5, 0.75),
        device="cuda",
        budget_s=180,
        precision=0.02,
        most_rounds=MOST_ROUNDS,
    ),
}


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None; lists as tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items() if value is not None
    }


SIZES = ("prompt_tokens", "new_tokens", "dtype")
"""Options that are fields of every `Subject`."""
LIMITS = ("budget_s", "precision")
"""Options whose None is a value: no limit."""
FIELDS = {"method": "methods", "sparsity": "sparsities"}
"""Fields of a `Plan` that an option calls otherwise."""


def plan_of(preset: Preset = "default", model: Sequence[str] | None = None, **options: Any) -> Plan:
    """A preset, changed by what is given; None and empty lists are not given.

    Parameters
    ----------
    preset : str
        One of `PRESETS`.
    model : sequence of str
        Models instead of the preset's. A trained one gets a quality and a speed; a shape gets a speed, with the
        achieved sparsity per layer of the first trained one.
    **options
        As of `tda.run_bench` and ``tda bench``. Methods that are named are timed too.

    Raises
    ------
    ValueError
        If a value is not accepted.
    TypeError
        If an option is not known.
    """
    check_choice("preset", preset, tuple(PRESETS))
    wanted = {name: value for name, value in given(**options).items() if value != ()}
    wanted |= {name: options[name] for name in LIMITS if name in options}
    if "rounds" in wanted:
        wanted["most_rounds"] = wanted["rounds"]
    if "method" in wanted:
        wanted["speed_methods"] = wanted["method"]
    sizes = {name: wanted.pop(name) for name in SIZES if name in wanted}
    plan, models = PRESETS[preset], model or ()
    subjects = plan.subjects
    if models:
        trained = [name for name in models if not is_shape(name)]
        profile = trained[0] if trained else None
        subjects = tuple(_subject(name, profile) for name in sorted(dict.fromkeys(models), key=is_shape))
    return replace(
        plan,
        subjects=tuple(replace(subject, **sizes) for subject in subjects),
        **{FIELDS.get(name, name): value for name, value in wanted.items()},
    )


def _subject(model: str, profile: str | None) -> Subject:
    if is_shape(model):
        return Subject(model, prompt_tokens=128, dtype="bfloat16", quality=False, layer_profile=profile)
    return Subject(model)
