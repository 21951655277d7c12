"""What the night asks of git: commits in order, their dates and subjects, and their trees."""

import re
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tda import git
from tda.git import GitError

_FACTS = ("--date=format-local:%Y-%m-%dT%H:%M:%S+00:00", "--encoding=UTF-8", "--format=%H%x00%cd%x00%s")


@dataclass(frozen=True)
class CommitFacts:
    """A commit as git tells it: full hash, committer date (ISO 8601, UTC), first line of the message."""

    hash: str
    date: str
    subject: str


def short(commit: str) -> str:
    """A hash as people write it."""
    return commit[:10]


class Repository:
    """A git checkout, read only.

    Parameters
    ----------
    folder : Path
        Anywhere inside the checkout.

    Raises
    ------
    ValueError
        If git knows no checkout there, or does not trust it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.folder = Path(self.git("rev-parse", "--show-toplevel"))
        except GitError as error:
            raise ValueError(f"no git checkout can be read at {folder}: {error}") from None

    def git(self, *words: str, **variables: str) -> str:
        """What a git command prints, as `tda.git.run` does."""
        return git.run(self.folder, *words, variables=variables)

    def resolve(self, name: str) -> str:
        """Full hash of a commit, branch or tag, of a branch where a tag has its name; ValueError if there is none."""
        line = name.replace("\n", " ")
        told = git.run(
            self.folder, "cat-file", "--batch-check", data=f"refs/heads/{line}^{{commit}}\n{line}^{{commit}}\n".encode()
        )
        found = re.search(r"^([0-9a-f]{40,}) commit \d+$", told, re.MULTILINE)
        if found is None:
            raise ValueError(f"no commit {name!r} in {self.folder}" + (f": it {self._cut}" if self._cut else ""))
        return found[1]

    def has(self, ref: str) -> bool:
        """Whether there is a reference of this full name."""
        return git.succeeds(self.folder, "show-ref", "--verify", "--quiet", ref)

    def facts(self, commit: str) -> CommitFacts:
        """Date and subject of a commit."""
        return self._facts("--max-count=1", commit)[0]

    def all_facts(self) -> list[CommitFacts]:
        """Dates and subjects of all commits that a branch or tag leads to."""
        return self._facts("--all")

    def _facts(self, *which: str) -> list[CommitFacts]:
        lines = self.git("rev-list", *_FACTS, *which, "--").split("\n")
        return [CommitFacts(*line.split("\0")) for line in lines[1::2]]  # before each stands "commit HASH"

    def between(self, older: str | None, newest: str) -> list[str]:
        """Commits after `older` up to `newest`, oldest first, along first parents: what was merged, in order.

        Raises
        ------
        ValueError
            If `older` is no ancestor of `newest`, or the clone is shallow.
        """
        self.check_whole()
        if older is not None and not self.is_ancestor(older, newest):
            raise ValueError(
                f"{older[:10]} is no ancestor of {newest[:10]}: the history was rewritten or they diverged"
            )
        span = newest if older is None else f"{older}..{newest}"
        return self.git("rev-list", "--first-parent", "--reverse", span, "--").split()

    def line(self, newest: str) -> list[str]:
        """All commits of a branch, oldest first."""
        return self.git("rev-list", "--reverse", newest, "--").split()

    def tags(self) -> dict[str, str]:
        """Full hash of the commit of each tag."""
        names = self.git("tag", "--list").split("\n")
        return {name: self.git("rev-parse", f"refs/tags/{name}^{{commit}}") for name in filter(None, names)}

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether one commit is in the history of another; ValueError in a shallow clone."""
        self.check_whole()
        return git.succeeds(self.folder, "merge-base", "--is-ancestor", older, newer)

    def check_whole(self) -> None:
        """Refuse a shallow clone: what is cut off is not told from what never was.

        Raises
        ------
        ValueError
            If it is one.
        """
        if self._cut:
            raise ValueError(f"{self.folder} {self._cut}")

    @cached_property
    def _cut(self) -> str:
        """What is wrong with a shallow clone; empty for a whole one."""
        shallow = self.git("rev-parse", "--is-shallow-repository") == "true"
        return "is a shallow clone, whose older commits are cut off: `git fetch --unshallow`" if shallow else ""

    def export(self, commit: str, folder: Path) -> None:
        """Write a commit's files into a new folder, byte for byte."""
        folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as scratch:
            plain = "'core.autocrlf=false' 'core.eol=lf'"
            aside = {"GIT_INDEX_FILE": f"{scratch}/index", "GIT_CONFIG_PARAMETERS": plain}
            self.git("read-tree", commit, **aside)
            self.git("checkout-index", "--all", f"--prefix={folder.resolve()}/", **aside)
