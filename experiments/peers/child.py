"""What a process of a run does: make a file, or load one contestant and serve the job. It imports no torch by itself.

    python -m experiments.peers.child ORDER

with the order as JSON. Standard input is held by the parent: when it dies, however it dies, we end too.
"""

import importlib
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from pydantic import Field

from experiments.peers.job import Engine, Job, PeerReport, Served
from tda.cases import Frozen
from tda.results import write_whole

PACKAGES = ("torch", "transformers", "triton", "torchao", "xllamacpp", "gguf", "vllm")


class ChildOrder(Frozen):
    """What to call, ``module:function``; what it yields is timed if there is a place for a report."""

    call: str
    job: Job
    options: dict[str, Any] = Field(default_factory=dict)
    file: Path | None = None
    report: Path | None = None


def serve(engine: Engine, prompt: Sequence[int], new_tokens: int) -> Served:
    """One request on the clock.

    Raises
    ------
    RuntimeError
        If it gives fewer or more tokens than asked.
    """
    stamps, tokens = [perf_counter()], []

    def on_token(token: int) -> None:
        stamps.append(perf_counter())
        tokens.append(token)

    engine.answer(prompt, new_tokens, on_token)
    end = perf_counter()
    if len(tokens) != new_tokens:
        raise RuntimeError(f"asked for {new_tokens} tokens, got {len(tokens)}")
    first, *gaps = (later - earlier for earlier, later in pairwise(stamps))
    return Served(
        prefill_ms=first * 1000,
        decode_ms=median(gaps) * 1000,
        generation_ms=(end - stamps[0]) * 1000,
        tokens=tuple(tokens),
    )


def versions() -> dict[str, str]:
    """Versions of the packages that may have a part in it, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def measure(order: ChildOrder) -> PeerReport:
    """Load a contestant, let it serve one request untimed, then those that count."""
    job, begin = order.job, perf_counter()
    with call(order) as engine:
        loaded = perf_counter()
        serve(engine, job.prompt, engine.warm_up_tokens)
        warm = perf_counter()
        served = tuple(serve(engine, job.prompt, job.new_tokens) for _ in range(job.requests))
        return PeerReport(
            served=served,
            settings=dict(engine.settings()),
            versions=versions(),
            load_s=loaded - begin,
            warm_up_s=warm - loaded,
        )


def call(order: ChildOrder) -> Any:
    """Call what an order names."""
    module, _, function = order.call.partition(":")
    options = order.options if order.file is None else {**order.options, "file": order.file}
    return getattr(importlib.import_module(module, __package__), function)(order.job, **options)


def main() -> None:
    """Carry out the order in the first argument."""
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(70)), daemon=True).start()
    order = ChildOrder.model_validate_json(sys.argv[1])
    if order.report is None:
        call(order)
    else:
        write_whole(order.report, measure(order).model_dump_json())
    os._exit(0)


if __name__ == "__main__":
    main()
