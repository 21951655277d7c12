"""The tests that need a card: the kernels against float64, and methods against masked execution and what else there is.

A dry run collects them, and runs none: without a card they would all be skipped.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.gpu_check import tell
from benchmarks.gpu_check.figures import Figure, at_least, at_most
from benchmarks.gpu_check.setting import CheckSetting
from tda.results import read_lines

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "tests/test_triton.py"
MARK = "pytest.mark.gpu"
LINES = "tests.jsonl"
SPARE_S = 5.0
"""Before the end of the part, so that what is known of the tests is told."""
NAMED = 8
"""Tests that are named in the table; all stand in the archive."""


def kernels(setting: CheckSetting) -> Iterator[Figure]:
    """Every Triton kernel against float64; on a card each test of the file is one of the card."""
    yield from run_tests(setting, [KERNELS])


def methods(setting: CheckSetting) -> Iterator[Figure]:
    """All other tests that need a card."""
    files = (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").glob("test_*.py")))
    marked = [name for name in files if name != KERNELS and MARK in (ROOT / name).read_text(encoding="utf-8")]
    yield from run_tests(setting, ["-m", "gpu", *marked])


def run_tests(setting: CheckSetting, words: Sequence[str]) -> Iterator[Figure]:
    """How the tests that pytest finds with these words come out; in a dry run, how many they are."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    if setting.dry:
        found = subprocess.run(
            [*command, "--collect-only", "-q"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        print(found.stdout, flush=True)
        if found.returncode:
            raise RuntimeError(f"pytest could not collect the tests: exit code {found.returncode}")
        count = sum("::" in line for line in found.stdout.splitlines())
        yield Figure(name="tests collected", value=count, note="not run: they need a card")
        return
    place = setting.folder / LINES
    place.touch()
    ended = _watched([*command, "-v", "-p", tell.__name__], place, max(setting.left_s - SPARE_S, 1.0))
    yield from _outcome_figures(tell.outcomes(read_lines(place, tell.StepLine)[0]), ended)


def _watched(command: Sequence[str], place: Path, timeout_s: float) -> str | None:
    """Run pytest with a plugin that writes to a file; why not all tests came to an end, None where they did."""
    environment = {**os.environ, tell.VARIABLE: str(place)}
    try:
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=environment, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"pytest did not end within {timeout_s:.0f} s"
    return None if done.returncode in (0, 1) else f"pytest ended with exit code {done.returncode}"


def _outcome_figures(outcomes: Mapping[str, str], ended: str | None) -> Iterator[Figure]:
    counts = Counter(outcomes.values())
    bad = {name: outcome for name, outcome in outcomes.items() if outcome not in ("passed", "skipped")}
    named = [f"{name.partition('::')[2] or name} {outcome}" for name, outcome in bad.items()]
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    passed, skipped = counts["passed"], f"{counts['skipped']} skipped"
    yield Figure(name="tests passed", value=passed, goal=at_least(1), note=skipped)
    failed = len(bad) or int(ended is not None)
    note = "; ".join([*filter(None, [ended]), *named[:NAMED], *more])
    yield Figure(name="tests failed, crashed or cut short", value=failed, goal=at_most(0), note=note)
