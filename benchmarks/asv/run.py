"""Measure the grid in a child process, so that what kills a cell (memory, a crash of a kernel) costs it alone."""

import subprocess
import sys
from pathlib import Path

RESULTS = "results.jsonl"


def run(folder: Path, preset: str) -> str | None:
    """Fill a results folder; the child's last words if the run ended early, None if it did not.

    A child that was killed is started again: the bench notes the cell in which it died and goes on after it. One that
    dies without having added a line would die so for ever.
    """
    command = [sys.executable, "-c", f"import tda; tda.run_bench({str(folder)!r}, preset={preset!r})"]
    before = -1
    while True:
        child = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if child.returncode == 0:
            return None
        size = _size(folder / RESULTS)
        if child.returncode > 0 or size == before:
            return child.stderr.strip() or f"the measuring process was ended by signal {-child.returncode}"
        before = size


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
