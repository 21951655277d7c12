"""What a bench run measures: models, methods, sizes; the presets; and the cases that follow."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tda.bench.afford import Request, least_seconds
from tda.bench.budget import MOST_ROUNDS, duration, parse_fraction, parse_seconds
from tda.cases import Case, Control, MethodSpec
from tda.config import BenchConfig, flag_of
from tda.contracts import EXECUTIONS, Method, check_choice
from tda.device import cache_bytes
from tda.methods import METHODS, build
from tda.models import LoadedModel, is_shape, needs_training, parameter_count, sizes_beyond_cache
from tda.names import Execution, Preset, Protocol
from tda.tasks import Ask
from tda.thresholds import WINDOW


def unasked() -> tuple[str, ...]:
    """The methods that a plan measures where none is named."""
    return tuple(name for name, kind in METHODS.items() if kind.in_presets)


PAPER = ("tt", "griffin", "tda")
PAPER_MODELS = {
    "facebook/opt-350m": "opt-350m",
    "facebook/opt-2.7b": "opt-2.7b",
    "google/gemma-2b": "gemma-2b",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
}
"""Hub ids of the models of the paper of TDA, smallest first, and the shape of each."""
PAPER_TASKS = (
    "hellaswag", "piqa", "copa", "arc_challenge", "boolq", "coqa", "qasper", "xsum", "cnn_dailymail",
)  # fmt: skip
TOGETHER = 16
"""Requests of a task in a batch; one that does not fit is halved."""
MISSION = ("dense", "tt", "griffin", "tda", "cats", "int8")
ON_GPU = ("dense", "griffin", "tda", "cats", "tt")
WIDE = "ref:wide"
"""The trained model whose quality and speed the presets measure."""
AFFORDED = 0.5
"""Part of a budget that the least of a model may take: the rest is for other sparsities, and for slower machines."""


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
    speed_methods: tuple[str, ...] = MISSION
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
        asked = [one for spec in self.methods for one in self._built(spec)]
        kinds = dict(METHODS)
        for one in dict.fromkeys([*self._built("dense"), *asked]):
            kind = kinds.setdefault(one.name, type(one))
            if type(one) is not kind:
                own, other = type(one).__name__, kind.__name__
                raise ValueError(f"{own} is named as {other} is, {one.name!r}; give it a name of its own")
            yield one

    def _built(self, asked: MethodSpec | Method | str) -> list[Method]:
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


def _reference(name: str, **sizes: Any) -> Subject:
    return Subject(f"ref:{name}", **{"prompt_tokens": 256, "new_tokens": 128, "speed": False, **sizes})


def _shape(name: str, **options: Any) -> Subject:
    return Subject(f"shape:{name}", **{"dtype": "bfloat16", "quality": False, "layer_sparsity_from": WIDE, **options})


PRESETS: dict[Preset, Plan] = {
    "smoke": Plan(
        (Subject(WIDE, prompt_tokens=64, new_tokens=16),),
        sparsities=(0.5,),
        rounds=5,
        documents=8,
        calibration_documents=16,
        recall=False,
        budget_s=50,
        precision=0.02,
    ),
    "default": Plan(
        (Subject(WIDE, prompt_tokens=256, new_tokens=32),),
        rounds=6,
        documents=24,
        calibration_documents=32,
        recall=False,
        budget_s=300,
        precision=0.02,
        most_rounds=MOST_ROUNDS,
    ),
    "nightly": Plan(
        (
            Subject(WIDE, prompt_tokens=256, new_tokens=128),
            *(_reference(name) for name in ("relu", "geglu")),
            _shape("1b", prompt_tokens=128, new_tokens=32),
        ),
        sparsities=(0.25, 0.5, 0.75, 0.9),
        rounds=11,
        documents=96,
    ),
    "paper": Plan(
        tuple(Subject(name, prompt_tokens=512, new_tokens=128, dtype="bfloat16") for name in PAPER_MODELS),
        methods=PAPER,
        speed_methods=("dense", *PAPER),
        tasks=tuple(Ask(name) for name in PAPER_TASKS),
        documents=0,
        device="cuda",
    ),
    # 10 cases (dense, its A/A control, four methods at two sparsities), 5 rounds, 512 prompt and 32 new tokens. The
    # sparsity is the same in all layers: to imitate those of a trained model one would have to be scored first.
    "gpu": Plan(
        (_shape("llama-3-8b", prompt_tokens=512, new_tokens=32, layer_sparsity_from=None),),
        methods=ON_GPU,
        sparsities=(0.5, 0.75),
        speed_methods=ON_GPU,
        rounds=5,
        device="cuda",
        budget_s=120,
    ),
}
"""Presets by name. `plan_of` takes their model of both axes in a size that no cache holds, if the budget affords it."""


SIZES = ("prompt_tokens", "new_tokens", "dtype")
"""Options that are fields of every `Subject`."""
SAME = ("sparsities", "documents", "calibration_documents", "batch", "device", "execution", "seed", "text",
        "calibration_text", "revision", "trust_remote_code", "protocol")  # fmt: skip
"""Options that a `Plan` calls by the same name."""
OF_TASKS = ("task_data", "items", "shots", "chat_template")
"""Options that say how tasks are asked."""


def plan_of(config: BenchConfig, methods: Sequence[Method] = ()) -> Plan:
    """A preset, changed by what is asked.

    Models take the place of the preset's. A trained one gets a quality and a speed; a shape gets a speed, with the
    achieved sparsity per layer of the first trained one. Methods that are named are timed too. A preset's own model of
    both axes has the smallest size that is at least three times the last-level cache; on a CPU with a budget, the
    largest up to that one that the budget affords, which is the same in every run on a machine.

    Parameters
    ----------
    config : BenchConfig
        What is asked.
    methods : sequence of Method
        Further methods.

    Raises
    ------
    ValueError
        If a value is not accepted.
    """
    plan = PRESETS[config.preset]
    changes: dict[str, Any] = {name: value for name in SAME if (value := getattr(config, name)) not in (None, ())}
    if config.rounds:
        changes |= {"rounds": config.rounds, "most_rounds": config.rounds}
    named: tuple[MethodSpec | Method, ...] = (*config.methods, *methods)
    if named:
        changes |= {"methods": named, "speed_methods": tuple(dict.fromkeys(method.name for method in named))}
    tasks = [Ask(name) for name in config.tasks] or plan.tasks
    if tasks:  # they take the time that they take, unless one is asked for
        _check_data([task.name for task in tasks], config.task_data)
        changes |= {"tasks": tuple(_ask(task, config) for task in tasks), "budget_s": None}
        if config.documents is None and config.text is None and not all(n.startswith("ref:") for n in config.models):
            changes["documents"] = 0  # the built-in stories say little of such a model
    elif alone := [
        flag_of(name) for name in OF_TASKS if getattr(config, name) is not None and getattr(config, name) is not False
    ]:
        raise ValueError(f"{', '.join(alone)}: for tasks, and none is named; give --task NAME")
    if config.budget is not None:
        changes["budget_s"] = parse_seconds(config.budget)
    if config.precision is not None:
        changes["precision"] = parse_fraction(config.precision)
    subjects = plan.subjects
    if config.models:
        trained = [name for name in config.models if not is_shape(name)]
        profile = trained[0] if trained else None
        subjects = tuple(_subject(name, profile, plan) for name in sorted(config.models, key=is_shape))
    sizes = {name: value for name in SIZES if (value := getattr(config, name)) is not None}
    if config.rounds == 0:
        sizes["speed"] = False
    subjects = tuple(replace(subject, **sizes) for subject in subjects)
    if nothing := [subject.model for subject in subjects if not (subject.quality or subject.speed)]:
        raise ValueError(f"without timed rounds there is nothing to measure of {', '.join(nothing)}: no text is scored")
    whole = replace(plan, subjects=subjects, **changes)
    return whole if config.models else _in_size(whole)


def _in_size(plan: Plan) -> Plan:
    """The plan with its model of both axes in a size that the device's caches do not hold, or that it has time for."""
    both = next((subject for subject in plan.subjects if subject.model == WIDE), None)
    if both is None:
        return plan
    taken = next(size for size in reversed(_sizes(plan, both)) if size == WIDE or _affords(plan, both, size))
    return replace(
        plan,
        subjects=tuple(
            replace(
                subject,
                model=taken if subject.model == WIDE else subject.model,
                layer_sparsity_from=taken if subject.layer_sparsity_from == WIDE else subject.layer_sparsity_from,
            )
            for subject in plan.subjects
        ),
    )


