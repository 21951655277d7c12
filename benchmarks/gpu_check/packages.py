"""Packages that must be there, read from pyproject.toml. Nothing here imports one of them, nor anything of tda."""

import importlib.util
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
IMPORTED_AS = {"nvidia-ml-py": "pynvml"}
"""Names under which packages are imported, where they have another."""


def is_installed(package: str) -> bool:
    """Whether a package could be imported; it is not."""
    try:
        return importlib.util.find_spec(IMPORTED_AS.get(package, package)) is not None
    except ValueError:  # something in `sys.modules` that is no module stands for it
        return False


def imported_by_tda() -> list[str]:
    """The packages that tda depends on."""
    wanted = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [re.split("[><=!~; ]", line)[0] for line in wanted]


def lacking(packages: Iterable[str]) -> list[str]:
    """Those that are not installed."""
    return [package for package in packages if not is_installed(package)]
