"""Installed builds of commits: their package alone, beside one interpreter and one torch for all of them."""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tda.history.repository import Repository
from tda.process import last_words
from tda.records import BUILD_STAMP, Commit

TIMEOUT_S = 300
KEPT_S = 14 * 24 * 3600
"""A build that was not used for this long is deleted when the next one is made."""


class BuildFailedError(Exception):
    """A commit that cannot be installed; the text is the end of what the installer said."""


@dataclass(frozen=True)
class Build:
    """A commit, installed.

    Attributes
    ----------
    commit : str
        Full hash.
    copy : str
        Name that tells installs of one commit apart: "control" for the second one of the baseline commit.
    site : Path
        Folder to put on the import path.
    """

    commit: str
    copy: str
    site: Path


class Builds:
    """A cache of installed commits.

    Parameters
    ----------
    repository : Repository
        Where commits come from.
    folder : Path
        Where builds are kept, one folder each; safe to delete.
    """

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository = repository
        self.folder = folder

    def install(self, commit: str, copy: str = "commit") -> Build:
        """Install a commit if it is not there yet.

        Raises
        ------
        BuildFailedError
            If the installer fails.
        """
        site = self.folder / f"{commit}-{copy}"
        if site.is_dir():
            site.touch()  # it is in use: see `_thin`
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._thin()
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".building-") as name:
                self.build(commit, Path(name))
                (Path(name) / "site").rename(site)
        return Build(commit, copy, site)

    def build(self, commit: str, folder: Path) -> None:
        """Build a commit into `site` of a folder that is there and empty."""
        self.repository.export(commit, folder / "source")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        command += ["--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise BuildFailedError(f"the installer took more than {TIMEOUT_S} s") from None
        site = folder / "site"
        if done.returncode or not site.is_dir():
            raise BuildFailedError(last_words(done.stderr) or f"the installer ended with {done.returncode}")
        stamp = Commit(hash=commit, dirty=False).model_dump_json(exclude_none=True)  # older commits read it
        for place in (site, site / "tda"):  # the second where the repository is that of this package
            if place.is_dir():
                (place / BUILD_STAMP).write_text(stamp)

    def _thin(self) -> None:
        """Delete what nobody used for long: old builds, and what a killed installer left."""
        for path in self.folder.iterdir():
            if time.time() - path.stat().st_mtime > KEPT_S:
                shutil.rmtree(path, ignore_errors=True)
