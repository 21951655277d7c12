"""Run tasks on a prepared model of lm-eval, and give every item with what was asked, answered and scored."""

import functools
import hashlib
import json
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import lm_eval
import lm_eval.evaluator
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from tda.names import Protocol
from tda.records import TaskFacts
from tda.tasks import Ask, Item, TaskResult
from tda.tasks.content import TaskContent, TaskItem
from tda.tasks.harness import SEED, LoadedTask, load
from tda.tasks.quiet import quiet
from tda.tasks.scores import is_mean, of_item, score_name

logger = logging.getLogger(__name__)

PROTOCOL: Protocol = "all_sparse"
"""What a model that tells of no protocol is scored under: it is dense."""
NEW_TOKENS = 256
"""Of an answer at most, where a task names no number: lm-eval's own."""
OTHERS = 100
"""Items from all over a data set that show which words are the task's own."""

Template = Callable[..., str]
"""Turns of a chat to a prompt, with the argument `add_generation_prompt`."""


@dataclass(frozen=True)
class PreparedTask:
    """A task that is ready to be run, any number of times.

    Attributes
    ----------
    ask : Ask
        What was asked for; a group's task under the group's.
    loaded : LoadedTask
        lm-eval's task with its data.
    template : callable or None
        The chat template that is applied.
    content : TaskContent
        Its items.
    digest : str
        Hash of them as they are asked, and of how an answer is generated.
    """

    ask: Ask
    loaded: LoadedTask
    template: Template | None
    content: TaskContent
    digest: str

    @property
    def new_tokens(self) -> int:
        """Tokens of an answer at most; 0 where none is generated."""
        options = [each.args[1] for each in self.loaded.task.instances if each.request_type == "generate_until"]
        told = (normalize_gen_kwargs(one, NEW_TOKENS)["max_gen_toks"] for one in options)
        return max(told, default=0)

    def facts(self, protocol: Protocol) -> TaskFacts:
        """What scores under a protocol are of; how much will be sparse is not known yet."""
        return TaskFacts(
            digest=self.digest,
            items=len(self.content.items),
            shots=self.loaded.task.get_config("num_fewshot"),
            protocol=protocol,
            source=self.loaded.source,
            harness=f"lm-eval {lm_eval.__version__}, task version {self.loaded.task.VERSION}",
        )


def prepare(asks: Sequence[Ask], tokenizer: Any = None) -> list[PreparedTask]:
    """Everything of tasks that needs no model: names, data, few-shot examples, prompts.

    Parameters
    ----------
    asks : sequence of Ask
        The tasks.
    tokenizer : optional
        The model's, for its chat template.

    Raises
    ------
    ValueError
        If a name is unknown or comes twice, data is missing or of another shape, or there is no chat template.
    """
    prepared = []
    for ask in asks:
        template = _template(ask, tokenizer) if ask.chat else None
        with quiet():
            prepared += [_prepared(ask, loaded, template) for loaded in load(ask)]
    names = [task.content.name for task in prepared]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise ValueError(f"the task {twice} is asked twice; a result holds one of a name")
    return prepared


def evaluate(lm: Any, asks: Sequence[Ask] | Sequence[PreparedTask]) -> list[TaskResult]:
    """Run tasks on a model of lm-eval, task after task.

    Parameters
    ----------
    lm
        A model of lm-eval. ``lm.tally.by_request`` says for each request, by (task, item, request within the item),
        how many tokens were scored or generated, how many of these sparsely; a model without it computes none sparsely.
        ``lm.protocol`` says which tokens are to be sparse.
    asks : sequence of Ask or of PreparedTask
        The tasks; prepared ones save that work where several methods are asked the same.
    """
    ready = [ask for ask in asks if isinstance(ask, PreparedTask)]
    ready += prepare([ask for ask in asks if isinstance(ask, Ask)], getattr(lm, "tokenizer", None))
    return [run(lm, task) for task in ready]


