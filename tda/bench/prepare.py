"""Everything a model needs before it is measured: weights, documents and thresholds."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tda import device as facts
from tda.bench.budget import NO_END, Deadline
from tda.bench.calibration import RANDOM_CALIBRATION, Calibration, LayerSparsities, thresholds_name, tokens_digest
from tda.bench.plan import Plan, Subject
from tda.cases import Inputs
from tda.contracts import Method
from tda.engine.context import check_context, context_length, fits
from tda.engine.transformers_api import text_config
from tda.families import find_ffns
from tda.limits import matmul_tflop_per_s
from tda.methods import METHODS
from tda.models import is_shape, load_model, parameter_count
from tda.models.digest import weights_digest
from tda.quality import Document, evaluation_documents, random_documents, recall_questions
from tda.quality.documents import read_jsonl, text_facts
from tda.quality.recall import Question
from tda.tasks import check_extra
from tda.thresholds import Thresholds
from tda.view import FFN

if TYPE_CHECKING:
    from tda.tasks.run import PreparedTask as Task

logger = logging.getLogger(__name__)

LOADED_AND_HASHED_S = 10.0
"""Seconds to fill and identify a billion random weights, about."""


@dataclass
class Prepared:
    """A loaded subject of a plan.

    Attributes
    ----------
    model, tokenizer
        As loaded.
    scored : list of Document
        Documents for quality.
    timed : list of Document
        Documents for the timed rounds, `batch` for each.
    questions : list of Question
        Recall items; empty where quality is measured on the user's own text, or not at all.
    methods : list of (Method, Inputs)
        What is measured on it, fitted where that is needed, and on which inputs.
    left_out : list of str
        Why a method is not defined for this model, and which questions are too long for it.
    tasks : list of tda.tasks.run.PreparedTask
        Tasks of lm-eval with their items.
    """

    model: nn.Module
    tokenizer: Any
    scored: list[Document]
    timed: list[Document]
    questions: list[Question]
    methods: list[tuple[Method, Inputs]]
    left_out: list[str]
    tasks: list["Task"] = field(default_factory=list)


def check_texts(plan: Plan) -> None:
    """Raise ValueError if evaluation and calibration files hold one and the same text."""
    if plan.text is None or plan.calibration_text is None:
        return
    shared = set(read_jsonl(plan.text)) & set(read_jsonl(plan.calibration_text))
    if shared:
        raise ValueError(
            f"{plan.text} and {plan.calibration_text} share {len(shared)} texts, e.g. {min(shared)[:40]!r}; "
            "evaluation and calibration text must be disjoint"
        )


# long: its parameters are explained
def prepare(
    plan: Plan,
    subject: Subject,
    *,
    folder: Path | None = None,
    profile: LayerSparsities | None = None,
    artifact: Thresholds | None = None,
    deadline: Deadline = NO_END,
) -> Prepared:
    """Load a subject's model, cut its documents, and calibrate what needs it.

    Parameters
    ----------
    plan, subject
        What is to be measured, on which model.
    folder : Path, optional
        Where thresholds are kept, and found by the next run.
    profile : mapping, optional
        Achieved sparsity per layer of another model, which this one's layers are to leave out.
    artifact : Thresholds, optional
        Thresholds to use for the method that they were made for.
    deadline : Deadline
        When calibration is to have ended.

    Raises
    ------
    ValueError
        If the model or text is wrong, or evaluation text overlaps with calibration text.
    ContextError
        If the model has fewer positions than a request needs.
    OutOfTimeError
        If calibration takes longer than there is time.
    """
    check_texts(plan)
    model, tokenizer = plan.loaded.get(subject.model) or load_model(
        subject.model,
        dtype=subject.dtype,
        device=plan.device,
        revision=plan.revision,
        trust_remote_code=plan.trust_remote_code,
    )
    check_context(model, subject.prompt_tokens, subject.new_tokens)
    scored, timed = _documents(plan, subject, model, tokenizer)
    methods, left_out = _defined(plan, find_ffns(model)[0])
    questions, too_long = _questions(plan, subject, model, tokenizer)
    tasks = _tasks(plan, subject, model, tokenizer, any(method.needs_fit for method in methods))
    prepared = Prepared(model, tokenizer, scored, timed, questions, [], left_out + too_long, tasks)
    inputs = _inputs(plan, subject, prepared)
    if artifact is not None:
        if told := artifact.foreign(subject.model, inputs.weights):
            logger.warning(told)
        methods = fitted_with(artifact, methods)
    calibration = Calibration(plan, subject, model, tokenizer, questions, inputs, folder, profile, deadline)
    thresholds = calibration.thresholds(methods)
    for made in thresholds.values():
        made.check_text([torch.cat([one.prompt, one.continuation]).numpy() for one in scored + timed])
    for method in methods:
        own = {"calibration": calibration.digest(method), "plug_in": METHODS.plug_in(type(method))}
        name = thresholds_name(method)
        fitted = method.with_thresholds(thresholds[name]) if name in thresholds else method
        prepared.methods.append((fitted, inputs.model_copy(update=own)))
    _check_tasks(prepared)
    return prepared


def _documents(plan: Plan, subject: Subject, model: nn.Module, tokenizer: Any) -> tuple[list[Document], list[Document]]:
    """Documents to score, and others to time."""
    scored = plan.documents if subject.quality else 0
    timed = plan.rounds * plan.batch if subject.speed else 0
    sizes = subject.prompt_tokens, subject.new_tokens
    if tokenizer is None:
        documents = random_documents(text_config(model).vocab_size, *sizes, timed, plan.seed)
    else:
        documents = evaluation_documents(tokenizer, *sizes, scored + timed, text=plan.text)
    return documents[:scored], documents[scored:]


def _questions(plan: Plan, subject: Subject, model: nn.Module, tokenizer: Any) -> tuple[list[Question], list[str]]:
    """Recall questions that the model has positions for, and that others are left out."""
    if not (plan.recall and subject.quality and plan.text is None):
        return [], []
    asked = recall_questions(tokenizer, plan.documents)
    found = [question for question in asked if fits(model, len(question.context), len(question.answer))]
    long = len(asked) - len(found)
    return found, [f"{long} of {len(asked)} recall questions are longer than its context"] if long else []


def _tasks(plan: Plan, subject: Subject, model: nn.Module, tokenizer: Any, calibrated: bool) -> list["Task"]:
    """The plan's tasks with their items, none of which may stand in the calibration text."""
    if not plan.tasks or not subject.quality:
        return []
    check_extra()
    from tda.tasks import leaks, run

    tasks = run.prepare(plan.tasks, tokenizer)
    positions = context_length(text_config(model))
    for task in tasks:
        if positions is not None and task.new_tokens >= positions:
            told = f"{task.new_tokens} new tokens, and {subject.model} has {positions} positions"
            raise ValueError(f"task {task.content.name} asks for {told}")
    if calibrated and plan.calibration_text is not None:
        leaks.check(read_jsonl(plan.calibration_text), [task.content for task in tasks])
    return tasks


