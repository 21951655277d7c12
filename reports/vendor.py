"""Libraries of asv's page, from npm packages of pinned versions and contents: fetched once, then kept."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from tda.results import write_whole

PINS = Path(__file__).resolve().with_name("vendor.json")
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "vendor"
SECONDS = 120
"""How long one package may take to arrive."""


class VendorError(RuntimeError):
    """A library could not be had; the message says what to do."""


class Package(BaseModel):
    """A pinned npm package, and the files of it that the pages load: where they are in it, and where they go."""

    name: str
    version: str
    integrity: str
    files: dict[str, str]

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives it."""
        return f"{self.name}-{self.version}.tgz"


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
    VendorError
        If npm is needed and missing, fails, or a package's contents are not the pinned ones.
    """
    names: list[str] = []
    for package in packages():
        with tarfile.open(_fetched(package, cache)) as archive:
            for inside, name in package.files.items():
                found = archive.extractfile(f"package/{inside}")
                assert found is not None
                write_whole(folder / name, found.read())
                names.append(name)
    return names


def _fetched(package: Package, cache: Path) -> Path:
    path = cache / package.tarball
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _npm_pack(package, cache)
    found = f"sha512-{base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()}"
    if found != package.integrity:
        raise VendorError(f"{path} is not what {PINS.name} pins ({found} instead of {package.integrity}): delete it")
    return path


def _npm_pack(package: Package, cache: Path) -> None:
    npm = shutil.which("npm")
    spec = f"{package.name}@{package.version}"
    if npm is None:
        raise VendorError(f"npm is needed once to fetch {spec} for the dashboard: install it, or put the package's "
                          f"tarball to {cache / package.tarball}")  # fmt: skip
    command: Sequence[str] = (npm, "pack", spec, "--ignore-scripts", "--silent", "--pack-destination", str(cache))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise VendorError(f"npm did not deliver {spec} within {SECONDS} s") from None
    if done.returncode or not (cache / package.tarball).is_file():
        raise VendorError(f"npm could not deliver {spec}: {done.stderr.strip() or done.returncode}")
