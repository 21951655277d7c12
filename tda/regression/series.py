"""Units to series: one number a process, for each thing that may move."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tda.records import Record, label
from tda.regression.effects import Values
from tda.regression.findings import Split
from tda.regression.units import Role, Stage, Unit
from tda.statistics import by_group, is_baseline


class Key(NamedTuple):
    """A series: what is measured, on which case, and whether as a ratio to the dense run of the same process."""

    split: Split
    case: str
    relative: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether it is of the baseline that ratios are taken to."""
        return self.case.startswith("dense ")


def series_of(unit: Unit) -> dict[Key, float]:
    """The numbers of one process.

    Prefill is that of dense. Select is what a method does of its own before decode: its statistic and its selection,
    both clocked; per-token methods choose within decode.
    """
    return dict(_values([record for record in unit.records if record.status == "ok" and not record.control]))


def _values(records: list[Record]) -> Iterator[tuple[Key, float]]:
    for record in records:
        case = label(record.case)
        if record.samples("peak_memory_bytes"):
            yield Key("memory", case), _level(record, "peak_memory_bytes")
        if not record.samples("decode_ms"):
            continue
        yield Key("decode", case), _level(record, "decode_ms")
        if is_baseline(record):
            yield Key("prefill", case), _level(record, "prefill_ms")
            continue
        if record.samples("selection_ms"):
            yield Key("select", case), _level(record, "selection_ms") + _statistic_ms(record)
        dense = next((one for one in records if is_baseline(one) and one.case.setting == record.case.setting), None)
        if dense is not None and dense.samples("decode_ms"):
            yield Key("decode", case, relative=True), _level(record, "decode_ms") / _level(dense, "decode_ms")


def _statistic_ms(record: Record) -> float:
    """What the statistic takes; nothing for methods that have none."""
    return _level(record, "statistic_ms") if record.samples("statistic_ms") else 0.0


def _level(record: Record, name: str) -> float:
    """Median over rounds of the medians within a round."""
    return float(np.median(list(by_group(record.measurements[name]).values())))


Build = tuple[str, Role]


class Blocks:
    """Series of many units, by build and block.

    Parameters
    ----------
    units : iterable of Unit
        Of one machine and one stage; failed ones have no values.
    """

    def __init__(self, units: Iterable[Unit] = (), stage: Stage = "first") -> None:
        self._values: dict[Key, dict[Build, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for unit in units:
            if unit.stage == stage and unit.status == "ok":
                for key, value in series_of(unit).items():
                    self.put(key, (unit.commit, unit.role), unit.block, value)

    def put(self, key: Key, build: Build, block: int, value: float) -> None:
        """Add the number of one process."""
        self._values[key][build][block] = value

    @property
    def keys(self) -> list[Key]:
        """All series, in a fixed order."""
        return sorted(self._values)

    def of(self, key: Key) -> Mapping[Build, Mapping[int, float]]:
        """Values of one series by build and block."""
        return self._values.get(key, {})

    def differences(self, key: Key, new: Build, old: Build) -> Values:
        """Log ratios of two builds over the blocks that both ran in."""
        above, below = (self.of(key).get(build, {}) for build in (new, old))
        common = sorted(above.keys() & below.keys())
        one, other = (np.array([values[number] for number in common]) for values in (above, below))
        return np.asarray(np.log(one / other))
