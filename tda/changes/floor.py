"""How much one process of a machine differs from another that does the same: what two results folders are held against.

A folder is one process, so its numbers lack what differs between processes (memory layout, clocks, neighbours). That
noise is learnt wherever one commit ran in many processes: from the two installs of a night's baseline, of a
comparison's older commit, or of the present installation. It includes the drift of the machine over that time, as two
folders do.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field
from scipy import stats

from tda.cache import cache_folder
from tda.cases import Frozen
from tda.changes.effects import Prior
from tda.changes.series import Key, numbers
from tda.history.findings import Split
from tda.history.nights import Unit
from tda.records import Machine
from tda.results import append_lines, read_lines

FLOORS = "floors.jsonl"
NEWEST = 10
"""Sources of a series that count: what a machine was like long ago fades."""
MIN_PROCESSES = 4


class FloorKey(NamedTuple):
    """What a floor is of: a machine without its version of this package, a case by its key, and what is measured."""

    machine: str
    case: str
    split: Split
    relative: bool = False

    @classmethod
    def of(cls, machine: Machine, key: Key) -> "FloorKey":
        """Of a series on a machine, whatever grid and text it was measured in."""
        return cls(machine.fingerprint, key.case.key, key.split, key.relative)


class Floor(Frozen):
    """Noise of one series as one source showed it: a line of the floors' file."""

    source: str = Field(description="name of the night or comparison; measured again it takes the place of the old one")
    machine: str
    case: str = Field(description="key of the case")
    label: str = Field(description="the case, for people")
    split: Split
    relative: bool = Field(description="whether it is a ratio to the dense run of the same process")
    variance: float = Field(ge=0, description="of the logarithm of one process's number")
    dof: int = Field(ge=1)

    @property
    def series(self) -> FloorKey:
        """What it is of."""
        return FloorKey(self.machine, self.case, self.split, self.relative)


def unlike(one: Machine, other: Machine) -> str:
    """The fields in which two machines differ, in words; empty for machines whose numbers may be compared."""
    before, after = (machine.model_dump(exclude={"tda"}) for machine in (one, other))
    return ", ".join(f"{name} {before[name]!r} and {after[name]!r}" for name in before if before[name] != after[name])


def floors_of(source: str, units: Iterable[Unit], commit: str) -> list[Floor]:
    """The noise of one commit's processes, both installs of it, in the first blocks."""
    values: dict[tuple[FloorKey, str], dict[Key, list[float]]] = defaultdict(lambda: defaultdict(list))
    for unit in units:
        if unit.commit == commit and unit.stage == "first" and unit.status == "ok":
            for key, value in numbers(unit.records, unit.grid).items():
                values[FloorKey.of(unit.records[0].machine, key), str(key.case)][key].append(value)
    found = []
    for (series, told), grids in values.items():
        logs = [np.log(held) for held in grids.values() if len(held) >= MIN_PROCESSES]
        if logs:
            noise = _pool([Prior(float(one.var(ddof=1)), len(one) - 1) for one in logs])
            told_of = series._asdict() | {"source": source, "label": told}
            found.append(Floor(**told_of, variance=noise.variance, dof=int(noise.dof)))
    return found


class Floors:
    """The noise that was learnt, in a file of this user's cache.

    Parameters
    ----------
    path : Path, optional
        The file; else ``floors.jsonl`` in `tda.cache.cache_folder`. It belongs to the machine and not to
        a checkout, and is safe to delete.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / FLOORS

    def learn(self, source: str, units: Iterable[Unit], commit: str) -> None:
        """Keep what the processes of a commit showed; nothing is written where there is nothing new."""
        known = set(self._read())
        lines = [floor.model_dump_json() for floor in floors_of(source, units, commit) if floor not in known]
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self.path, lines)

    def known(self) -> dict[FloorKey, Prior]:
        """Noise of every series, pooled over its newest sources."""
        newest: dict[tuple[FloorKey, str], Floor] = {}
        for floor in self._read():
            newest.pop((floor.series, floor.source), None)  # so that its place is that of the last line
            newest[floor.series, floor.source] = floor
        found: dict[FloorKey, list[Floor]] = defaultdict(list)
        for (series, _), floor in newest.items():
            found[series].append(floor)
        return {series: _pool(floors[-NEWEST:]) for series, floors in found.items()}

    def _read(self) -> list[Floor]:
        return read_lines(self.path, Floor)[0] if self.path.is_file() else []


def _pool(floors: Sequence[Floor | Prior]) -> Prior:
    dof = np.array([floor.dof for floor in floors], dtype=np.float64)
    variances = np.array([floor.variance for floor in floors])
    return Prior(float(dof @ variances / dof.sum()), float(dof.sum()))


def single(noise: Prior, level: float = 0.99) -> float:
    """The relative change that one process against one other stays within at this level when nothing changed."""
    return float(np.expm1(stats.t.ppf((1 + level) / 2, noise.dof) * np.sqrt(2 * noise.variance)))


APART = 1.2
"""Two modes are at least this far apart, as a ratio."""
SEPARATION = 3.5
"""Ashman's D of two modes: one bell cut in two has 2.7."""
SMALLER = 0.2
"""Share of the values that the smaller mode has: fewer are outliers."""


def two_modes(*sides: Sequence[float]) -> bool:
    """Whether positive values (times, bandwidths) lie in two groups that are far apart and narrow.

    The best cut of their logarithms in two is held against Ashman, Bird and Zepf, Astronomical Journal 108 (1994).
    """
    logs = np.sort(np.log([value for side in sides for value in side]))
    least = max(2, int(np.ceil(SMALLER * len(logs))))
    cuts = [(logs[:place], logs[place:]) for place in range(least, len(logs) - least + 1)]
    if not cuts:
        return False
    low, high = min(cuts, key=lambda cut: sum(float(((part - part.mean()) ** 2).sum()) for part in cut))
    apart = float(high.mean() - low.mean())
    return apart > np.log(APART) and 2**0.5 * apart > SEPARATION * float(np.hypot(low.std(), high.std()))
