"""tda on its own kernels, through the model's own generate."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import tda
from experiments.peers.huggingface import generate
from experiments.peers.job import Engine, Job
from tda.families import find_ffns
from tda.methods import method as method_named
from tda.quality import random_documents

CALIBRATION = 8
"""Documents of random tokens that thresholds are made from."""


def calibrate(job: Job, *, file: Path, sparsity: float) -> None:
    """Thresholds of TDA for a model with random weights: every layer leaves out the same share."""
    model: Any = tda.load_model(job.model, dtype=job.dtype).model
    length = 1 << (len(job.prompt) - 1).bit_length()  # thresholds are kept for powers of two; this one holds the prompt
    documents = random_documents(model.config.vocab_size, length, 0, CALIBRATION, seed=1)
    batch = {"input_ids": torch.stack([document.prompt for document in documents])}
    shares = [sparsity] * len(find_ffns(model))
    made = tda.calibrate(model, tda.TDA(sparsity=sparsity), [batch], layer_sparsity=shares, progress=False)
    made.save(file)


@contextmanager
def serve(job: Job, *, method: str, file: Path | None = None, **options: Any) -> Iterator[Engine]:
    """A method attached to the model, its thresholds from a file."""
    model = tda.load_model(job.model, dtype=job.dtype, device=job.device).model
    thresholds = None if file is None else tda.Thresholds.load(file)
    with tda.attach(model, method_named(method, **options), thresholds) as run:

        def settings() -> dict[str, Any]:
            left_out = mean(run.achieved_sparsity())
            return {"execution": run.execution, "backend": run.backend, "achieved_sparsity": round(left_out, 4)}

        yield Engine(partial(generate, model), settings)
