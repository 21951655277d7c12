"""Libraries of asv's page, from npm packages of pinned versions and contents: fetched once, then kept."""

import tarfile
from pathlib import Path

from pydantic import BaseModel

from tda.reporting.npm import Package, fetched
from tda.results import write_whole

PINS = Path(__file__).resolve().with_name("vendor.json")
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "vendor"


class Pins(BaseModel):
    """``vendor.json``: the only place where the versions stand."""

    packages: tuple[Package, ...]


def packages() -> tuple[Package, ...]:
    """All pinned packages."""
    return Pins.model_validate_json(PINS.read_bytes()).packages


def copy_libraries(folder: Path, cache: Path = CACHE) -> list[str]:
    """Put every pinned file into its place in a folder, fetching packages that the cache lacks.

    Parameters
    ----------
    folder : Path
        Where to; made if it is not there.
    cache : Path
        Where packages are kept. Tarballs that someone puts there by hand do as well: contents are checked always.

    Returns
    -------
    list of str
        Paths of the files in the folder.

    Raises
    ------
    tda.reporting.npm.PackageError
        If npm is needed and missing, fails, or a package's contents are not the pinned ones.
    """
    names: list[str] = []
    for package in packages():
        with tarfile.open(fetched(package, cache)) as archive:
            for inside, name in package.files.items():
                found = archive.extractfile(f"package/{inside}")
                assert found is not None
                write_whole(folder / name, found.read())
                names.append(name)
    return names
