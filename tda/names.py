"""Names that many parts share: the distribution, and choices as types."""

from typing import Literal

DISTRIBUTION = "tda-bench"
"""What pip calls this package."""

Execution = Literal["auto", "masked", "compact", "indexed"]
Ran = Execution | Literal["dense"]
"""What a decode step ran as."""
Protocol = Literal["decode", "all_sparse", "griffin"]
Over = Literal["length", "position", "batch", "kind"]
"""What the quality of a method can be looked at over."""
Dtype = Literal["float32", "bfloat16", "float16"]
Preset = Literal["smoke", "default", "nightly", "paper", "gpu"]
Allocation = Literal["equal_error", "uniform"]


def needs_extra(what: str, extra: str) -> str:
    """Say how to install what an optional part of this package needs."""
    return f"{what} the extra {extra!r}: pip install '{DISTRIBUTION}[{extra}]'"
