"""Hugging Face's own generate: eager, and compiled with a static cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig
from transformers.generation.streamers import BaseStreamer

import tda
from experiments.peers.job import Device, Engine, Job, OnToken


class _Streamer(BaseStreamer):  # type: ignore[misc]  # transformers has no types
    """Tells each generated token as it comes; what comes first is the prompt."""

    def __init__(self, on_token: OnToken) -> None:
        self.on_token = on_token
        self.prompt_passed = False

    def put(self, value: Tensor) -> None:
        if self.prompt_passed:
            self.on_token(int(value))
        self.prompt_passed = True

    def end(self) -> None:
        pass


def generate(model: Any, prompt: Sequence[int], new_tokens: int, on_token: OnToken, **options: Any) -> None:
    """Greedy generation of exactly `new_tokens` tokens through the model's own generate."""
    ids = torch.tensor([prompt], device=model.device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=_Streamer(on_token),
        **options,
    )


def compiled_options(device: Device) -> dict[str, Any]:
    """Options of generate for a static cache and a compiled step.

    On a GPU transformers compiles by itself wherever a cache is static, and has the step replayed as CUDA graphs
    (``reduce-overhead``): it is said here, so that no default of another version changes what is measured. On a CPU it
    compiles only if told.
    """
    if device == "cuda":
        config = CompileConfig(mode="reduce-overhead")
    else:
        config = CompileConfig(mode="default")
        config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def engine(model: Any, job: Job, *, compiled: bool) -> Engine:
    """Hugging Face's generate as a contestant."""
    options = compiled_options(job.device) if compiled else {}
    told = {
        "cache": "static" if compiled else "dynamic",
        "compiled": options["compile_config"].mode if compiled else False,
    }
    answer: Callable[[Sequence[int], int, OnToken], None] = partial(generate, model, **options)
    # A static cache has the length of its request, and another length would be compiled anew.
    warm_up = job.new_tokens if compiled else Engine.warm_up_tokens
    return Engine(answer, lambda: told, warm_up)


@contextmanager
def serve(job: Job, *, compiled: bool) -> Iterator[Engine]:
    """The dense model."""
    model = tda.load_model(job.model, dtype=job.dtype, device=job.device).model
    yield engine(model, job, compiled=compiled)
