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
    """Return the backend that execution "auto" would use on this machine, and why."""
    return Backend("torch", "compact and indexed run on torch operators; no kernel of our own is built in this version")
