"""Lend asv's environment the packages of the one that runs asv: run by ``install_command`` of asv.conf.json.

So versions are fixed in constraints.txt alone, every commit runs on one torch, the environment stands in seconds and
holds the commit's wheel and little else: no gigabytes are installed a second time.

A `.pth` file appends one folder to the import path. What the environment holds itself is found first; and a folder
named so has its own `.pth` files ignored, so that the project's editable install stays out.
"""

import os
import sys
import sysconfig
from pathlib import Path

LENT = "lent.pth"


def packages(environment: Path) -> Path:
    """Folder of the pure and binary packages of a virtual environment with this interpreter's version."""
    variables = dict.fromkeys(("base", "platbase"), str(environment))
    return Path(sysconfig.get_path("purelib", scheme="venv", vars=variables))


def lender(project: Path) -> Path:
    """Packages of the active virtual environment, or else of the project's .venv: as the Makefile chooses.

    Raises
    ------
    SystemExit
        If neither has torch.
    """
    environments = [*map(Path, filter(None, [os.environ.get("VIRTUAL_ENV")])), project / ".venv"]
    for environment in environments:
        if (packages(environment) / "torch").is_dir():
            return packages(environment)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise SystemExit(f"no torch for Python {version} in {' or '.join(map(str, environments))}; `make asv` makes .venv")


def main() -> None:
    """Write the file into the environment that runs this."""
    lent = Path(sysconfig.get_path("purelib")) / LENT
    lent.write_text(f"{lender(Path(sys.argv[1]))}\n")


if __name__ == "__main__":
    main()
