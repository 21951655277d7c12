"""Who takes part: one entry each. A module with a leading dot is one of this package."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Made:
    """A file that a contestant needs, made once for all blocks in a process of its own.

    Attributes
    ----------
    name : str
        Name in the folder of the run.
    call : str
        ``module:function``, called as ``function(job, file=..., **options)``.
    options : mapping
        More keyword arguments.
    """

    name: str
    call: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Contestant:
    """One way to serve the job.

    Attributes
    ----------
    call : str
        ``module:function``: a context manager ``function(job, **options)`` that yields an `Engine`.
    options : mapping
        Keyword arguments.
    file : Made or None
        A file that it needs; its path is passed as `file`.
    environment : mapping
        Variables of its process.
    """

    call: str
    options: Mapping[str, Any] = field(default_factory=dict)
    file: Made | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def _tda(sparsity: float) -> Contestant:
    thresholds = Made(f"tda-{sparsity:g}.json", ".ours:calibrate", {"sparsity": sparsity})
    return Contestant(".ours:serve", {"method": "tda", "sparsity": sparsity}, thresholds)


def _llama_cpp(kind: str) -> Contestant:
    return Contestant(".llama_cpp:serve", file=Made(f"{kind}.gguf", ".gguf_file:make", {"kind": kind}))


CONTESTANTS: dict[str, Contestant] = {
    "hf eager": Contestant(".huggingface:serve", {"compiled": False}),
    "tda dense": Contestant(".ours:serve", {"method": "dense", "dense_kernel": "own"}),
    "llama.cpp bf16": _llama_cpp("bf16"),
    "tda tda .5": _tda(0.5),
    "tda tda .75": _tda(0.75),
    "tda griffin .5": Contestant(".ours:serve", {"method": "griffin", "sparsity": 0.5}),
    "gathered linear .5": Contestant(".gathered:serve", {"sparsity": 0.5}),
    "llama.cpp q8_0": _llama_cpp("q8_0"),
    "tda int8": Contestant(".ours:serve", {"method": "int8"}),
    "torchao int8": Contestant(".quantized:serve", {"compiled": False}),
    "torchao int8 compiled": Contestant(".quantized:serve", {"compiled": True}),
    "hf compiled": Contestant(".huggingface:serve", {"compiled": True}),
}
"""In the order of an odd block: those that a goal holds against each other are neighbours in time."""
