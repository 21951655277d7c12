"""Tasks of lm-eval and of ours, made ready by lm-eval: what name, which data, how many examples."""

import difflib
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from tda.tasks import Ask
from tda.tasks.catalogue import CATALOGUE, Entry, TaskKind
from tda.tasks.hub import reachable_hub
from tda.tasks.local import LocalData, read, shapes
from tda.tasks.quiet import quiet
from tda.tasks.scores import plain_name

logger = logging.getLogger(__name__)

SEED = 1234
"""lm-eval's own, for few-shot examples."""
KINDS: dict[str, TaskKind] = {"multiple_choice": "choice", "generate_until": "generation"}
"""Output types of lm-eval that local data in the simple shape can have."""


@dataclass(frozen=True)
class LoadedTask:
    """A task of lm-eval with its data.

    Attributes
    ----------
    name : str
        As measurement names spell it.
    task : Task
        lm-eval's object.
    source : str
        The data set's id on the hub, or the local file's name.
    place : str
        Where an item's data comes from, for messages.
    """

    name: str
    task: Any
    source: str
    place: str


def load(ask: Ask) -> list[LoadedTask]:
    """Tasks that a name stands for, with data and few-shot examples: one, or those of a group.

    Raises
    ------
    ValueError
        If the name is unknown, local data has another shape, the hub's cannot be had, or so many examples cannot be.
    """
    if ask.shots is not None and ask.shots < 0:
        raise ValueError(f"task {ask.name}: examples before the question are 0 or more, got {ask.shots}")
    if ask.items is not None and ask.items < 1:
        raise ValueError(f"task {ask.name}: at least one item is asked, got {ask.items}")
    with quiet():
        found = _local(ask) if ask.data is not None else _from_hub(ask.name)
        for loaded in found:
            _check(loaded)
            _set_shots(loaded, ask.shots)
    return found


def _local(ask: Ask) -> list[LoadedTask]:
    """A task on the items of a file."""
    assert ask.data is not None
    entry = CATALOGUE.get(ask.name)
    config = {"output_type": "generate_until"} if entry and entry.own else _harness_config(ask.name, entry)
    kind = entry.kind if entry else KINDS.get(config.get("output_type", "generate_until"))
    if "process_results" in config:
        kind = None  # what scores an answer reads the data set's own fields
    data = read(ask.data, kind, entry.fields if entry else None)
    if data.copies:
        logger.warning(f"{data.path}: {data.copies} lines hold an item that came before; each item counts once")
    try:
        task = _own_task(ask.name, entry, data) if entry and entry.own else _harness_task(ask.name, entry, config, data)
    except Exception as error:  # whatever a task's functions do on a line that does not suit them
        expected = shapes(kind, entry.fields if entry else None)
        raise ValueError(
            f"{data.path}: its lines do not suit the task {ask.name} ({_reason(error)}); expected {expected} a line"
        ) from error
    return [LoadedTask(plain_name(ask.name), task, data.path.name, str(data.path))]


def _from_hub(name: str) -> list[LoadedTask]:
    """The tasks of a name on the hub's data."""
    entry = CATALOGUE.get(name)
    own = entry is not None and entry.own is not None
    manager = None if own else _manager(name, entry)
    with reachable_hub() as reachable:
        try:
            if manager is None:
                assert entry is not None
                tasks = {name: _own_task(name, entry, None)}
            else:
                tasks = manager.load([_harness_name(name, entry)])["tasks"]
        except ImportError as error:
            raise ValueError(f"task {name} needs what is not installed ({error})") from error
        except Exception as error:  # of datasets, of its network libraries, or of a task's own code
            raise ValueError(_no_data(name, entry, _reason(error) if reachable else "it does not answer")) from error
    return [LoadedTask(plain_name(task), loaded, _source(loaded), f"task {task}") for task, loaded in tasks.items()]


def _no_data(name: str, entry: Entry | None, why: str) -> str:
    """Why a task stands without data, and what to do."""
    if entry is not None:
        source = " ".join(filter(None, (entry.dataset, entry.subset)))
        shape = shapes(entry.kind, entry.fields)
    else:
        config = _manager(name, None).task_index[name].cfg or {}
        source = " ".join(filter(None, (config.get("dataset_path"), config.get("dataset_name"))))
        shape = shapes(KINDS.get(config.get("output_type", "")), None)
    what = f"its data set {source}" if source else "its data"
    return (
        f"task {name}: {what} cannot be had from the Hugging Face hub ({why}). Give it a local file instead, "
        f"{name}.jsonl in a folder that --task-data names, a line of it {shape}"
    )


