"""A plugin of pytest: a line for each step of each test, as it comes, so that a crash loses no other test's result."""

import os
from collections.abc import Iterable

import pytest

from tda.cases import Frozen

VARIABLE = "GPU_CHECK_TESTS"
"""Where the lines go."""
WORSE = ("passed", "skipped", "failed")
"""How a step comes out, from good to bad."""
CRASHED = "crashed"
LAST = ("teardown", "collect")
"""Steps after which nothing more comes of a test, or of a file that could not be collected."""


class StepLine(Frozen):
    """A step of a test: its start, which has no outcome, its setup, its call or its teardown."""

    test: str
    step: str
    outcome: str | None = None


def _tell(line: StepLine) -> None:
    with open(os.environ[VARIABLE], "a") as file:
        file.write(line.model_dump_json() + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note that a test begins."""
    _tell(StepLine(test=nodeid, step="start"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a step of it came out."""
    _tell(StepLine(test=report.nodeid, step=str(report.when), outcome=report.outcome))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a file that could not be collected: none of its tests ran."""
    if report.failed:
        _tell(StepLine(test=report.nodeid, step="collect", outcome=report.outcome))


def outcomes(lines: Iterable[StepLine]) -> dict[str, str]:
    """The worst outcome of each test; "crashed" where it never came to its end."""
    last: dict[str, str] = {}
    worst: dict[str, str] = {}
    for line in lines:
        last[line.test] = line.step
        told = [one for one in (worst.get(line.test), line.outcome) if one is not None]
        if told:
            worst[line.test] = max(told, key=WORSE.index)
    return {test: worst[test] if step in LAST else CRASHED for test, step in last.items()}
