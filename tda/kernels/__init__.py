"""Executions that really skip what a method leaves out, and which of them this machine would use."""

import sys
from dataclasses import dataclass
from typing import Literal

DEVICES = ("cpu", "cuda")
"""Kinds of devices that there are kernels for."""


PARTS = {"c": ", layer by layer", "triton": ", without a graph"}
"""How backends run decode where they do not run a whole step in one call."""


@dataclass(frozen=True)
class BackendInfo:
    """What runs decode.

    Attributes
    ----------
    name : str
        Kernels: "c", "triton", or "torch" for its own.
    reason : str
        Why it is these, or why they do not run a whole step; empty where there is nothing to say.
    granularity : {"step", "layer", "model"}
        What they run in one call: a whole step, a layer's feed-forward network; "model" is the model's own code.
    """

    name: str
    reason: str = ""
    granularity: Literal["step", "layer", "model"] = "model"

    def __str__(self) -> str:
        parts = PARTS.get(self.name, "") if self.granularity == "layer" else ""
        return f"{self.name}{parts} ({self.reason})" if self.reason else self.name


def backend(device: str = "cpu") -> BackendInfo:
    """Return the backend that execution "auto" would use for a model on this machine's device, and why.

    The kernels in C are built on the first use, by this function too; what was built is kept for later processes.

    Parameters
    ----------
    device : str
        Where the model lies: "cpu", "cuda", or "cuda:1" and so on.

    Raises
    ------
    ValueError
        If the device is another or not on this machine, or ``TDA_ISA`` names an instruction set that it does not have.
    """
    from tda.device import torch_device  # imports torch
    from tda.kernels import triton
    from tda.kernels.native import library

    if torch_device(device).type == "cuda":
        missing = triton.problem([])
        if missing is None:
            return BackendInfo("triton", "kernels in Triton, in one CUDA graph of a decode step")
        return BackendInfo("torch", f"the kernels in Triton cannot run here: {missing}")
    reason = library.problem()
    if reason is None:
        return BackendInfo("c", f"kernels in C, built by this machine's compiler for {library.library().isa}")
    return BackendInfo("torch", f"the kernels in C cannot run here: {reason}")


def notice(device: str = "cpu") -> str | None:
    """Return a sentence for the user where torch runs because our kernels cannot; None where they can.

    Parameters
    ----------
    device : str
        As for `backend`; of another device there is nothing to say, since what loads a model refuses it.

    Raises
    ------
    ValueError
        If ``TDA_ISA`` names an instruction set that this processor does not have.
    """
    if device.partition(":")[0] not in DEVICES:
        return None
    found = backend(device)
    return f"{found.reason}; torch runs instead, slower" if found.name == "torch" else None


def untuned() -> str | None:
    """Return a sentence on shapes that ran with default blocks on a GPU in this process; None where there were none."""
    tuning = sys.modules.get("tda.kernels.triton.tuning")
    shapes = list(tuning.DEFAULTS_TAKEN) if tuning is not None else []
    if not shapes:
        return None
    return f"{len(shapes)} shapes ran with default blocks, not tuned on this card (`tda tune`): {'; '.join(shapes)}"