def _reason(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _source(task: Any) -> str:
    return " ".join(filter(None, (task.DATASET_PATH, task.DATASET_NAME))) or "unknown"


def _harness_name(name: str, entry: Entry | None) -> str:
    return entry.harness if entry and entry.harness else name


def _manager(name: str, entry: Entry | None) -> Any:
    """The index of lm-eval's tasks that has a name.

    Raises
    ------
    ValueError
        If no index has it: the nearest names.
    """
    if entry and entry.folder:
        manager = index(entry.folder)
        if entry.harness in manager.task_index:
            return manager
    manager = index()
    known = manager.task_index
    wanted = _harness_name(name, entry)
    if wanted not in known:
        near = difflib.get_close_matches(name, [*CATALOGUE, *(task for task in known if task not in CATALOGUE)], 5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"unknown task {name!r}{hint}. By our names: {', '.join(CATALOGUE)}; lm-eval's all work too")
    return manager


@functools.cache
def index(folder: str | None = None) -> Any:
    """lm-eval's tasks: those in one folder, or all, which takes seconds to read."""
    if folder is None:
        return TaskManager()
    return TaskManager(include_defaults=False, include_path=Path(lm_eval.tasks.__file__).parent / folder)


def _harness_config(name: str, entry: Entry | None) -> dict[str, Any]:
    """The configuration of one of lm-eval's tasks, its functions unread.

    Raises
    ------
    ValueError
        If the name is unknown, a group's, or that of a task in Python.
    """
    found = _manager(name, entry).task_index[_harness_name(name, entry)]
    if found.kind.name in ("GROUP", "TAG"):
        raise ValueError(f"{name} is a group of tasks, and local data is one task's; name one of the group")
    if found.kind.name != "TASK":
        raise ValueError(f"task {name} reads its data by code of its own, which local data cannot replace")
    return dict(found.cfg or {})


def _own_task(name: str, entry: Entry, data: LocalData | None) -> Any:
    """A generation task of ours on the hub's data or on a file's."""
    assert entry.own is not None
    own = entry.own

    made: dict[str, Any] = {}  # lm-eval asks for the items again and again

    def process_docs(split: Any) -> Any:
        key = split._fingerprint
        if key not in made:
            made[key] = datasets.Dataset.from_list([item for row in split for item in own.rows(row)])
        return made[key]

    def process_results(item: dict[str, Any], results: list[str]) -> dict[str, float]:
        return own.scorer(item["answers"], results[0])

    config = {
        "task": name,
        "dataset_path": entry.dataset,
        "dataset_name": entry.subset,
        "output_type": "generate_until",
        "test_split": entry.split,
        "fewshot_split": own.examples,
        "process_docs": process_docs,
        "doc_to_text": "prompt",
        "doc_to_target": "answers",
        "process_results": process_results,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in own.metrics],
        "generation_kwargs": {"until": list(own.stop), "max_gen_toks": own.max_new_tokens, "do_sample": False},
        "metadata": {"version": own.version},
    }
    if data is not None:
        config |= _splits(data, {})
        if data.simple:
            config["process_docs"] = None
    return ConfigurableTask(config=config)


def _harness_task(name: str, entry: Entry | None, config: dict[str, Any], data: LocalData) -> Any:
    """lm-eval's own task, its data set replaced; in the simple shape its prompt too."""
    wanted = _harness_name(name, entry)
    changes: dict[str, Any] = {"task": wanted, **_splits(data, config)}
    if data.simple:
        changes |= {"process_docs": None, "use_prompt": None, "description": "", "gen_prefix": None}
        changes |= {"target_delimiter": " ", "should_decontaminate": False}
        if KINDS[config["output_type"]] == "choice":
            changes |= {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
        else:
            changes |= {"doc_to_text": "prompt", "doc_to_choice": None, "doc_to_target": "answers"}
    inline = {"group": "local", "task": [changes]}  # the one way to lm-eval's own task with changes
    (task,) = _manager(name, entry).load([inline])["tasks"].values()
    return task


def _splits(data: LocalData, config: dict[str, Any]) -> dict[str, Any]:
    """What of a task's configuration says where its items and examples are."""
    splits = {"test": datasets.Dataset.from_list(data.rows)}
    if data.examples:
        splits["train"] = datasets.Dataset.from_list(data.examples)
    examples = "train" if data.examples else "test"
    given = dict(config.get("fewshot_config") or {})
    kept = {key: given[key] for key in ("sampler", "samples") if key in given}
    return {
        "custom_dataset": lambda **_: splits,
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None if "samples" in kept and not data.examples else examples,
        "fewshot_config": kept if data.simple or not given else {**given, "split": examples, **kept},
    }


def _check(loaded: LoadedTask) -> None:
    """Raise ValueError for a task that cannot be run here."""
    task = loaded.task
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"task {loaded.name} runs code that the model wrote, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"task {loaded.name} shows images or sound, which is not done here")


def _set_shots(loaded: LoadedTask, shots: int | None) -> None:
    """Set the examples before the question, drawn from other items than the one that is asked.

    Raises
    ------
    ValueError
        If the task is defined without examples, or there are too few.
    """
    task, default = loaded.task, loaded.task.get_config("num_fewshot")
    if shots and default == 0:
        raise ValueError(f"task {loaded.name} is defined without few-shot examples, got {shots}")
    task.set_config("num_fewshot", (default or 0) if shots is None else shots)
    wanted = task.get_config("num_fewshot")
    if not wanted or not hasattr(task, "sampler"):
        return
    alike = _examples_split(task) == (task.config.test_split or task.config.validation_split)
    if alike:
        task.fewshot_cfg.split = task.config.test_split  # where these are equal, lm-eval leaves the item itself out
    there = len(task.sampler.df) - alike
    if there < wanted:
        raise ValueError(f"{loaded.place} has {there} examples for an item, and {wanted} are asked before it")


def _examples_split(task: Any) -> str | None:
    """The split that lm-eval draws examples from; None where they stand in the task itself."""
    found, config = task.fewshot_cfg, task.config
    if found.split is None and found.samples is not None:
        return None
    split: str | None = found.split or config.training_split or config.validation_split or config.test_split
    return split
