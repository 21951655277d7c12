"""Measure the grid in a child process, so that what kills a cell (memory, a crash of a kernel) costs it alone."""

import subprocess
import sys
from pathlib import Path

RESULTS = "results.jsonl"


def run(folder: Path, preset: str) -> str | None:
    """Fill a results folder; the child's last words if the run ended early, None if it did not.

    A child that was killed is started again: the bench tries the cell in which it died alone, and gives up one that
    dies there too. One that dies twice without having added a line would die so for ever.
    """
    command = [sys.executable, "-c", f"import tda; tda.run_bench({str(folder)!r}, preset={preset!r})"]
    before, deaths = -1, 0
    while True:
        child = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if child.returncode == 0:
            return None
        size = _size(folder / RESULTS)
        deaths = deaths + 1 if size == before else 0
        if child.returncode > 0 or deaths == 2:
            return child.stderr.strip() or f"the measuring process was ended by signal {-child.returncode}"
        before = size


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
