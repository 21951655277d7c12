"""Thresholds of the methods of one model: read where an earlier run left them, else made and kept."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from tda.bench.budget import Deadline
from tda.bench.plan import Plan, Subject
from tda.calibration import calibrate_all
from tda.cases import Inputs, MethodSpec, digest_of
from tda.contracts import Method, Window
from tda.engine.context import context_length
from tda.engine.identity import identify
from tda.engine.transformers_api import text_config
from tda.families import find_ffns
from tda.quality import calibration_batches, random_documents
from tda.quality.recall import Question
from tda.thresholds import WINDOW, Thresholds

logger = logging.getLogger(__name__)

LayerSparsities = Mapping[MethodSpec, Sequence[float]]
"""Achieved sparsity per layer, by method."""
RANDOM_CALIBRATION = 8
"""Documents of random tokens that a shape's thresholds are made from."""


def tokens_digest(rows: Iterable[torch.Tensor]) -> str:
    """Hash of rows of tokens."""
    return digest_of([row.tolist() for row in rows])


def thresholds_name(method: Method) -> str:
    """What thresholds of a method are called in files."""
    return f"{method.name}-{digest_of(method.calibrated, 8)}"


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one subject: read where an earlier run left them, else made in one pass and kept."""

    plan: Plan
    subject: Subject
    model: nn.Module
    tokenizer: Any
    questions: Sequence[Question]
    inputs: Inputs
    folder: Path | None
    profile: LayerSparsities | None
    deadline: Deadline
    _cut: dict[Window, tuple[list[dict[str, torch.Tensor]], str]] = field(default_factory=dict)

    def thresholds(self, methods: Sequence[Method]) -> dict[str, Thresholds]:
        """Of each method that needs some, by `thresholds_name`."""
        needed = {thresholds_name(method): method for method in methods if method.needs_fit}
        found = {name: kept for name, method in needed.items() if (kept := self._kept(name, method)) is not None}
        missing = [name for name in needed if name not in found]
        if not missing:
            return found
        wanted = ", ".join(sorted({needed[name].name for name in missing}))
        logger.info(f"calibrating {wanted} for {self.subject.model}")
        for window in get_args(Window):
            names = [name for name in missing if needed[name].window == window]
            if not names:
                continue
            made = calibrate_all(
                self.model,
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
        thresholds.check_model(identify(self.model, find_ffns(self.model)))
        return thresholds

    def _length(self, window: Window) -> int:
        """Tokens of a calibration document, as many as the model holds.

        A "prompt" is the power of two that holds every prompt; a "request" is a prompt and its answer, or that.
        """
        longest = max([self.subject.prompt_tokens, *(len(question.context) for question in self.questions)])
        if self.plan.calibration_text is None and self.tokenizer is not None:
            longest = max(longest, 2 * WINDOW)  # first words alone are alike in all built-in streams
        length = 1 << (longest - 1).bit_length()
        if window == "request":
            length = max(length, self.subject.prompt_tokens + self.subject.new_tokens)
        positions = context_length(text_config(self.model))
        return length if positions is None else min(length, positions)

    def _text(self, window: Window) -> tuple[list[dict[str, torch.Tensor]], str]:
        """Calibration text as tokens, and their hash; where no document is as long as a request, of prompts."""
        if window not in self._cut:
            try:
                batches = self._documents(self._length(window))
                self._cut[window] = batches, tokens_digest(row for batch in batches for row in batch["input_ids"])
            except ValueError:
                if window == "prompt":
                    raise
                self._cut[window] = self._text("prompt")
        return self._cut[window]

    def _documents(self, length: int) -> list[dict[str, torch.Tensor]]:
        """Batches of documents of so many tokens."""
        if self.tokenizer is None:
            vocabulary = text_config(self.model).vocab_size
            documents = random_documents(vocabulary, length, 0, RANDOM_CALIBRATION, self.plan.seed + 1)
            return [{"input_ids": torch.stack([document.prompt for document in documents])}]
        count, text = self.plan.calibration_documents, self.plan.calibration_text
        return calibration_batches(self.tokenizer, length, count, text=text)

    def _shares(self, method: Method) -> list[float] | None:
        """Share that each layer is to leave out: another model's, stretched over this model's depth.

        None leaves it to the method. Random weights make an error level meaningless, so a shape without another model
        to imitate shares the sparsity evenly.
        """
        if self.profile is None or method.name == "static_mean":
            return None
        layers = len(method.places(self.model, find_ffns(self.model)))
        known = self.profile.get(method.spec)
        if known is None:
            return None if method.sparsity is None else [method.sparsity] * layers
        depth = (np.arange(layers) + 0.5) / layers
        given = (np.arange(len(known)) + 0.5) / len(known)
        return [float(share) for share in np.interp(depth, given, known)]
