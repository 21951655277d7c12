"""Packages of npm as archives of pinned contents: fetched once, then kept. Nothing in them is installed or run here."""

import base64
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from tda.cache import cache_folder

SECONDS = 120
"""How long one package may take to arrive."""


class PackageError(RuntimeError):
    """A package could not be had; the message says what to do."""


class Package(BaseModel):
    """A pinned package, and the files of it that a page loads: where they are in it, and where they go."""

    name: str
    version: str
    integrity: str
    files: dict[str, str] = {}

    @property
    def spec(self) -> str:
        """What npm calls this version of it."""
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives it."""
        return f"{self.name}-{self.version}.tgz"


def archives() -> Path:
    """Where packages are kept. Archives that someone puts there by hand do as well: contents are always checked."""
    return cache_folder() / "npm"


def fetched(package: Package) -> Path:
    """Path of a package's archive, fetched into this user's cache if it is not there.

    Raises
    ------
    PackageError
        If npm is needed and missing, fails, or the archive's contents are not the pinned ones.
    """
    path = archives() / package.tarball
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _npm_pack(package, path.parent)
    found = f"sha512-{base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()}"
    if found != package.integrity:
        raise PackageError(
            f"{path} is not what is pinned for {package.spec} ({found} instead of {package.integrity}): delete it"
        )
    return path


def _npm_pack(package: Package, cache: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(
            f"npm is needed once to fetch {package.spec}: install it, or put the package's tarball to "
            f"{cache / package.tarball}"
        )
    command: Sequence[str] = (
        npm,
        "pack",
        package.spec,
        "--ignore-scripts",
        "--silent",
        "--pack-destination",
        str(cache),
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise PackageError(f"npm did not deliver {package.spec} within {SECONDS} s") from None
    if done.returncode or not (cache / package.tarball).is_file():
        raise PackageError(f"npm could not deliver {package.spec}: {done.stderr.strip() or done.returncode}")
