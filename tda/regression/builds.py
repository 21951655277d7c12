"""Installed builds of commits: wheels of this package alone, beside one interpreter and one torch for all of them."""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tda.records import BUILD_STAMP, Commit
from tda.regression.repository import Repository

TIMEOUT_S = 300


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
        Name that tells installs of one commit apart: "control" for the second one of the anchor.
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
        if not site.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".building-") as name:
                self._build(commit, Path(name))
                (Path(name) / "site").rename(site)
        return Build(commit, copy, site)

    def _build(self, commit: str, folder: Path) -> None:
        self.repository.export(commit, folder / "source")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        command += ["--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise BuildFailedError(f"the installer took more than {TIMEOUT_S} s") from None
        package = folder / "site" / "tda"
        if done.returncode or not package.is_dir():
            raise BuildFailedError(last_words(done.stderr) or f"the installer ended with {done.returncode}")
        stamp = Commit(hash=commit, dirty=False)
        (package / BUILD_STAMP).write_text(stamp.model_dump_json())

    def thin(self, keep: int) -> None:
        """Delete all but the builds used last."""
        held = sorted(
            (path for path in self.folder.glob("*-*") if path.is_dir()), key=lambda path: path.stat().st_mtime
        )
        for path in held[: max(len(held) - keep, 0)]:
            shutil.rmtree(path, ignore_errors=True)


def last_words(text: str, lines: int = 4) -> str:
    """The end of an installer's or interpreter's complaint, without empty lines."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])
