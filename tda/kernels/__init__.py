"""Executions that really skip what a method leaves out, and which of them this machine would use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backend:
    """Name of a kernel backend, and why it is the one that runs."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def backend() -> Backend:
    """Return the backend that execution "auto" would use on this machine's CPU, and why.

    The kernels in C are built on the first use, by this function too; what was built is kept for later processes.
    """
    from tda.kernels.native import library  # imports torch

    reason = library.problem()
    if reason is None:
        return Backend("c", "kernels in C, built by this machine's compiler")
    return Backend("torch", f"the kernels in C cannot run here: {reason}")
