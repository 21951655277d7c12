"""Units to series: one number a process, for each thing that may move."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tda.cases import Case, taken_for
from tda.history.findings import Split
from tda.history.nights import Role, Stage, Unit
from tda.records import Record
from tda.statistics import Values, by_group, is_baseline


class Key(NamedTuple):
    """A series: what is measured, of which case and inputs, and whether as a ratio to dense of the same process.

    Attributes
    ----------
    split : str
        What is measured.
    case : Case
        Of what.
    relative : bool
        Whether it is a ratio.
    grid : str
        The grid that it was measured in.
    inputs : str
        `tda.cases.Inputs.data`.
    """

    split: Split
    case: Case
    relative: bool = False
    grid: str = ""
    inputs: str = ""

    def __str__(self) -> str:
        return f"{split_name(self.split, self.relative)} of {self.case}"


def split_name(split: Split, relative: bool) -> str:
    """What people call what is measured."""
    return "decode to dense" if relative else split


def numbers(records: Iterable[Record], grid: str = "") -> dict[Key, float]:
    """The numbers of one process, from its records.

    Prefill is that of dense. Select is what a method does of its own before decode: its statistic and its selection,
    both clocked; per-token methods choose within decode.
    """
    return {key: float(np.median(list(rounds.values()))) for key, rounds in round_values(records, grid).items()}


def round_values(records: Iterable[Record], grid: str = "") -> dict[Key, dict[int, float]]:
    """Every series of one process, a value for each round: the median of its samples."""
    good = [record for record in records if record.status == "ok" and record.case.control is None]
    return {key: rounds for record in good for key, rounds in _of(record, good, grid) if rounds}


def _of(record: Record, records: Sequence[Record], grid: str) -> Iterator[tuple[Key, dict[int, float]]]:
    def key(split: Split, *, relative: bool = False) -> Key:
        return Key(split, record.case, relative, grid, record.inputs.data)

    decode = _rounds(record, "decode_ms")
    yield key("memory"), _rounds(record, "peak_memory_bytes")
    yield key("decode"), decode
    if is_baseline(record):
        yield key("prefill"), _rounds(record, "prefill_ms")
    elif decode:
        selection, statistic = _rounds(record, "selection_ms"), _rounds(record, "statistic_ms")
        yield key("select"), {number: value + statistic.get(number, 0.0) for number, value in selection.items()}
        dense = next((one for one in records if is_baseline(one) and one.setting == record.setting), None)
        below = _rounds(dense, "decode_ms") if dense is not None else {}
        ratios = {number: value / below[number] for number, value in decode.items() if number in below}
        yield key("decode", relative=True), ratios


def _rounds(record: Record, name: str) -> dict[int, float]:
    return by_group(record.measurements[name]) if record.samples(name) else {}


BuildKey = tuple[str, Role]


class Blocks:
    """Series of many units, by build and block.

    Parameters
    ----------
    units : iterable of Unit
        Of one machine and one stage; failed ones have no values.
    """

    def __init__(self, units: Iterable[Unit] = (), stage: Stage = "first") -> None:
        self._values: dict[Key, dict[BuildKey, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for unit in units:
            if unit.stage == stage and unit.status == "ok":
                for key, value in numbers(unit.records, unit.grid).items():
                    self.put(key, (unit.commit, unit.role), unit.block, value)
        for key in [key for key in self._values if not key.inputs]:
            for build, values in self._values.pop(key).items():
                self._values[self._standing_for(key)][build] |= values

    def put(self, key: Key, build: BuildKey, block: int, value: float) -> None:
        """Add the number of one process."""
        self._values[key][build][block] = value

    @property
    def keys(self) -> list[Key]:
        """All series, in a fixed order."""
        return sorted(self._values, key=lambda key: (str(key), key.case.key, key.grid, key.inputs))

    def of(self, key: Key) -> Mapping[BuildKey, Mapping[int, float]]:
        """Values of one series by build and block, whether or not its builds told their inputs."""
        return self._values.get(key) or self._values.get(self._standing_for(key), {})

    def _standing_for(self, key: Key) -> Key:
        """The same series where inputs are not told: in these blocks, or by who asks."""
        known = {other.inputs for other in self._values if other._replace(inputs="") == key._replace(inputs="")}
        return key._replace(inputs=taken_for(key.inputs, known))

    def differences(self, key: Key, new: BuildKey, old: BuildKey) -> Values:
        """Log ratios of two builds over the blocks that both ran in."""
        above, below = (self.of(key).get(build, {}) for build in (new, old))
        common = sorted(above.keys() & below.keys())
        one, other = (np.array([values[number] for number in common]) for values in (above, below))
        return np.asarray(np.log(one / other))