def _check_tasks(prepared: Prepared) -> None:
    """Raise ValueError if thresholds that came from elsewhere were made from text that a task asks."""
    if not prepared.tasks:
        return
    from tda.tasks import leaks

    for thresholds in {id(one.thresholds): one.thresholds for one, _ in prepared.methods if one.thresholds}.values():
        leaks.check_thresholds(thresholds, prepared.tokenizer, [task.content for task in prepared.tasks])


def _inputs(plan: Plan, subject: Subject, prepared: Prepared) -> Inputs:
    """What every method of a model is measured on."""
    name, digest, size = ("random tokens", None, None) if prepared.tokenizer is None else text_facts(plan.text)
    documents = prepared.scored or prepared.timed[:1]
    return Inputs(
        text=digest,
        text_name=name,
        text_bytes=size,
        documents=tokens_digest(torch.cat([document.prompt, document.continuation]) for document in documents),
        weights=weights_digest(prepared.model) if subject.model in plan.loaded or not is_shape(subject.model) else None,
        revision=getattr(prepared.model.config, "_commit_hash", None),
        change=facts.commit().change,
    )


def expected_seconds(plan: Plan, subject: Subject) -> float:
    """About how long `prepare` takes for a shape on the CPU, by its size and the machine's rates; 0 where not known."""
    if not is_shape(subject.model) or plan.device != "cpu":
        return 0.0
    device, count = torch.device("cpu"), parameter_count(subject.model)
    needed = any(built.needs_fit for built in plan.build())
    operations = 2 * count * RANDOM_CALIBRATION * (1 << (subject.prompt_tokens - 1).bit_length()) * needed
    rate = matmul_tflop_per_s(device, getattr(torch, subject.dtype)) * 1e12
    return LOADED_AND_HASHED_S * count / 1e9 + operations / rate


def _defined(plan: Plan, ffn: FFN) -> tuple[list[Method], list[str]]:
    """The plan's methods that are defined for a model's FFN, and why others are not."""
    methods, left_out = [], []
    for method in plan.build():
        try:
            method.check(ffn)
            methods.append(method)
        except ValueError as error:
            left_out.append(str(error))
    return methods, list(dict.fromkeys(left_out))


def fitted_with(artifact: Thresholds, methods: Sequence[Method]) -> list[Method]:
    """Methods, those that thresholds were made for fitted with them."""
    needy = [method for method in methods if method.needs_fit]
    served = [method for method in needy if method.is_served_by(artifact)]
    if not served:
        wanted = ", ".join(method.name for method in needy) or "no method that needs thresholds"
        raise ValueError(f"the given thresholds are for {artifact.method}; asked for: {wanted}")
    return [method.with_thresholds(artifact) if method in served else method for method in methods]
