"""What processes of one build differ by in the settings of two folders: as far as it was learnt, or measured now."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tda.bench.planning import only
from tda.changes.builds import Build
from tda.changes.detect import FAMILY
from tda.changes.effects import Prior
from tda.changes.floor import FloorKey, single, unlike
from tda.changes.folder import CommitResults
from tda.changes.series import Key
from tda.changes.workbench import Workbench, check_measured, speed_grid
from tda.config import BenchConfig
from tda.device import machine
from tda.statistics import BLIND, MIN_GROUPS, is_baseline, noise_floor

logger = logging.getLogger(__name__)

INSTALLED = "installed"
"""What the present installation is called where it is measured against itself."""
MEASURED_S = 120.0
"""What measuring a floor takes at most, about."""


@dataclass(frozen=True)
class FolderFloors:
    """What processes of one build differ by: as far as it was learnt, else by the folders' own controls.

    Attributes
    ----------
    old, new : CommitResults
        What is compared.
    noise : mapping
        Between-process noise of each series, as far as it is known.
    tested : int
        Series that both have.
    """

    old: CommitResults
    new: CommitResults
    noise: Mapping[FloorKey, Prior]
    tested: int

    def of(self, key: Key) -> float | None:
        """The floor of a series; None where nothing tells it, or where it hides everything."""
        learnt = self._learnt(key)
        floor = self._of_controls(key) if learnt is None else single(learnt, 1 - FAMILY / self.tested)
        return floor if floor is not None and floor <= BLIND else None

    def messages(self) -> list[str]:
        """Where the floors are from, if it matters."""
        if all(self._learnt(key) is not None for key in self.new.values if key in self.old.values):
            return []
        return [
            "floors come from the A/A controls in the folders, each within one process; what differs from process to "
            f"process is not in them: `tda compare {self.old.path} {self.new.path} --measure-floor` measures it in "
            f"{MEASURED_S / 60:.0f} minutes"
        ]

    def _learnt(self, key: Key) -> Prior | None:
        """Noise of the series, or of dense in its setting: the machine's own."""
        found = self.noise.get(FloorKey.of(self.new.machine, key))
        if found is not None or key.case.is_baseline:
            return found
        dense = next((k for k in self.new.values if k.case.is_baseline and k.case.setting == key.case.setting), None)
        if dense is None:
            return None
        split = "decode" if key.split == "select" else key.split
        return self.noise.get(FloorKey.of(self.new.machine, dense._replace(split=split)))

    def _of_controls(self, key: Key) -> float | None:
        floors = [self._of_control(folder, key) for folder in (self.old, self.new)]
        known = [floor for floor in floors if floor is not None]
        return math.hypot(*known) if len(known) == len(floors) else None

    def _of_control(self, folder: CommitResults, key: Key) -> float | None:
        """What dense differs from itself by in one folder."""
        alike = [one for one in folder.records if one.status == "ok" and one.case.setting == key.case.setting]
        dense = next((one for one in alike if is_baseline(one)), None)
        control = next((one for one in alike if one.case.control == "a_a"), None)
        if dense is None or control is None:
            return None
        if key.split == "memory":
            peaks = [one.samples("peak_memory_bytes") for one in (dense, control)]
            return abs(peaks[0][0] / peaks[1][0] - 1) if all(peaks) else None
        name = "prefill_ms" if key.split == "prefill" else "decode_ms"
        return noise_floor(
            control, dense, [one for one in alike if one.case.control is None and one is not dense], name
        )


def measure_floor(
    bench: Workbench, old: CommitResults, new: CommitResults, blocks: int, seconds: float = MEASURED_S
) -> None:
    """Learn what dense differs by from process to process of the present installation, in each setting of two folders.

    Parameters
    ----------
    bench : Workbench
        Where processes run.
    old, new : CommitResults
        What is to be compared.
    blocks : int
        Processes of either install in a setting, at most.
    seconds : float
        Time after which no process is begun that would not end in it.

    Raises
    ------
    ValueError
        If the folders were taken on another machine than this one.
    NotMeasuredError
        If a process fails.
    """
    site = Path(__file__).parents[2]
    builds = [Build(INSTALLED, copy, site) for copy in ("control", "commit")]
    configs = _dense(old, new)
    for place, config in enumerate(configs):
        differences = unlike(new.machine, machine(config.device or "cpu"))
        if differences:
            raise ValueError(f"{new.path} was taken on another machine than this one: {differences}")
        grid = speed_grid(config)
        part = seconds / len(configs)
        logger.info(f"setting {place + 1} of {len(configs)}: processes of dense for {part:.0f} s")
        units = bench.run_for(INSTALLED, builds, grid, blocks, part)
        check_measured(units, INSTALLED)
        bench.learn(grid.name, units, INSTALLED)


def _dense(old: CommitResults, new: CommitResults) -> list[BenchConfig]:
    """What runs dense in every timed setting of both folders."""
    timed = {record.setting: record.case for key, record in new.cases.items()
             if key in old.cases and is_baseline(record) and record.samples("decode_ms")}  # fmt: skip
    return [only(BenchConfig(rounds=MIN_GROUPS, documents=MIN_GROUPS), [case]) for case in timed.values()]
