"""What processes of this machine differ by that measure the same, and so the smallest change that can be seen here."""

import tempfile
from pathlib import Path

from pydantic import Field

from tda.cases import Frozen, MethodSpec
from tda.changes.alternate import BenchmarkGrid
from tda.changes.builds import Build
from tda.changes.effects import Effect, Prior
from tda.changes.floor import MIN_PROCESSES, Floor, floors_of, single
from tda.changes.folder_floors import INSTALLED
from tda.changes.series import split_name
from tda.changes.workbench import NotMeasuredError, Workbench, check_measured, speed_grid
from tda.config import BenchConfig
from tda.doctor.budget import Budget
from tda.history.nights import Unit

TINY = BenchConfig(
    preset="smoke",
    models=("shape:25m",),
    methods=(MethodSpec.parse("griffin:sparsity=0.5"),),
    prompt_tokens=64,
    new_tokens=16,
    rounds=3,
)
"""What a process measures: a case of the nightly run."""
PAIRS = 4
"""Processes of either copy, where the time is enough for them."""
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


def measure_noise(device: str, budget: Budget) -> tuple[Noise, ...]:
    """Run processes of the present installation, one after the other, and see what they differ by.

    Raises
    ------
    NotMeasuredError
        If they fail, or the time is not enough for them.
    """
    with tempfile.TemporaryDirectory(prefix="tda-doctor-") as folder:
        units, why = _processes(Path(folder), speed_grid(TINY.model_copy(update={"device": device})), budget)
    check_measured(units, INSTALLED)
    well, wanted = sum(unit.status == "ok" for unit in units), 2 * PAIRS
    if well < MIN_PROCESSES:
        raise NotMeasuredError(f"{well} of {wanted} processes ended well, and {MIN_PROCESSES} are needed: {why}")
    if why is not None:
        budget.unfinished.append(f"the noise is learnt from {well} processes, not from {wanted}: {why}")
    return tuple(map(noise_of, floors_of("doctor", units, INSTALLED)))


def _processes(folder: Path, grid: BenchmarkGrid, budget: Budget) -> tuple[list[Unit], str | None]:
    """Units of pair after pair, as long as the next pair will end in time; and why there are not all of them."""
    builds = [Build(INSTALLED, copy, Path(__file__).parents[2]) for copy in ("control", "commit")]
    units: list[Unit] = []
    longest = 0.0
    for pairs in range(1, PAIRS + 1):
        left = budget.left
        if longest > left:
            return units, f"a pair takes {longest:.0f} s here, and {left:.0f} s of {budget.seconds:.0f} were left"
        bench = Workbench(out=folder / "units", work=folder / "work", timeout_s=left / len(builds))
        units = bench.run(INSTALLED, builds, grid, pairs)
        failed = next((unit for unit in units if unit.status != "ok"), None)
        if failed is not None:
            return units, f"{failed.status}: {failed.reason}"
        longest = max(longest, left - budget.left)
    return units, None


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
