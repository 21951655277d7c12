"""The plan of a configuration, and the configuration of some cases."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tda.bench.budget import parse_fraction, parse_seconds
from tda.bench.model_size import in_affordable_size
from tda.bench.plan import Plan, Subject
from tda.bench.presets import PRESETS
from tda.cases import Case, MethodSpec
from tda.config import BenchConfig, flag_of
from tda.contracts import Method
from tda.models import LoadedModel, is_shape
from tda.tasks import Ask

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
    changes |= _task_changes(config, plan)
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
    return whole if config.models else in_affordable_size(whole)


def _task_changes(config: BenchConfig, plan: Plan) -> dict[str, Any]:
    """What tasks change in a plan: they take the time that they take, unless one is asked for."""
    if tasks := [Ask(name) for name in config.tasks] or plan.tasks:
        _check_data([task.name for task in tasks], config.task_data)
        changes: dict[str, Any] = {"tasks": tuple(_ask(task, config) for task in tasks), "budget_s": None}
        if config.documents is None and config.text is None and not all(n.startswith("ref:") for n in config.models):
            changes["documents"] = 0  # the built-in stories say little of such a model
        return changes
    given = {name: getattr(config, name) for name in OF_TASKS}
    if alone := [flag_of(name) for name, value in given.items() if value is not None and value is not False]:
        raise ValueError(f"{', '.join(alone)}: for tasks, and none is named; give --task NAME")
    return {}


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
    methods = [_requested(plan, case.spec) for case in cases if not case.is_baseline] or [_requested(plan, first.spec)]
    return BenchConfig.of({**changes, "methods": methods})


def _requested(plan: Plan, spec: MethodSpec) -> MethodSpec:
    """A spec without what the plan gives by itself: builds of before methods had options cannot be asked for it."""
    usual = plan.methods_of(spec.name)[0].options
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