def _sizes(plan: Plan, subject: Subject) -> tuple[str, ...]:
    """Sizes of the model of both axes, up to the one that is wanted."""
    return sizes_beyond_cache(WIDE, _itemsize(subject), cache_bytes(plan.device))


def _itemsize(subject: Subject) -> int:
    size: int = getattr(torch, subject.dtype).itemsize
    return size


def _affords(plan: Plan, subject: Subject, size: str) -> bool:
    """Whether a plan's budget, shared among its models, has time for a size; a GPU has."""
    if plan.budget_s is None or plan.device != "cpu":
        return True
    length = 1 << (max(subject.prompt_tokens, 2 * WINDOW) - 1).bit_length()
    asked = Request(
        prompt_tokens=subject.prompt_tokens,
        new_tokens=subject.new_tokens,
        batch=plan.batch,
        documents=plan.documents,
        calibration_tokens=plan.calibration_documents * length * any(built.needs_fit for built in plan.build()),
        cases=len({"dense", *plan.speed_methods}),
    )
    weights, cache = parameter_count(size), cache_bytes(plan.device) or 0
    needed = least_seconds(asked, weights, weights * _itemsize(subject), cache, torch.get_num_threads())
    return needed <= AFFORDED * plan.budget_s / len(plan.subjects)