def _template(ask: Ask, tokenizer: Any) -> Template:
    """The tokenizer's chat template, as lm-eval's own models apply it."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(f"task {ask.name} is asked as a chat, and the model's tokenizer has no chat template")

    model = SimpleNamespace(tokenizer=tokenizer, chat_template_args={})
    return functools.partial(HFLM.apply_chat_template, model)


def _prepared(ask: Ask, loaded: LoadedTask, template: Template | None) -> PreparedTask:
    """A task with its items as they will be asked."""
    task = loaded.task
    task.set_fewshot_seed(SEED)
    try:
        task.build_all_requests(
            limit=ask.items,
            apply_chat_template=ask.chat,
            fewshot_as_multiturn=ask.chat,
            chat_template=template,
            tokenizer_name="",
        )
        items = [_task_item(task, number, requests, template) for number, requests in _by_item(task.instances)]
        others = _others(task)
    except ValueError as error:
        raise ValueError(f"{loaded.place}: {error}") from error
    for item in items:
        _check_target(loaded, item)
    content = TaskContent(loaded.name, tuple(items), others)
    return PreparedTask(ask, loaded, template, content, _digest(task.instances, items))


def _by_item(requests: Iterable[Any]) -> list[tuple[int, list[Any]]]:
    """Requests of each item, by the item's number."""
    found: dict[int, list[Any]] = defaultdict(list)
    for request in requests:
        found[request.doc_id].append(request)
    return [(number, sorted(found[number], key=lambda request: int(request.idx))) for number in sorted(found)]


def _task_item(task: Any, number: int, requests: list[Any], template: Template | None) -> TaskItem:
    """One item from its requests."""
    item = requests[0].doc
    bare = task.fewshot_context(
        item,
        num_fewshot=0,
        apply_chat_template=template is not None,
        fewshot_as_multiturn=template is not None,
        chat_template=template,
        gen_prefix=task.doc_to_prefix(item),
    )
    question, answers = _texts(task, item)
    rolling = requests[0].request_type == "loglikelihood_rolling"
    weighed: tuple[str, ...] = ()
    if getattr(task, "multiple_input", 0):
        weighed = answers
    elif not rolling and task.OUTPUT_TYPE != "generate_until":
        weighed = tuple(str(each.args[1]) for each in _weighed(requests))
    return TaskItem(
        number=number,
        prompt="" if rolling else _joined([each.args[0] for each in _weighed(requests)]),
        bare="" if rolling else _joined(bare if isinstance(bare, list) else [bare]),
        question=question,
        choices=weighed,
        target=_target(task, item),
        answers=answers,
    )


def _weighed(requests: list[Any]) -> list[Any]:
    """Requests of an item, without those that weigh a choice by itself, as lm-eval's mutual information needs."""
    return [each for each in requests if each.args[0]] or requests


def _joined(prompts: list[str]) -> str:
    """The prompt of an item; where each choice has its own, all of them as JSON."""
    different = list(dict.fromkeys(prompts))
    return different[0] if len(different) == 1 else json.dumps(different, ensure_ascii=False)


def _texts(task: Any, item: Any) -> tuple[str, tuple[str, ...]]:
    """An item's question and its answers, each without examples and template."""
    choices = [str(choice) for choice in task.doc_to_choice(item)] if task.config.doc_to_choice is not None else []
    target, question = task.doc_to_target(item), task.doc_to_text(item)
    right = [each for each in (target if isinstance(target, list) else [target]) if isinstance(each, str)]
    return (question if isinstance(question, str) else "\n".join(choices)), tuple(dict.fromkeys([*choices, *right]))


def _target(task: Any, item: Any) -> str:
    """The right answer, or answers as JSON; empty where none of the choices is."""
    gold = task.doc_to_text(item) if getattr(task, "multiple_input", 0) else task.doc_to_target(item)
    choices = task.doc_to_choice(item) if task.config.doc_to_choice is not None else []
    found = [_answer(each, choices) for each in (gold if isinstance(gold, list) else [gold])]
    return found[0] if len(found) == 1 else json.dumps(found, ensure_ascii=False)


def _answer(gold: Any, choices: list[str]) -> str:
    if choices and isinstance(gold, int):
        return choices[gold].strip() if 0 <= gold < len(choices) else ""
    if choices and str(gold) not in choices:
        return ""
    return str(gold).strip() if choices else str(gold)


def _check_target(loaded: LoadedTask, item: TaskItem) -> None:
    if item.choices and not item.target:
        raise ValueError(f"{loaded.place}: the right answer of item {item.number} is none of its choices")


