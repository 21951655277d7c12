"""What a part is told: where it works, for how long, and on what. A dry run takes the same way on the CPU."""

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tda.cases import Frozen


class CheckSetting(Frozen):
    """The order of one part.

    Attributes
    ----------
    folder : Path
        Where the part works; what it leaves there is archived.
    scratch : Path
        The folder above it, where the other parts work.
    dry : bool
        Whether the part runs without a card, on a small model.
    limit_s : float
        The part is ended then.
    begin : float
        When it began, by `time.monotonic`, which is one clock for all processes.
    """

    folder: Path
    scratch: Path
    dry: bool
    limit_s: float
    begin: float = Field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until it is ended."""
        return self.begin + self.limit_s - time.monotonic()

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where models lie."""
        return "cpu" if self.dry else "cuda"

    @property
    def model(self) -> str:
        """The model that is measured."""
        return "shape:25m" if self.dry else "shape:llama-3-8b"

    @property
    def prompt_tokens(self) -> int:
        """Length of a prompt."""
        return 32 if self.dry else 512

    @property
    def request(self) -> dict[str, Any]:
        """Options of `tda.run_bench` that all short benches share."""
        new_tokens = 4 if self.dry else 16
        return {"rounds": 2, "new_tokens": new_tokens, "dtype": "bfloat16", "device": self.device}
