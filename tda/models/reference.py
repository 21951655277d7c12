"""Models that ship with the package: ``ref:NAME``, and ``ref:NAME:4x``, the same function in more bytes."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tda.models.packed import unpack_state
from tda.models.widen import wider_config, wider_state
from tda.reference import WEIGHTS

PREFIX = "ref:"
TIMES = (2, 4, 8, 16)
"""How often each FFN neuron may be there. Powers of two: parts are exact in any type."""
_FORM = re.compile(rf"ref:([^:]+)(?::({'|'.join(map(str, TIMES))})x)?")


@dataclass(frozen=True)
class Reference:
    """A reference model: its folder, and how often each FFN neuron is there."""

    folder: Path
    times: int = 1

    @classmethod
    def find(cls, name: str) -> "Reference":
        """By its name, e.g. ``ref:wide`` or ``ref:wide:2x``.

        Raises
        ------
        ValueError
            If there is none.
        """
        found = _FORM.fullmatch(name)
        if found is None or found[1] not in shipped():
            known = ", ".join(PREFIX + known for known in shipped())
            sizes = ", ".join(f":{times}x" for times in TIMES)
            raise ValueError(
                f"unknown reference model {name!r}; known: {known}, each also with {sizes} behind its name"
            )
        return cls(WEIGHTS / found[1], int(found[2] or 1))

    def config(self, config: Any) -> Any:
        """Its configuration, from the one in its folder."""
        return wider_config(config, neurons=self.times) if self.times > 1 else config

    def state(self, config: Any) -> dict[str, Tensor]:
        """Its tensors, from those in its folder and their configuration.

        Raises
        ------
        ValueError
            If the file of the weights is not the one that ships.
        """
        from safetensors.torch import load

        path = self.folder / "model.safetensors"
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.training["sha256"]:
            raise ValueError(f"{path} is not the file that ships with this version; install the package again")
        state = unpack_state(load(content))
        return wider_state(config, state, neurons=self.times) if self.times > 1 else state

    @property
    def training(self) -> dict[str, Any]:
        """How it was trained."""
        found: dict[str, Any] = json.loads((self.folder / "training.json").read_text())
        return found


def shipped() -> list[str]:
    """Names of the reference models, without their prefix."""
    return sorted(folder.name for folder in WEIGHTS.glob("*") if (folder / "model.safetensors").is_file())
