"""The engine: attach a method to a model, tell prefill from decode, select, and undo everything."""

from tda.engine.attach import attach
from tda.engine.run import Run

__all__ = ["Run", "attach"]
