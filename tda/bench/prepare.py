"""Everything a model needs before it is measured: weights, documents and thresholds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import nn

from tda import device as facts
from tda.bench.budget import NO_END, Deadline
from tda.bench.plan import Plan, Subject
from tda.calibration import calibrate_all
from tda.cases import Inputs, MethodSpec, digest_of
from tda.contracts import Method, Window
from tda.engine.context import check_context, context_length, fits
from tda.engine.identity import identify
from tda.engine.transformers_api import text_config
from tda.families import find_ffns
from tda.limits import matmul_tflop_per_s
from tda.methods import METHODS
from tda.models import is_shape, load_model, parameter_count
from tda.models.digest import weights_digest
from tda.quality import Document, calibration_batches, evaluation_documents, random_documents, recall_questions
from tda.quality.documents import read_jsonl, text_facts
from tda.quality.recall import Question
from tda.tasks import check_extra
from tda.thresholds import WINDOW, Thresholds
from tda.view import FFN

if TYPE_CHECKING:
    from tda.tasks.run import Prepared as Task

Profile = Mapping[MethodSpec, Sequence[float]]
"""Achieved sparsity per layer, by method."""
LOADED_AND_HASHED_S = 10.0
"""Seconds to fill and identify a billion random weights, about."""
RANDOM_CALIBRATION = 8
"""Documents of random tokens that a shape's thresholds are made from."""


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
    tasks : list of tda.tasks.run.Prepared
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


