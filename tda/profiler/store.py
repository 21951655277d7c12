"""A folder of profiles: each case has a folder with its record, its tables as CSV and its trace."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tda.profiler.records import KernelRow, ModuleRow, Profile
from tda.results import write_whole

RECORD = "profile.json"
KERNELS = "kernels.csv"
MODULES = "modules.csv"
TRACE = "trace.pt.trace.json.gz"
"""Named so that TensorBoard's plugin finds it."""
ORDER = "order.json.gz"
"""Written where decode steps are replayed: trace of one whose work was run anew, which tells the kernels apart."""
MEMORY = "memory.pickle"
"""Written on CUDA, for PyTorch's memory viewer; never read here."""


def write_profile(folder: Path, profile: Profile) -> None:
    """Write a case's record and tables into its folder; the record last, so that a folder with one is whole."""
    write_whole(folder / KERNELS, _csv(profile.kernels, KernelRow, ("ffn", "gb_per_s", "gflop_per_s")))
    write_whole(folder / MODULES, _csv(profile.modules, ModuleRow))
    write_whole(folder / RECORD, profile.model_dump_json(indent=1))


def _csv(rows: Sequence[KernelRow | ModuleRow], kind: type[KernelRow | ModuleRow], derived: Sequence[str] = ()) -> str:
    names = [*kind.model_fields, *derived]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if (value := getattr(row, name)) is None else value for name in names])
    return text.getvalue()


def read_profiles(folder: Path) -> list[tuple[Path, Profile]]:
    """Profiles below a folder with the folders they lie in, in the order in which they were begun.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If one cannot be read.
    """
    found = [(path.parent, read_profile(path.parent)) for path in sorted(folder.rglob(RECORD))]
    if not found:
        raise FileNotFoundError(f"{folder} holds no profile ({RECORD} in a folder for each case)")
    return sorted(found, key=lambda entry: entry[1].started)


def read_profile(folder: Path) -> Profile:
    """Read one case's profile.

    Raises
    ------
    ValueError
        If it is no profile of this version.
    """
    try:
        return Profile.model_validate_json((folder / RECORD).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{folder / RECORD} is no profile of version 1: {error.errors()[0]['msg']}") from None
