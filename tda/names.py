"""Choices that the command line, the engine and records share, as types."""

from typing import Literal

Execution = Literal["auto", "masked", "compact", "indexed"]
Ran = Execution | Literal["dense"]
"""What a decode step ran as."""
Protocol = Literal["decode", "all_sparse", "griffin"]
Over = Literal["length", "position", "batch", "kind"]
"""What the quality of a method can be looked at over."""
Dtype = Literal["float32", "bfloat16", "float16"]
Preset = Literal["smoke", "default", "nightly", "paper", "gpu"]
Allocation = Literal["equal_error", "uniform"]
