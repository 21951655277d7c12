"""Copies of a reference model whose folder says something else."""

import json
import shutil
from pathlib import Path
from typing import Any

from tda.models.reference import WEIGHTS


def folder(where: Path, generation: dict[str, Any] | None = None, *, model: str = "swiglu", **config: Any) -> Path:
    """Copy a reference model; `generation` becomes its generation_config.json, the rest goes into its config.json."""
    copy = where / "model"
    shutil.copytree(WEIGHTS / model, copy)
    if generation is not None:
        (copy / "generation_config.json").write_text(json.dumps(generation))
    said = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**said, **config}))
    return copy