def size_notice(config: BenchConfig, plan: Plan) -> str | None:
    """A sentence where a preset's model is smaller than wanted, because the budget is short; None elsewhere."""
    both = next((subject for subject in plan.subjects if subject.model.startswith(WIDE)), None)
    if config.models or both is None or plan.budget_s is None:
        return None
    wanted = _sizes(plan, both)[-1]
    if both.model == wanted:
        return None
    cache = f"{(cache_bytes(plan.device) or 0) / 1e6:.0f} MB of last-level cache"
    return (
        f"the model is {both.model}: a budget of {duration(plan.budget_s)} is too short for {wanted}, "
        f"the size wanted beside {cache}; give a longer --budget for a larger one"
    )


def without_budget(config: BenchConfig, plan: Plan) -> BenchConfig:
    """The configuration that measures a plan's cases however long it takes: its model in the same size."""
    free = config.model_copy(update={"budget": "none"})
    if len(plan.subjects) > 1 or plan_of(free).subjects == plan.subjects:
        return free
    subject = plan.subjects[0]
    sizes = {name: getattr(subject, name) for name in SIZES}
    return free.model_copy(update={"models": (subject.model,), **sizes})


def plan_for(
    models: Sequence[str | nn.Module | tuple[nn.Module, Any]],
    methods: Sequence[str | MethodSpec | Method],
    options: Mapping[str, Any],
) -> Plan:
    """The plan of options in Python, where models and methods may be objects.

    Raises
    ------
    ValueError
        If an option is wrong, two models have one name, or models in memory are not on one device.
    """
    objects = [LoadedModel(*one) if isinstance(one, tuple) else LoadedModel(one, None)
               for one in models if not isinstance(one, str)]  # fmt: skip
    loaded = {_name_of(one.model): one for one in objects}
    names = [one for one in models if isinstance(one, str)] + list(loaded)
    if len(loaded) < len(objects) or len(set(names)) < len(names):
        raise ValueError(f"two models have one name; set model.config._name_or_path; got {', '.join(names)}")
    specs = [one for one in methods if not isinstance(one, Method)]
    config = BenchConfig.of({**options, "models": names, "methods": specs})
    plan = plan_of(config, [one for one in methods if isinstance(one, Method)])
    if not loaded:
        return plan
    subjects = tuple(_of_object(one, loaded.get(one.model)) for one in plan.subjects)
    devices = sorted({str(next(one.model.parameters()).device) for one in objects})
    asked = config.device or devices[0]
    if len(devices) > 1 or asked not in (devices[0], devices[0].partition(":")[0]):
        raise ValueError(f"models in memory stay where they are, on one device: {', '.join(devices)}; got {asked!r}")
    return replace(plan, subjects=subjects, loaded=loaded, device=devices[0])


