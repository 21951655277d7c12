"""vLLM on a folder with the same weights, through the step loop of its offline engine; it is told token ids alone."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tda
from experiments.peers.job import Engine, Job, OnToken

MEMORY = 0.8
"""Share of the device's memory that vLLM may take: the parent of its process holds a context there."""


def make(job: Job, *, file: Path) -> None:
    """Write the model of a job as a folder, which is whole or not there at any moment."""
    model: Any = tda.load_model(job.model, dtype=job.dtype, device=job.device).model
    part = tempfile.mkdtemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        model.save_pretrained(part)
        os.rename(part, file)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


class EngineAnswers:
    """Greedy generation that tells each token at the end of the step that made it.

    Parameters
    ----------
    engine : object
        vLLM's `LLMEngine`.
    params : type
        vLLM's `SamplingParams`.
    """

    def __init__(self, engine: Any, params: Any) -> None:
        self.engine = engine
        self.params = params
        self.numbers = itertools.count()

    def __call__(self, prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
        """Serve a request: an end of text does not end it."""
        params = self.params(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        self.engine.add_request(str(next(self.numbers)), {"prompt_token_ids": list(prompt)}, params)
        told = 0
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                tokens = output.outputs[0].token_ids  # all so far
                for token in tokens[told:]:
                    on_token(int(token))
                told = len(tokens)


@contextmanager
def serve(job: Job, *, file: Path) -> Iterator[Engine]:
    """The model in a folder, with vLLM's own choices of kernels and graphs, and no cache of prompts."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(file),
        dtype=job.dtype,
        skip_tokenizer_init=True,
        max_model_len=len(job.prompt) + job.new_tokens,
        max_num_seqs=1,
        enable_prefix_caching=False,
        gpu_memory_utilization=MEMORY,
    )
    told = {"graphs": True, "prefix_cache": False, "memory_share": MEMORY}
    yield Engine(EngineAnswers(llm.llm_engine, SamplingParams), lambda: told)
