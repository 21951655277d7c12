"""Where a history lives: a folder, or a branch of its own that is checked out in one."""

from dataclasses import dataclass
from pathlib import Path

from tda.history.nights import History
from tda.history.repository import Repository

PREFIX = "branch:"
HISTORY = Path("results/history")
"""Where a checkout has its history, also one on a branch: the folder that asv's settings and the dashboard read."""
IDENTITY = {
    f"GIT_{role}_{fact}": told
    for role in ("AUTHOR", "COMMITTER")
    for fact, told in (("NAME", "tda nightly"), ("EMAIL", "nightly@localhost"))
}


@dataclass(frozen=True)
class HistoryLocation:
    """A history and, where it is a branch, how to save it."""

    history: History
    branch: Repository | None = None

    def save(self, message: str) -> None:
        """Commit what changed on the branch; pushing it is the caller's."""
        if self.branch is None:
            return
        self.branch.git("add", "--all", "--force")  # whatever a user ignores in every repository
        tree = self.branch.git("write-tree")
        if tree != self.branch.git("rev-parse", "HEAD^{tree}"):
            made = self.branch.git("commit-tree", tree, "-p", "HEAD", "-m", message, **IDENTITY)
            self.branch.git("update-ref", "HEAD", made)


def open_history(repository: Repository, name: str | None) -> HistoryLocation:
    """Open a history by folder or by ``branch:NAME``; without a name the checkout's own folder.

    A branch that is not there is begun, without a parent.

    Raises
    ------
    ValueError
        If the branch cannot be checked out.
    """
    if name is None:
        return HistoryLocation(History(repository.folder / HISTORY))
    if not name.startswith(PREFIX):
        return HistoryLocation(History(Path(name)))
    branch, folder = name.removeprefix(PREFIX), repository.folder / HISTORY
    repository.git("check-ref-format", "--branch", branch)
    if not (folder / ".git").exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds a history already; move it away before it becomes the branch {branch}")
        _begin(repository, branch)
        repository.git("worktree", "prune")  # the folder may have been deleted by hand
        repository.git("worktree", "add", "--quiet", str(folder), branch)
    checkout = Repository(folder)
    there = checkout.git("rev-parse", "--symbolic-full-name", "HEAD").removeprefix("refs/heads/")
    if there != branch:
        raise ValueError(f"{folder} has {there!r} checked out, not {branch!r}")
    return HistoryLocation(History(folder), checkout)


def _begin(repository: Repository, branch: str) -> None:
    """Make a branch that is not there; one that only the remote has is made from it."""
    remote = f"refs/remotes/origin/{branch}"
    if repository.has(f"refs/heads/{branch}"):
        return
    if repository.has(remote):
        repository.git("branch", "--track", branch, remote)
    else:
        root = repository.git("commit-tree", repository.git("mktree"), "-m", "History of nights", **IDENTITY)
        repository.git("branch", "--no-track", branch, root)
