"""Faults planted in the worker processes of a bench: Python reads them before anything else."""

import os
from pathlib import Path

import pytest


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have every Python process that is started from now on run some code first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
