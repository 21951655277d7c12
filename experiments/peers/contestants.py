"""Who takes part: one entry each. A module with a leading dot is one of this package."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.peers.job import Device

BOTH: tuple[Device, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Made:
    """A file or a folder that a contestant needs, made once for all blocks in a process of its own.

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
class PeerSystem:
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
    devices : tuple of str
        Where it runs.
    package : str or None
        It is left out, by name, where this package is not installed.
    """

    call: str
    options: Mapping[str, Any] = field(default_factory=dict)
    file: Made | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Device, ...] = ("cpu",)
    package: str | None = None


def _tda(sparsity: float) -> PeerSystem:
    thresholds = Made(f"tda-{sparsity:g}.json", ".ours:calibrate", {"sparsity": sparsity})
    return PeerSystem(".ours:serve", {"method": "tda", "sparsity": sparsity}, thresholds)


def _llama_cpp(kind: str) -> PeerSystem:
    return PeerSystem(".llama_cpp:serve", file=Made(f"{kind}.gguf", ".gguf_file:make", {"kind": kind}))


SYSTEMS: dict[str, PeerSystem] = {
    "hf eager": PeerSystem(".huggingface:serve", {"compiled": False}, devices=BOTH),
    "tda dense": PeerSystem(".ours:serve", {"method": "dense", "dense_kernel": "own"}, devices=BOTH),
    "llama.cpp bf16": _llama_cpp("bf16"),
    "tda tda .5": _tda(0.5),
    "tda tda .75": _tda(0.75),
    "tda griffin .5": PeerSystem(".ours:serve", {"method": "griffin", "sparsity": 0.5}, devices=BOTH),
    "gathered linear .5": PeerSystem(".gathered:serve", {"sparsity": 0.5}),
    "llama.cpp q8_0": _llama_cpp("q8_0"),
    "tda int8": PeerSystem(".ours:serve", {"method": "int8"}),
    "torchao int8": PeerSystem(".quantized:serve", {"compiled": False}),
    "torchao int8 compiled": PeerSystem(".quantized:serve", {"compiled": True}),
    "hf compiled": PeerSystem(".huggingface:serve", {"compiled": True}, devices=BOTH),
    "vllm": PeerSystem(
        ".vllm_engine:serve", file=Made("model", ".vllm_engine:make", {}), devices=("cuda",), package="vllm"
    ),
}
"""In the order of an odd block: those that a goal holds against each other are neighbours in time."""


def on_device(contestants: Mapping[str, PeerSystem], device: Device) -> tuple[dict[str, PeerSystem], list[str]]:
    """Those that run on a device, and a sentence for each that would and lacks its package."""
    able = {name: one for name, one in contestants.items() if device in one.devices}
    lacking = {name: one.package for name, one in able.items() if one.package and not _installed(one.package)}
    here = {name: one for name, one in able.items() if name not in lacking}
    return here, [f"{name} is left out: {package} is not installed" for name, package in lacking.items()]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
