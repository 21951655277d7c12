"""The one place that runs git: in the folder that is meant, whatever the user's environment and settings say."""

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

_PASSED = re.compile(r"(?!GIT_)|GIT_(CONFIG_(?!PARAMETERS)|CEILING|DISCOVERY|EXEC_PATH|HTTP|PROXY|SSH|SSL)")
"""Variables that git sees. Of its own those of configuration, of where it looks and of how it connects: others point at
a repository, as git sets them for a hook."""
_ALWAYS = {
    "GIT_NO_REPLACE_OBJECTS": "1",  # a hash stands for what it was made of,
    "GIT_GRAFT_FILE": "",  # and so do its parents
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
_SETTINGS = (f"core.hooksPath={os.devnull}", "core.fsmonitor=false", "core.splitIndex=false", "core.safecrlf=false")


class GitError(ValueError):
    """Git cannot be run, or says no; the text is its own."""


def environment() -> dict[str, str]:
    """Variables for a process that runs git: this process's, without those that point at a repository."""
    return {name: value for name, value in os.environ.items() if _PASSED.match(name)} | _ALWAYS


def succeeds(folder: Path, *words: str) -> bool:
    """Whether a git command ends well."""
    try:
        run(folder, *words)
    except GitError:
        return False
    return True


def run(folder: Path, *words: str, data: bytes = b"", variables: Mapping[str, str] = {}) -> str:
    """What a git command prints: bytes that are no UTF-8 are replaced, and a last line break is left out.

    Parameters
    ----------
    folder : Path
        Where it runs.
    words : str
        The command: a plumbing one, since a user's settings change what others print and do.
    data : bytes
        What it reads.
    variables : mapping
        What its environment has besides `environment`.

    Raises
    ------
    GitError
        If it fails.
    """
    return _output(folder, *words, data=data, variables=variables).decode(errors="replace").removesuffix("\n")


def _output(folder: Path, *words: str, data: bytes = b"", variables: Mapping[str, str] = {}) -> bytes:
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    command = ["git", "-C", str(folder), *settings, *words]
    told = {**environment(), "LC_ALL": "C", "TZ": "UTC", **variables}
    try:
        done = subprocess.run(command, input=data, capture_output=True, env=told)
    except OSError as error:
        raise GitError(f"git cannot be run: {error.strerror}; is it on PATH?") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").split("\n")]
        raise GitError(f"git {words[0]}: {' '.join(filter(None, lines)) or f'exit code {done.returncode}'}")
    return done.stdout


def change(package: Path) -> str | None:
    """Digest of what a checkout holds and its commit does not; None where that is nothing.

    It tells content and modes of tracked files anywhere, and of untracked ones, if git does not ignore them, in the
    package's folder. So it is equal for equal changes of one commit in any clone. The checkout is only read.

    Parameters
    ----------
    package : Path
        Folder of the package, in the checkout.

    Raises
    ------
    GitError
        If it is in no checkout, or that has no commit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        objects = package / os.fsdecode(_output(package, "rev-parse", "--git-path", "objects")[:-1])
        quoted = re.sub(r'(["\\])', r"\\\1", str(objects.resolve()))
        aside = {
            "GIT_INDEX_FILE": f"{scratch}/index",
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
        }
        # A new index of the same files knows no times, nor which files a user asked git not to look at.
        listed = _output(package, "ls-files", "--stage", "-z", "--full-name", ":/")
        run(package, "update-index", "-z", "--index-info", data=listed, variables=aside)
        for look in (("--refresh", ":/"), ("--update", ":/"), (".",)):
            run(package, "add", *look, variables=aside)
        differs = ("diff-index", "--cached", "--raw", "-z", "--no-abbrev", "--no-renames", "HEAD", "--")
        found = _output(package, *differs, variables=aside)
    return hashlib.sha256(found).hexdigest()[:16] if found else None