def _others(task: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Questions and answers of different items, evenly spread over the data set."""
    items = task.eval_docs
    step = max(1, len(items) // OTHERS)
    return tuple(dict.fromkeys(_texts(task, items[number]) for number in range(0, len(items), step)))


def _digest(requests: Iterable[Any], items: list[TaskItem]) -> str:
    """Hash of every request and of every right answer."""
    arguments = [[request.doc_id, request.idx, *request.args] for request in requests]
    told = json.dumps([arguments, [[item.number, item.target] for item in items]], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def run(lm: Any, prepared: PreparedTask) -> TaskResult:
    """Run one task on a model; else as `evaluate`."""
    task, name = prepared.loaded.task, prepared.content.name
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    task.set_fewshot_seed(SEED)
    with quiet():
        results = lm_eval.evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": {task.task_name: task}, "groups": {}},
            limit=prepared.ask.items,
            bootstrap_iters=0,
            apply_chat_template=prepared.template is not None,
            fewshot_as_multiturn=prepared.template is not None,
        )
    digest = _digest(task.instances, list(prepared.content.items))
    if digest != prepared.digest:
        raise ValueError(f"task {name}: its items were asked in another way than they were prepared; prepare it anew")
    told = _token_counts(lm, task.instances)
    items = _items(task, prepared.content, results["samples"][task.task_name], told, name)
    tokens, sparse = sum(item.tokens for item in items), sum(item.sparse_tokens for item in items)
    facts = prepared.facts(getattr(lm, "protocol", PROTOCOL)).model_copy(
        update={"sparse_share": sparse / tokens if tokens else 0.0}
    )
    return TaskResult(name, facts, items, generated=task.OUTPUT_TYPE == "generate_until")


def _token_counts(lm: Any, requests: Iterable[Any]) -> dict[tuple[int, int], tuple[int, int]]:
    """Tokens and sparse tokens of each request, by item and place within it."""
    if hasattr(lm, "tally"):
        return {(one.doc_id, one.idx): lm.tally.by_request[one.task_name, one.doc_id, one.idx] for one in requests}
    return {(each.doc_id, each.idx): (_count(lm, each), 0) for each in requests}


def _count(lm: Any, request: Any) -> int:
    """Tokens of what was scored or generated, by the model's tokenizer."""
    text = request.resps[0] if request.request_type == "generate_until" else request.args[-1]
    return len(lm.tok_encode(text, add_special_tokens=False))


def _items(
    task: Any,
    content: TaskContent,
    samples: list[dict[str, Any]],
    told: dict[tuple[int, int], tuple[int, int]],
    name: str,
) -> list[Item]:
    """Items with answers and scores, in the order of the data set."""
    scores: dict[int, dict[str, float]] = defaultdict(dict)
    left_out: dict[str, None] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            found = of_item(
                metric,
                sample[metric],
                averaged=is_mean(task.aggregation().get(metric)),
                higher=bool(task.higher_is_better().get(metric, True)),
            )
            if found is None:
                left_out[metric] = None
            else:
                scores[sample["doc_id"]][score_name(found[0], sample["filter"])] = found[1]
    if left_out:
        logger.warning(f"task {name}: left out, no mean over items of which more is better: {', '.join(left_out)}")
    answers = dict(_by_item(task.instances))
    return [_item(item, answers[item.number], scores[item.number], told) for item in content.items]


def _item(
    item: TaskItem, requests: list[Any], scores: dict[str, float], told: dict[tuple[int, int], tuple[int, int]]
) -> Item:
    counts = [told[request.doc_id, request.idx] for request in requests]
    output, likelihoods = _output(item, requests)
    return Item(
        number=item.number,
        prompt=item.prompt,
        target=item.target,
        output=output,
        scores=scores,
        tokens=sum(tokens for tokens, _ in counts),
        sparse_tokens=sum(sparse for _, sparse in counts),
        likelihoods=likelihoods,
    )


def _output(item: TaskItem, requests: list[Any]) -> tuple[str, tuple[float, ...]]:
    """The generated text, or the choice of the highest likelihood, and all likelihoods."""
    first = requests[0].resps[0]
    if requests[0].request_type == "generate_until":
        return str(first), ()
    if requests[0].request_type == "loglikelihood_rolling":
        return "", (float(first),)
    likelihoods = tuple(float(request.resps[0][0]) for request in _weighed(requests))
    if len(likelihoods) == 1:
        return (item.choices[0].strip() if first[1] else ""), likelihoods
    chosen = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    return item.choices[chosen].strip(), likelihoods
