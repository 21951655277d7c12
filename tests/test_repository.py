"""What is asked of git, the branch that a history may live on, and installed builds, over real repositories."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tda.changes import builds
from tda.changes.builds import BuildFailedError, Builds, last_words
from tda.history.branch import HISTORY, open_history
from tda.history.repository import Repository
from tda.records import BUILD_STAMP, Commit
from tests import nights


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def scratch(tmp_path: Path) -> nights.FakeRepository:
    return nights.FakeRepository(tmp_path / "repository")


@pytest.fixture
def line(scratch: nights.FakeRepository) -> list[str]:
    """Three commits and, between the last two, a merge of a branch with a commit of its own."""
    folder = scratch.folder
    first, second = scratch.commit("First", []), scratch.commit("Second: with | signs\n\nand a body")
    git(folder, "switch", "--quiet", "--create", "side", first)
    scratch.commit("Aside")
    git(folder, "switch", "--quiet", "main")
    git(folder, "merge", "--quiet", "--no-ff", "--message", "Merge", "side")
    merge = git(folder, "rev-parse", "HEAD")
    return [first, second, merge, scratch.commit("Last")]


# Commits.


def test_commits_are_resolved_from_anywhere_inside(scratch: nights.FakeRepository, line: list[str]) -> None:
    repository = Repository(scratch.folder / "tda")
    assert repository.folder == scratch.folder
    git(scratch.folder, "tag", "v1", line[1])
    assert [repository.resolve(name) for name in ("HEAD", "main", "v1", line[0][:10])] == [
        line[3],
        line[3],
        *line[1::-1],
    ]
    with pytest.raises(ValueError, match="no commit 'v2' in"):
        repository.resolve("v2")
    with pytest.raises(ValueError, match="no commit"):
        repository.resolve("HEAD:tda")  # a folder of a commit is none


def test_a_folder_outside_a_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no git checkout can be read at .*not a git repository"):
        Repository(tmp_path)


def test_commits_come_oldest_first_along_what_was_merged(scratch: nights.FakeRepository, line: list[str]) -> None:
    repository = Repository(scratch.folder)
    assert repository.between(None, "HEAD") == line
    assert repository.between(line[1], line[3]) == line[2:]
    assert repository.between(line[3], line[3]) == []
    assert repository.is_ancestor(line[0], line[3])
    assert not repository.is_ancestor(line[3], line[0])
    with pytest.raises(ValueError, match="is no ancestor of"):
        repository.between(line[3], line[1])


def test_facts_of_a_commit(scratch: nights.FakeRepository, line: list[str]) -> None:
    facts = Repository(scratch.folder).facts(line[1][:12])
    assert facts.hash == line[1]
    assert facts.subject == "Second: with | signs"
    assert facts.date.startswith("20")


def test_export_gives_the_commit_and_not_the_checkout(
    scratch: nights.FakeRepository, line: list[str], tmp_path: Path
) -> None:
    (scratch.folder / "pyproject.toml").write_text("changed")
    (scratch.folder / "untracked").touch()
    Repository(scratch.folder).export(line[0], tmp_path / "out")
    assert (tmp_path / "out" / "pyproject.toml").read_text() == nights.PROJECT
    assert not (tmp_path / "out" / "untracked").exists()
    assert not (tmp_path / "out" / ".git").exists()


# The branch of a history.

BRANCH = "branch:history"


def subjects(folder: Path, name: str) -> list[str]:
    return git(folder, "log", "--format=%s", name).splitlines()


def test_a_history_in_a_folder_is_that_folder(scratch: nights.FakeRepository, line: list[str], tmp_path: Path) -> None:
    place = open_history(Repository(scratch.folder), str(tmp_path / "history"))
    assert place.history.folder == tmp_path / "history"
    place.save("nothing happens")
    assert subjects(scratch.folder, "HEAD")[0] == "Last"


def test_a_branch_is_begun_saved_and_opened_again(scratch: nights.FakeRepository, line: list[str]) -> None:
    repository = Repository(scratch.folder)
    place = open_history(repository, BRANCH)
    assert place.history.folder == scratch.folder / HISTORY
    assert subjects(scratch.folder, "history") == ["History of nights"]  # with no parent
    place.history.write(nights.night(line))
    place.save("Night n1")
    place.save("Nothing new")
    assert subjects(scratch.folder, "history") == ["Night n1", "History of nights"]
    assert git(scratch.folder, "ls-tree", "-r", "--name-only", "history") == "nights/n1.json"

    again = open_history(repository, BRANCH)
    assert [night.id for night in again.history.nights()[0]] == ["n1"]
    assert git(scratch.folder, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert not git(scratch.folder, "status", "--porcelain", "--untracked-files=no")

    shutil.rmtree(scratch.folder / HISTORY)  # `make clean`, or a fresh checkout
    assert [night.id for night in open_history(repository, BRANCH).history.nights()[0]] == ["n1"]


def test_a_branch_that_only_the_remote_has_is_gone_on_with(
    scratch: nights.FakeRepository, line: list[str], tmp_path: Path
) -> None:
    place = open_history(Repository(scratch.folder), BRANCH)
    place.history.write(nights.night(line))
    place.save("Night n1")
    git(tmp_path, "clone", "--quiet", str(scratch.folder), "clone")
    clone = open_history(Repository(tmp_path / "clone"), BRANCH)
    assert [night.id for night in clone.history.nights()[0]] == ["n1"]
    assert git(tmp_path / "clone", "rev-parse", "--abbrev-ref", "history@{upstream}") == "origin/history"


def test_another_branch_there_is_refused(scratch: nights.FakeRepository, line: list[str]) -> None:
    repository = Repository(scratch.folder)
    open_history(repository, BRANCH)
    with pytest.raises(ValueError, match="has 'history' checked out, not 'other'"):
        open_history(repository, "branch:other")


def test_a_folder_with_something_in_it_is_not_made_a_branch(scratch: nights.FakeRepository, line: list[str]) -> None:
    (scratch.folder / HISTORY / "nights").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a history already"):
        open_history(Repository(scratch.folder), BRANCH)


# Builds.


def test_a_commit_is_installed_once_with_its_stamp(scratch: nights.FakeRepository, tmp_path: Path) -> None:
    commit = scratch.commit("Begin", [nights.record()])
    cache = Builds(Repository(scratch.folder), tmp_path / "builds")
    made = cache.install(commit)
    assert Commit.model_validate_json((made.site / "tda" / "build.json").read_bytes()) == Commit(
        hash=commit, dirty=False
    )
    assert (made.site / "tda" / "records.jsonl").is_file()
    (made.site / "mark").touch()
    assert cache.install(commit) == made
    assert (made.site / "mark").exists()
    assert [path.name for path in (tmp_path / "builds").iterdir()] == [f"{commit}-commit"]


def test_two_installs_of_a_commit_are_apart(
    scratch: nights.FakeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builds, "build", nights.copy_build)
    commit = scratch.commit("Begin", [])
    cache = Builds(Repository(scratch.folder), tmp_path / "builds")
    assert cache.install(commit).site != cache.install(commit, "control").site


def test_what_does_not_build_says_why_and_leaves_nothing(scratch: nights.FakeRepository, tmp_path: Path) -> None:
    cache = Builds(Repository(scratch.folder), tmp_path / "builds")
    broken = scratch.commit("Break", files={"pyproject.toml": "[project\n"})
    with pytest.raises(BuildFailedError, match="TOMLDecodeError"):
        cache.install(broken)
    assert list((tmp_path / "builds").iterdir()) == []


def test_a_build_of_another_package_has_its_commit_beside_it(scratch: nights.FakeRepository, tmp_path: Path) -> None:
    shutil.move(scratch.folder / "tda", scratch.folder / "other")
    commit = scratch.commit("Rename", files={"pyproject.toml": nights.PROJECT.replace('"tda*"', '"other*"')})
    build = Builds(Repository(scratch.folder), tmp_path / "builds").install(commit)
    assert Commit.model_validate_json((build.site / BUILD_STAMP).read_bytes()).hash == commit
    assert not (build.site / "tda").exists()


def test_an_installer_that_hangs_is_given_up(
    scratch: nights.FakeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "TIMEOUT_S", 0.01)
    with pytest.raises(BuildFailedError, match=r"more than 0\.01 s"):
        Builds(Repository(scratch.folder), tmp_path / "builds").install(scratch.commit("Begin", []))


def test_builds_that_nobody_used_for_long_are_deleted(
    scratch: nights.FakeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builds, "build", nights.copy_build)
    cache = Builds(Repository(scratch.folder), tmp_path / "builds")
    old, used, new = (scratch.commit(name, []) for name in ("Old", "Used", "New"))
    for commit in (old, used):
        site = cache.install(commit).site
        os.utime(site, (time.time() - 1.1 * builds.KEPT_S,) * 2)
    (tmp_path / "builds" / ".building-killed").mkdir()
    os.utime(tmp_path / "builds" / ".building-killed", (0, 0))
    cache.install(used)
    cache.install(new)
    assert {path.name for path in (tmp_path / "builds").iterdir()} == {f"{used}-commit", f"{new}-commit"}


def test_last_words() -> None:
    assert last_words("a\n\nb \n ^^^^\n c\n\n") == "b / c"
    assert last_words("a\nb\n", lines=1) == "b"
    assert last_words("") == ""