def prepare(
    plan: Plan,
    subject: Subject,
    *,
    folder: Path | None = None,
    profile: Profile | None = None,
    artifact: Thresholds | None = None,
    say: Callable[[str], None] = lambda sentence: None,
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
    say : callable
        Told in a sentence what takes long.
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
    scored = plan.documents if subject.quality else 0
    timed = plan.rounds * plan.batch if subject.speed else 0
    if tokenizer is None:
        vocabulary = text_config(model).vocab_size
        documents = random_documents(vocabulary, subject.prompt_tokens, subject.new_tokens, timed, plan.seed)
    else:
        documents = evaluation_documents(
            tokenizer, subject.prompt_tokens, subject.new_tokens, scored + timed, text=plan.text
        )
    asks = plan.recall and subject.quality and plan.text is None
    asked = recall_questions(tokenizer, plan.documents) if asks else []
    questions = [question for question in asked if fits(model, len(question.context), len(question.answer))]
    methods, left_out = _defined(plan, find_ffns(model)[0])
    if len(questions) < len(asked):
        left_out.append(f"{len(asked) - len(questions)} of {len(asked)} recall questions are longer than its context")
    tasks = _tasks(plan, subject, model, tokenizer, any(method.needs_fit for method in methods), say)
    prepared = Prepared(model, tokenizer, documents[:scored], documents[scored:], questions, [], left_out, tasks)
    inputs = _inputs(plan, subject, prepared)
    if artifact is not None and (told := artifact.foreign(subject.model, inputs.weights)):
        say(told)
    if artifact is not None:
        methods = fitted_with(artifact, methods)
    calibration = _Calibration(plan, subject, prepared, inputs, folder, profile, deadline)
    thresholds = calibration.thresholds(methods, say)
    for made in thresholds.values():
        made.check_text([torch.cat([document.prompt, document.continuation]).numpy() for document in documents])
    for method in methods:
        own = {"calibration": calibration.digest(method), "plug_in": METHODS.plug_in(type(method))}
        name = _name(method)
        fitted = method.with_thresholds(thresholds[name]) if name in thresholds else method
        prepared.methods.append((fitted, inputs.model_copy(update=own)))
    _check_tasks(prepared)
    return prepared


def _tasks(
    plan: Plan, subject: Subject, model: nn.Module, tokenizer: Any, calibrated: bool, say: Callable[[str], None]
) -> list["Task"]:
    """The plan's tasks with their items, none of which may stand in the calibration text."""
    if not plan.tasks or not subject.quality:
        return []
    check_extra()
    from tda.tasks import leaks, run

    tasks = run.prepare(plan.tasks, tokenizer, say=say)
    positions = context_length(text_config(model))
    for task in tasks:
        if positions is not None and task.new_tokens >= positions:
            told = f"{task.new_tokens} new tokens, and {subject.model} has {positions} positions"
            raise ValueError(f"task {task.asked.name} asks for {told}")
    if calibrated and plan.calibration_text is not None:
        leaks.check(read_jsonl(plan.calibration_text), [task.asked for task in tasks])
    return tasks


def _check_tasks(prepared: Prepared) -> None:
    """Raise ValueError if thresholds that came from elsewhere were made from text that a task asks."""
    if not prepared.tasks:
        return
    from tda.tasks import leaks

    for thresholds in {id(one.thresholds): one.thresholds for one, _ in prepared.methods if one.thresholds}.values():
        leaks.check_thresholds(thresholds, prepared.tokenizer, [task.asked for task in prepared.tasks])


def _inputs(plan: Plan, subject: Subject, prepared: Prepared) -> Inputs:
    """What every method of a model is measured on."""
    name, digest, size = ("random tokens", None, None) if prepared.tokenizer is None else text_facts(plan.text)
    documents = prepared.scored or prepared.timed[:1]
    return Inputs(
        text=digest,
        text_name=name,
        text_bytes=size,
        documents=_tokens_digest(torch.cat([document.prompt, document.continuation]) for document in documents),
        weights=weights_digest(prepared.model) if subject.model in plan.loaded or not is_shape(subject.model) else None,
        revision=getattr(prepared.model.config, "_commit_hash", None),
        change=facts.commit().change,
    )


def _tokens_digest(rows: Iterable[torch.Tensor]) -> str:
    return digest_of([row.tolist() for row in rows])


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


def _name(method: Method) -> str:
    return f"{method.name}-{digest_of(method.calibrated, 8)}"


@dataclass(frozen=True)
class _Calibration:
    """Thresholds for one subject: read where an earlier run left them, else made in one pass and kept."""

    plan: Plan
    subject: Subject
    prepared: Prepared
    inputs: Inputs
    folder: Path | None
    profile: Profile | None
    deadline: Deadline
    _cut: dict[Window, tuple[list[dict[str, torch.Tensor]], str]] = field(default_factory=dict)

    def thresholds(self, methods: Sequence[Method], say: Callable[[str], None]) -> dict[str, Thresholds]:
        needed = {_name(method): method for method in methods if method.needs_fit}
        found = {name: kept for name, method in needed.items() if (kept := self._kept(name, method)) is not None}
        missing = [name for name in needed if name not in found]
        if not missing:
            return found
        say(f"calibrating {', '.join(sorted({needed[name].name for name in missing}))} for {self.subject.model}")
        for window in get_args(Window):
            names = [name for name in missing if needed[name].window == window]
            if not names:
                continue
            made = calibrate_all(
                self.prepared.model,
                [needed[name] for name in names],
                self.deadline.each(self._text(window)[0]),
                layer_sparsity=[self._shares(needed[name]) for name in names],
                progress=False,
            )
            for name, thresholds in zip(names, made, strict=True):
                if self.folder is not None:
                    thresholds.save(self._path(name, needed[name]))
                found[name] = thresholds
        return found

    def digest(self, method: Method) -> str | None:
        """Hash of what a method's thresholds follow from; None where it has none."""
        if not method.needs_fit:
            return None
        if method.thresholds is not None:
            return digest_of(method.thresholds.model_dump(mode="json", exclude={"versions"}))
        return digest_of([self._text(method.window)[1], self._shares(method)])

    def _path(self, name: str, method: Method) -> Path:
        """Where thresholds are kept that follow from equal text, weights and code."""
        assert self.folder is not None
        what = [self.digest(method), self.subject.dtype, self.inputs.weights, self.inputs.change]
        return self.folder / f"{digest_of(what, 8)}-{name}.json"

    def _kept(self, name: str, method: Method) -> Thresholds | None:
        """What a method was fitted with: by who asked for it, else by an earlier run."""
        thresholds = method.thresholds
        if thresholds is None:
            if self.folder is None or not self._path(name, method).is_file():
                return None
            thresholds = Thresholds.load(self._path(name, method))
            thresholds.check_method(method.calibrated)
        thresholds.check_model(identify(self.prepared.model, find_ffns(self.prepared.model)))
        return thresholds

    def _length(self, window: Window) -> int:
        """Tokens of a calibration document, as many as the model holds.

        A "prompt" is the power of two that holds every prompt; a "request" is a prompt and its answer, or that.
        """
        longest = max([self.subject.prompt_tokens, *(len(question.context) for question in self.prepared.questions)])
        if self.plan.calibration_text is None and self.prepared.tokenizer is not None:
            longest = max(longest, 2 * WINDOW)  # first words alone are alike in all built-in streams
        length = 1 << (longest - 1).bit_length()
        if window == "request":
            length = max(length, self.subject.prompt_tokens + self.subject.new_tokens)
        positions = context_length(text_config(self.prepared.model))
        return length if positions is None else min(length, positions)

    def _text(self, window: Window) -> tuple[list[dict[str, torch.Tensor]], str]:
        """Calibration text as tokens, and their hash; where no document is as long as a request, of prompts."""
        if window not in self._cut:
            try:
                batches = self._documents(self._length(window))
                self._cut[window] = batches, _tokens_digest(row for batch in batches for row in batch["input_ids"])
            except ValueError:
                if window == "prompt":
                    raise
                self._cut[window] = self._text("prompt")
        return self._cut[window]

    def _documents(self, length: int) -> list[dict[str, torch.Tensor]]:
        """Batches of documents of so many tokens."""
        if self.prepared.tokenizer is None:
            vocabulary = text_config(self.prepared.model).vocab_size
            documents = random_documents(vocabulary, length, 0, RANDOM_CALIBRATION, self.plan.seed + 1)
            return [{"input_ids": torch.stack([document.prompt for document in documents])}]
        count, text = self.plan.calibration_documents, self.plan.calibration_text
        return calibration_batches(self.prepared.tokenizer, length, count, text=text)

    def _shares(self, method: Method) -> list[float] | None:
        """Share that each layer is to leave out: another model's, stretched over this model's depth.

        None leaves it to the method. Random weights make an error level meaningless, so a shape without another model
        to imitate shares the sparsity evenly.
        """
        if self.profile is None or method.name == "static_mean":
            return None
        layers = len(method.places(self.prepared.model, find_ffns(self.prepared.model)))
        known = self.profile.get(method.spec)
        if known is None:
            return None if method.sparsity is None else [method.sparsity] * layers
        depth = (np.arange(layers) + 0.5) / layers
        given = (np.arange(len(known)) + 0.5) / len(known)
        return [float(share) for share in np.interp(depth, given, known)]
