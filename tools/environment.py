"""Make or complete the environment of the Makefile: ``python3 tools/environment.py FOLDER WHAT``.

What an environment held before we met it stays as it is, a torch above all: only what is missing is installed, in the
versions of constraints.txt. This runs on any Python 3 with nothing but its standard library, so that one that is too
old is told so.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "constraints.txt"
OLDEST = (3, 11)
BUILDERS = {"pip", "setuptools", "wheel"}
"""They install packages, and no program of a user's runs on them."""
FACTS = "import json, sys; print(json.dumps(list(sys.version_info[:2])))"


def python_of(folder: Path) -> str:
    """Interpreter of an environment, which is made first where there is none.

    Raises
    ------
    SystemExit
        If it cannot be made, or its Python is too old.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        check(tuple(sys.version_info[:2]), sys.executable)
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
            sys.exit("make: this Python cannot make environments: install the package python3-venv")
        run([sys.executable, "-m", "venv", str(folder)], f"make: no environment could be made in {folder}")
    version = subprocess.run([str(python), "-c", FACTS], stdout=subprocess.PIPE, check=True).stdout
    check(tuple(json.loads(version.decode())), str(python))
    return str(python)


def check(version: tuple[int, ...], path: str) -> None:
    """Refuse a Python that is too old."""
    if version < OLDEST:
        needed, found = (".".join(map(str, one)) for one in (OLDEST, version))
        sys.exit(f"make: needs Python {needed} or newer, and {path} is {found}; name another: PYTHON=python{needed}")


def name_of(line: str) -> str | None:
    """Package that a line fixes, spelled as pip compares names; None for a comment."""
    name = line.partition("==")[0].strip()
    return None if name.startswith("#") else re.sub("[-_.]+", "-", name).lower()


def constraints(kept: Iterable[str], pins: Iterable[str]) -> list[str]:
    """What pip may not change: everything that was there, and our pins of all else."""
    own = [line for line in kept if name_of(line) not in BUILDERS | {"tda-bench"}]
    names = {name_of(line) for line in own}
    return [*own, *(line for line in pins if name_of(line) not in names)]


def held(python: str, folder: Path) -> list[str]:
    """Packages that an environment held when we first met it, as lines NAME==VERSION."""
    note = folder / ".tda-kept.txt"
    if not note.exists():
        command = [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
        note.write_bytes(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return note.read_text().splitlines()


def run(command: Sequence[str], complaint: str) -> None:
    """Run a command; its failure ends this one with a sentence."""
    if subprocess.run(command, cwd=str(ROOT)).returncode:
        sys.exit(complaint)


def main(folder: Path, what: str) -> None:
    """Install tda and what it needs for `what`: "." or ".[EXTRA]"."""
    python = python_of(folder)
    fixed = folder / ".tda-constraints.txt"
    fixed.write_text("\n".join(constraints(held(python, folder), PINS.read_text().splitlines())) + "\n")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(fixed)]
    complaint = f"make: see above why {folder} could not be completed; VENV=.venv takes one of our own"
    run([*install, "torch"], complaint)  # by itself, so that its wheel is the pinned one whatever else asks for it
    run([*install, "-e", what], complaint)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
