"""Everything a model needs before it is measured: weights, documents and thresholds."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tda.bench.plan import Plan, Subject
from tda.calibration import calibrate_all
from tda.contracts import Method
from tda.engine.identity import identify
from tda.engine.transformers_api import text_config
from tda.families import find_ffns
from tda.models import is_shape, load_model
from tda.quality import Document, calibration_batches, evaluation_documents, random_documents
from tda.thresholds import Thresholds

Profile = Mapping[tuple[str, float | None], Sequence[float]]
"""Achieved sparsity per layer, by method and asked sparsity."""


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
    methods : list of (Method, Thresholds or None or Exception)
        What is measured on it; the exception where calibration failed.
    left_out : list of str
        Why a method is not defined for this model.
    """

    model: nn.Module
    tokenizer: Any
    scored: list[Document]
    timed: list[Document]
    methods: list[tuple[Method, Thresholds | None]]
    left_out: list[str]


@dataclass(frozen=True)
class Texts:
    """JSONL files to evaluate and calibrate on; None is the built-in stream."""

    evaluation: Path | None = None
    calibration: Path | None = None


def prepare(
    plan: Plan,
    subject: Subject,
    out: Path,
    texts: Texts,
    profile: Profile | None,
    say: Callable[[str], None],
    trust_remote_code: bool = False,
) -> Prepared:
    """Load a subject's model, cut its documents, and calibrate what needs it."""
    model, tokenizer = load_model(
        subject.model, dtype=subject.dtype, device=plan.device, trust_remote_code=trust_remote_code
    )
    scored = plan.documents if subject.quality else 0
    timed = plan.rounds * plan.batch if subject.speed else 0
    if is_shape(subject.model):
        vocabulary = text_config(model).vocab_size
        documents = random_documents(vocabulary, subject.prompt_tokens, subject.new_tokens, timed, plan.seed)
    else:
        documents = evaluation_documents(
            tokenizer, subject.prompt_tokens, subject.new_tokens, scored + timed, text=texts.evaluation
        )
    ffn = find_ffns(model)[0]
    methods, left_out = [], []
    for _, method in plan.build():
        try:
            method.check(ffn)
            methods.append(method)
        except ValueError as error:
            left_out.append(str(error))
    prepared = Prepared(model, tokenizer, documents[:scored], documents[scored:], [], list(dict.fromkeys(left_out)))
    thresholds = _thresholds(plan, subject, prepared, methods, out / "thresholds", texts, profile, say)
    prepared.methods = [(method, thresholds.get(_name(method))) for method in methods]
    return prepared


def _name(method: Method) -> str:
    digest = hashlib.sha256(json.dumps(method.calibrated, sort_keys=True).encode()).hexdigest()[:8]
    return f"{method.name}-{digest}"


def _thresholds(
    plan: Plan,
    subject: Subject,
    prepared: Prepared,
    methods: Sequence[Method],
    folder: Path,
    texts: Texts,
    profile: Profile | None,
    say: Callable[[str], None],
) -> dict[str, Thresholds]:
    """Thresholds by method: read where an interrupted run left them, else calibrated in one pass and saved."""
    needed = {_name(method): method for method in methods if method.needs_thresholds}
    stem = hashlib.sha256(
        json.dumps(
            [subject.model, subject.dtype, plan.calibration_documents, plan.seed, str(texts.calibration)]
        ).encode()
    ).hexdigest()[:8]
    paths = {name: folder / f"{stem}-{name}.json" for name in needed}
    model = identify(prepared.model, find_ffns(prepared.model))
    found: dict[str, Thresholds] = {}
    for name, method in needed.items():
        if paths[name].is_file():
            found[name] = Thresholds.load(paths[name])
            found[name].check_model(model)
            found[name].check_method(method.calibrated)
    missing = [name for name in needed if name not in found]
    if missing:
        say(f"calibrating {', '.join(sorted({needed[name].name for name in missing}))} for {subject.model}")
        made = calibrate_all(
            prepared.model,
            [needed[name] for name in missing],
            _batches(plan, subject, prepared, texts),
            layer_sparsity=[_shares(needed[name], profile, model.layers) for name in missing],
        )
        for name, thresholds in zip(missing, made, strict=True):
            thresholds.save(paths[name])
            found[name] = thresholds
    return found


def _batches(plan: Plan, subject: Subject, prepared: Prepared, texts: Texts) -> list[dict[str, torch.Tensor]]:
    """Calibration text of the power of two of tokens that holds the prompts."""
    length = 1 << (subject.prompt_tokens - 1).bit_length()
    if is_shape(subject.model):
        vocabulary = text_config(prepared.model).vocab_size
        documents = random_documents(vocabulary, length, 0, 8, plan.seed + 1)
        return [{"input_ids": torch.stack([document.prompt for document in documents])}]
    return calibration_batches(prepared.tokenizer, length, plan.calibration_documents, text=texts.calibration, batch=8)


def _shares(method: Method, profile: Profile | None, layers: int) -> list[float] | None:
    """Another model's achieved sparsity per layer, stretched over this model's depth."""
    if profile is None or method.sparsity is None or method.name == "static_mean":
        return None
    known = profile.get((method.name, method.sparsity))
    if known is None:
        return [method.sparsity] * layers
    depth = (np.arange(layers) + 0.5) / layers
    given = (np.arange(len(known)) + 0.5) / len(known)
    return np.interp(depth, given, known).tolist()  # type: ignore[no-any-return]