def _name_of(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or type(model).__name__)


def _of_object(subject: Subject, loaded: LoadedModel | None) -> Subject:
    """A model in memory has its own type; without a tokenizer it has no text, so no quality."""
    if loaded is None:
        return subject
    dtype = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
    return replace(subject, dtype=dtype, quality=subject.quality and loaded.tokenizer is not None)


def only(config: BenchConfig, cases: Sequence[Case]) -> BenchConfig:
    """The configuration that measures some cases of one setting alone, and the dense run that they are compared with.

    Raises
    ------
    ValueError
        If the cases ask for unlike requests.
    """
    first = cases[0]
    if len({(case.setting, case.execution) for case in cases}) > 1:
        raise ValueError("cases of several settings are no one configuration")
    changes: dict[str, Any] = {name: getattr(first, name) for name in ("batch", "device", "execution", "seed")}
    profile = next((case.layer_sparsity_from for case in cases if case.layer_sparsity_from is not None), None)
    if profile is None or not {case.key for case in cases} <= {case.key for case in plan_of(config).cases()}:
        changes |= {name: getattr(first, name) for name in SIZES}
        changes["models"] = tuple(dict.fromkeys(name for name in (profile, first.model) if name is not None))
    changes = {**config.options(), **changes, "sparsities": ()}
    plan = plan_of(BenchConfig.of({**changes, "methods": ()}))
    methods = [_asked(plan, case.spec) for case in cases if not case.is_baseline] or [_asked(plan, first.spec)]
    return BenchConfig.of({**changes, "methods": methods})


def _asked(plan: Plan, spec: MethodSpec) -> MethodSpec:
    """A spec without what the plan gives by itself: builds of before methods had options cannot be asked for it."""
    usual = plan._built(spec.name)[0].options
    told = {name: value for name, value in spec.options.items() if name not in usual or usual[name] != value}
    return spec.model_copy(update={"options": told})


def _check_data(tasks: Sequence[str], folder: Path | None) -> None:
    """Raise ValueError if a folder of local data holds none of some tasks."""
    files = [f"{task}.jsonl" for task in tasks]
    if folder is not None and not any((folder / file).is_file() for file in files):
        raise ValueError(f"{folder} holds no data of the tasks asked for: {', '.join(files)}")


def _ask(task: Ask, config: BenchConfig) -> Ask:
    """A task with its local file, where there is one, and what else is asked of it."""
    file = None if config.task_data is None else config.task_data / f"{task.name}.jsonl"
    return replace(
        task,
        data=file if file is not None and file.is_file() else None,
        shots=task.shots if config.shots is None else config.shots,
        items=task.items if config.items is None else config.items,
        chat=task.chat or config.chat_template,
    )


def _subject(model: str, profile: str | None, plan: Plan) -> Subject:
    if plan.tasks:  # a preset of tasks has one size of request for all of its models
        return replace(plan.subjects[0], model=model, quality=not is_shape(model))
    if is_shape(model):
        return Subject(model, prompt_tokens=128, dtype="bfloat16", quality=False, layer_sparsity_from=profile)
    return Subject(model)
