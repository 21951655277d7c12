"""llama.cpp through the wheel xllamacpp, on a GGUF file of the same weights. Never import torch in its process.

A second OpenMP pool would ruin both.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import xllamacpp

from experiments.peers.job import Engine, Job, OnToken

CONTEXT_STEP = 256
TOKEN = re.compile(r"<(\d+)>")
"""How the made-up tokenizer of `gguf_file` spells a token."""
GREEDY = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True, "cache_prompt": False}


def server(file: Path, context: int, threads: int) -> Any:
    """llama.cpp's own server on a model, without prompt cache.

    The file is mapped, as llama.cpp does if not told otherwise, with flash attention. Tried beside it: weights read
    into memory, with flash attention, without, and not repacked; mlock; pinned threads; threads that wait passively.
    None was faster beyond noise.
    """
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = -(-context // CONTEXT_STEP) * CONTEXT_STEP
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cache_prompt = params.cache_idle_slots = params.fit_params = params.ui = False
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.verbosity = 0
    return xllamacpp.Server(params)


def answer(server: Any, prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
    """Greedy generation, streamed.

    Raises
    ------
    RuntimeError
        If the server refuses the request.
    """
    complaints = []

    def on_chunk(chunk: dict[str, Any]) -> None:
        if "choices" not in chunk:
            complaints.append(str(chunk))
            return
        for token in TOKEN.findall(chunk["choices"][0]["text"]):
            on_token(int(token))

    server.handle_completions({"prompt": list(prompt), "max_tokens": new_tokens, "stream": True, **GREEDY}, on_chunk)
    if complaints:
        raise RuntimeError(f"llama.cpp refused: {complaints[0]}")


@contextmanager
def serve(job: Job, *, file: Path) -> Iterator[Engine]:
    """The model in a GGUF file."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is loaded in llama.cpp's process: their threads would fight for the cores")
    running = server(file, len(job.prompt) + job.new_tokens, job.threads)
    told = {
        "load": "mmap",
        "flash_attention": True,
        "build": xllamacpp.get_system_info().strip(" |"),
    }
    yield Engine(partial(answer, running), lambda: told)
