"""What the night asks of git: commits in order, their dates and subjects, and their trees."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CommitFacts:
    """A commit as git tells it: full hash, committer date (ISO 8601), first line of the message."""

    hash: str
    date: str
    subject: str


class Repository:
    """A git checkout, read only.

    Parameters
    ----------
    folder : Path
        Anywhere inside the checkout.

    Raises
    ------
    ValueError
        If it is no git checkout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.folder = Path(self.git("rev-parse", "--show-toplevel"))
        except ValueError as error:
            raise ValueError(f"{folder} is no git checkout: {error}") from None

    def git(self, *words: str) -> str:
        """What a git command prints; ValueError with git's own words if it fails."""
        done = subprocess.run(["git", "-C", str(self.folder), *words], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"git {words[0]}: {done.stderr.strip() or done.returncode}")
        return done.stdout.strip()

    def resolve(self, name: str) -> str:
        """Full hash of a commit, branch or tag; ValueError if there is none of that name."""
        try:
            return self.git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        except ValueError:
            raise ValueError(f"no commit {name!r} in {self.folder}") from None

    def facts(self, commit: str) -> CommitFacts:
        """Date and subject of a commit."""
        found, date, subject = self.git("show", "--no-patch", "--format=%H%n%cI%n%s", commit).split("\n", 2)
        return CommitFacts(found, date, subject)

    def between(self, older: str | None, newest: str) -> list[str]:
        """Commits after `older` up to `newest`, oldest first, along first parents: what was merged, in order.

        Raises
        ------
        ValueError
            If `older` is no ancestor of `newest`.
        """
        if older is not None and not self.is_ancestor(older, newest):
            raise ValueError(
                f"{older[:10]} is no ancestor of {newest[:10]}: the history was rewritten or they diverged"
            )
        span = newest if older is None else f"{older}..{newest}"
        return self.git("rev-list", "--first-parent", "--reverse", span).split()

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether one commit is in the history of another."""
        words = ["git", "-C", str(self.folder), "merge-base", "--is-ancestor", older, newer]
        return subprocess.run(words, capture_output=True).returncode == 0

    def parent(self, commit: str) -> str | None:
        """First parent of a commit; None for a root."""
        parents = self.git("rev-list", "--parents", "-n", "1", commit).split()[1:]
        return parents[0] if parents else None

    def is_dirty(self) -> bool:
        """Whether tracked files differ from the commit."""
        return bool(self.git("status", "--porcelain", "--untracked-files=no"))

    def export(self, commit: str, folder: Path) -> None:
        """Write a commit's files into a new folder."""
        folder.mkdir(parents=True)
        with subprocess.Popen(
            ["git", "-C", str(self.folder), "archive", "--format=tar", commit], stdout=subprocess.PIPE
        ) as archive:
            subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
        if archive.returncode:
            raise ValueError(f"git archive {commit[:10]} failed")
