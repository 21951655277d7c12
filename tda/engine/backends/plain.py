"""Decode by torch's own operators: what runs where no kernels do."""

from typing import Any

from tda.contracts import Observer
from tda.engine.backends.decoding import Decoding
from tda.kernels import BackendInfo
from tda.kernels.compact import CompactFFN
from tda.kernels.indexed import IndexedFFN
from tda.names import Execution, Ran
from tda.view import FFN


def whole(ffns: list[FFN], execution: Ran, reason: str = "") -> Decoding:
    """Dense arithmetic by the model's own code, masked where a method leaves neurons out."""
    return Decoding(ffns, execution, BackendInfo("torch", reason))


def compact(ffns: list[FFN], reason: str = "") -> Decoding:
    """Dense arithmetic over copies of what a prompt keeps."""
    return Decoding(ffns, "compact", BackendInfo("torch", reason, "layer"), [CompactFFN(ffn) for ffn in ffns])


def skipping(ffns: list[FFN], method: Any, asked: Execution, observe: Observer, reason: str) -> Decoding:
    """What skips neurons where kernels cannot, and why they cannot.

    Raises
    ------
    ValueError
        If execution "indexed" is asked for a method that chooses per prompt.
    """
    if method.kind != "prompt":
        looked_up = [IndexedFFN(ffn, method, observe) for ffn in ffns]
        return Decoding(ffns, "indexed", BackendInfo("torch", reason, "layer"), looked_up)
    if asked == "indexed":
        raise ValueError(f"execution 'indexed' of {method.name!r} needs kernels of our own: {reason}; use 'compact'")
    return compact(ffns, reason)
