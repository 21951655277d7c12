"""Dense with int8 weights by torchao, through Hugging Face's generate."""

from collections.abc import Iterator
from contextlib import contextmanager

from torchao.quantization import Int8WeightOnlyConfig, quantize_

import tda
from experiments.peers.huggingface import engine
from experiments.peers.job import Engine, Job


@contextmanager
def serve(job: Job, *, compiled: bool) -> Iterator[Engine]:
    """The model with every linear in int8, one scale a row."""
    model = tda.load_model(job.model, dtype=job.dtype).model
    quantize_(model, Int8WeightOnlyConfig())
    yield engine(model, job, compiled=compiled)
