"""Libraries of asv's page, from npm packages of pinned versions and contents: fetched once, then kept."""

import tarfile
from pathlib import Path

from pydantic import BaseModel

from tda.results import write_whole
from tda.web.theme.npm import Package, fetched

PINS = Path(__file__).resolve().with_name("asv_libraries.json")


class Pins(BaseModel):
    """``asv_libraries.json``: the only place where the versions stand."""

    packages: tuple[Package, ...]


def packages() -> tuple[Package, ...]:
    """All pinned packages."""
    return Pins.model_validate_json(PINS.read_bytes()).packages


def copy_libraries(folder: Path) -> list[str]:
    """Put every pinned file into its place in a folder, fetching packages that this user's cache lacks.

    Parameters
    ----------
    folder : Path
        Where to; made if it is not there.

    Returns
    -------
    list of str
        Paths of the files in the folder.

    Raises
    ------
    tda.web.theme.npm.PackageError
        If npm is needed and missing, fails, or a package's contents are not the pinned ones.
    """
    names: list[str] = []
    for package in packages():
        with tarfile.open(fetched(package)) as archive:
            for inside, name in package.files.items():
                found = archive.extractfile(f"package/{inside}")
                assert found is not None
                write_whole(folder / name, found.read())
                names.append(name)
    return names
