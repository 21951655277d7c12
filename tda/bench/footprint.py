"""How much memory the process that measures a model needs: an upper estimate, by its sizes."""

from dataclasses import dataclass

import torch

from tda.bench.calibration import RANDOM_CALIBRATION
from tda.bench.plan import TOGETHER, Plan, Subject
from tda.bench.scoring import SCORED_TOGETHER
from tda.limits import stream_bytes
from tda.models import is_shape
from tda.models.sizes import Sizes
from tda.quality.evaluate import CACHED_BYTES
from tda.quality.recall import LONGEST_TOKENS
from tda.tasks.catalogue import CATALOGUE
from tda.thresholds import WINDOW

PROCESS_BYTES = {"cpu": 650_000_000, "cuda": 3_000_000_000}
"""Host memory of a process that is ready to load a model; CUDA's libraries take more."""
CONTEXT_BYTES = 600_000_000
"""GPU memory of a CUDA context, its kernels and the workspace of products."""
CALIBRATED_TOGETHER = 8
"""Documents of a batch of calibration text."""
HELD_NEURONS, HELD_HIDDEN = 4, 8
"""Activations of F and of D values a token that are held at once in a pass."""
METRIC_BYTES = 24
"""Bytes that metrics take for each logit, in float32, beside the logits of both methods."""


@dataclass(frozen=True)
class Footprint:
    """Memory that a process needs.

    Attributes
    ----------
    host_bytes : int
        Of the machine.
    gpu_bytes : int or None
        Of the GPU; None where none is used. What attachments leave beside it goes when memory runs short.
    """

    host_bytes: int
    gpu_bytes: int | None = None


@dataclass(frozen=True)
class _Batch:
    """Rows that pass together, tokens of each, and of these the ones whose logits are kept."""

    rows: int
    tokens: int
    scored: int = 1


def footprint(plan: Plan, subject: Subject, sizes: Sizes) -> Footprint:
    """Memory that one model of a plan needs.

    Parameters
    ----------
    plan, subject
        What is measured, on which model.
    sizes : Sizes
        Of this model.

    Returns
    -------
    Footprint
        Weights, a copy of those of the feed-forward networks (which an attached method gathers, quantises or lays in
        rows), the largest batch, the dense logits that are held, the buffer of the stream bandwidth, and the process.
    """
    itemsize = getattr(torch, subject.dtype).itemsize
    device = torch.device(plan.device)
    weights, copies = sizes.parameters * itemsize, sizes.ffn_parameters * itemsize
    passing = max(_passing(batch, sizes, itemsize) for batch in _batches(plan, subject))
    scored = plan.documents if subject.quality else 0
    held = min(CACHED_BYTES, scored * subject.new_tokens * sizes.vocabulary * itemsize)
    stream = stream_bytes(device) if subject.speed else 0
    needed = weights + copies + passing + held + stream
    if device.type == "cpu":
        return Footprint(PROCESS_BYTES["cpu"] + needed)
    loaded = 0 if is_shape(subject.model) else weights  # random ones are made on the GPU
    return Footprint(PROCESS_BYTES["cuda"] + loaded, CONTEXT_BYTES + needed)


def _passing(batch: _Batch, sizes: Sizes, itemsize: int) -> int:
    """Bytes of a batch in a pass: key-value cache, activations and logits."""
    values = sizes.cached_values + HELD_NEURONS * sizes.neurons + HELD_HIDDEN * sizes.hidden
    logits = batch.rows * batch.scored * sizes.vocabulary * (2 * itemsize + METRIC_BYTES)
    return batch.rows * batch.tokens * values * itemsize + logits


def _batches(plan: Plan, subject: Subject) -> list[_Batch]:
    """The kinds of batches that a plan has for a model."""
    request = subject.prompt_tokens + subject.new_tokens
    batches = [_Batch(plan.batch, request)]
    if any(method.needs_fit for method in plan.build()):
        rows = RANDOM_CALIBRATION if is_shape(subject.model) else CALIBRATED_TOGETHER
        batches.append(_Batch(rows, max(1 << (subject.prompt_tokens - 1).bit_length(), request, 2 * WINDOW)))
    if subject.quality and plan.documents:
        batches.append(_Batch(SCORED_TOGETHER, request, subject.new_tokens))
        if plan.recall:
            batches.append(_Batch(SCORED_TOGETHER, LONGEST_TOKENS))
    for task in (CATALOGUE[ask.name].size for ask in plan.tasks if ask.name in CATALOGUE):
        tokens = (task.prompt_tokens + task.answer_tokens) * (1 + task.shots)
        batches.append(_Batch(TOGETHER, tokens, task.answer_tokens))
    return batches
