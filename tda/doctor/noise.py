"""What processes of this machine differ by that measure the same, and so the smallest change that can be seen here."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from tda.records import Frozen
from tda.regression.builds import Build
from tda.regression.compare import split_name
from tda.regression.effects import Effect, Prior
from tda.regression.floor import Floor, floors_of, single
from tda.regression.folders import INSTALLED
from tda.regression.workbench import Asked, Workbench, check_measured

TINY = {
    "preset": "smoke",
    "model": ["shape:25m"],
    "method": ["griffin"],
    "sparsity": [0.5],
    "prompt_tokens": 64,
    "new_tokens": 16,
    "rounds": 3,
}
"""What a process measures: a case of the nightly run."""
PAIRS = 4
BLOCKS = 8
"""Processes of each build by which `tda compare` judges, unless told otherwise."""


class Noise(Frozen):
    """Between-process A/A noise of one series."""

    case: str
    split: str
    processes: int
    spread: float = Field(description="standard deviation between processes, relative")
    single: float = Field(description="relative change that one process against one other stays within, at 99%")
    resolved: float = Field(description=f"the same for two builds of {BLOCKS} processes each")


def measure_noise(device: str, say: Callable[[str], None]) -> tuple[Noise, ...]:
    """Run processes of the present installation, one after the other, and see what they differ by.

    Raises
    ------
    NotMeasuredError
        If they fail.
    """
    site = Path(__file__).parents[2]
    builds = [Build(INSTALLED, copy, site) for copy in ("control", "commit")]
    with tempfile.TemporaryDirectory(prefix="tda-doctor-") as folder:
        bench = Workbench(out=Path(folder, "units"), work=Path(folder, "work"), say=say)
        units = bench.run(INSTALLED, builds, Asked({**TINY, "device": device}).speed, PAIRS)
    check_measured(units, INSTALLED)
    return tuple(map(noise_of, floors_of("doctor", units, INSTALLED)))


def noise_of(floor: Floor) -> Noise:
    """The noise of a series in words of use: what two processes differ by has twice the variance of one."""
    return Noise(
        case=floor.label,
        split=split_name(floor.split, floor.relative),
        processes=floor.dof + 1,
        spread=floor.variance**0.5,
        single=single(Prior(floor.variance, floor.dof)),
        resolved=Effect(0.0, (2 * floor.variance / BLOCKS) ** 0.5, floor.dof).floor(),
    )
