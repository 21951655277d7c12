"""Where a history lives: a folder, or a branch of its own that is checked out in one."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tda.regression.repository import Repository
from tda.regression.units import History

PREFIX = "branch:"
WORKTREE = Path("results/history")
"""Where a history branch is checked out: the same folder that asv's settings and the dashboard read."""
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""Git's hash of a tree without files."""


@dataclass(frozen=True)
class Place:
    """A history and, where it is a branch, how to save it."""

    history: History
    branch: Repository | None = None

    def save(self, message: str) -> None:
        """Commit what changed on the branch; pushing it is the caller's."""
        if self.branch is None:
            return
        self.branch.git("add", "--all")
        if self.branch.git("status", "--porcelain"):
            identity = ("-c", "user.name=tda nightly", "-c", "user.email=nightly@localhost")
            self.branch.git(*identity, "commit", "--quiet", "--message", message)


def open_history(repository: Repository, name: str) -> Place:
    """Open a history by folder, or by ``branch:NAME``; a branch that is not there is begun, without a parent.

    Raises
    ------
    ValueError
        If the branch cannot be checked out.
    """
    if not name.startswith(PREFIX):
        return Place(History(Path(name)))
    branch, folder = name.removeprefix(PREFIX), repository.folder / WORKTREE
    if not (folder / ".git").exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds a history already; move it away before it becomes the branch {branch}")
        if not _exists(repository, branch):
            identity = ("-c", "user.name=tda nightly", "-c", "user.email=nightly@localhost")
            root = repository.git(*identity, "commit-tree", EMPTY_TREE, "-m", "History of nights")
            repository.git("branch", branch, root)
        repository.git("worktree", "prune")  # the folder may have been deleted by hand
        repository.git("worktree", "add", "--quiet", str(folder), branch)
    place = Place(History(folder), Repository(folder))
    there = place.branch.git("rev-parse", "--abbrev-ref", "HEAD") if place.branch is not None else ""
    if there != branch:
        raise ValueError(f"{folder} has the branch {there!r} checked out, not {branch!r}")
    return place


def _exists(repository: Repository, branch: str) -> bool:
    """Whether a branch is there; one that only the remote has is made from it."""
    refs = ["git", "-C", str(repository.folder), "show-ref", "--verify", "--quiet"]
    if subprocess.run([*refs, f"refs/heads/{branch}"]).returncode == 0:
        return True
    if subprocess.run([*refs, f"refs/remotes/origin/{branch}"]).returncode:
        return False
    repository.git("branch", "--track", branch, f"origin/{branch}")
    return True
