"""The launch configuration of each kernel and shape: timed once on a GPU and kept in the cache folder.

Triton's own autotuner is not used, since it forgets with the process, and would time on whatever list the first prompt
gave.
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from tda.kernels.native.build import cache_folder
from tda.kernels.triton import interpreted


class Config(NamedTuple):
    """Rows and columns of a block, and what Triton compiles it for."""

    rows: int
    columns: int
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """Arguments of a launch besides the block."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


_clock = functools.partial(triton.testing.do_bench, warmup=5, rep=20)  # ms: of each candidate
_KNOWN: dict[Path, dict[str, Config]] = {}


def choose(key: Sequence[object], candidates: Sequence[Config], trial: Callable[[Config], None]) -> Config:
    """The fastest candidate for a kernel and shape; under the interpreter the first.

    Parameters
    ----------
    key : sequence
        Kernel, shape, type and whatever else its speed depends on.
    candidates : sequence of Config
        To choose from.
    trial : callable
        Launches the kernel once on representative data. It writes to no buffer that is still needed.
    """
    if interpreted() or len(candidates) == 1:
        return candidates[0]
    path, name = _path(), " ".join(map(str, key))
    known = _KNOWN.setdefault(path, read(path)) if path not in _KNOWN else _KNOWN[path]
    if known.get(name) not in candidates:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"kernel {name} was not tuned before a graph was captured; run it once first")
        known[name] = fastest(candidates, trial)
        keep(path, known)
    return known[name]


def fastest(
    candidates: Sequence[Config],
    trial: Callable[[Config], None],
    clock: Callable[[Callable[[], None]], Any] = _clock,
) -> Config:
    """The candidate whose trial takes least; one that does not fit the device is passed over."""
    times: dict[Config, float] = {}
    for config in candidates:
        try:
            times[config] = clock(functools.partial(trial, config))
        except triton.runtime.errors.OutOfResources:
            continue
    if not times:
        raise RuntimeError("no configuration of a kernel fits this device")
    return min(times, key=lambda config: times[config])


def _path() -> Path:
    device = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name())
    return cache_folder() / f"triton-{device}-{triton.__version__}.json"


def read(path: Path) -> dict[str, Config]:
    """Configurations kept in a file; none where it is missing or not readable as such."""
    try:
        found = json.loads(path.read_text())
        return {name: Config(*map(int, values)) for name, values in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def keep(path: Path, known: dict[str, Config]) -> None:
    """Write configurations, beside those that another process has kept meanwhile; a read-only folder keeps none."""
    known.update({name: config for name, config in read(path).items() if name not in known})
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(known, file, indent=0, sort_keys=True)
        os.replace(file.name, path)
    except OSError:
        return
