"""Which cells the suite asks for: models, methods and sparsities of a preset, from this tree's own registries.

asv names a cell by its place in the lists of parameters, so the lists must be the same whichever commit is installed;
and it reads every value in a process of its own, so they must not cost an import of torch. Hence they are made once, by
a child that imports the tree that this file lies in, and kept until a source changes, or the cache of the cores: a
preset takes its model in a size that the cache does not hold.
"""

import hashlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".asv" / "grids"
CORES = ROOT / "tda" / "cores.py"


def grid(preset: str) -> dict[str, Any]:
    """Cells [model, method, sparsity] that a preset times and scores, and its rounds.

    Raises
    ------
    ValueError
        If the tree has no such preset.
    """
    path = KEPT / f"{preset}-{_digest()}.json"
    if not path.is_file():
        command = [sys.executable, "-m", "benchmarks.asv.grid", preset]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"no grid for preset {preset!r}: {done.stderr.strip()}")
        _keep(path, done.stdout)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _digest() -> str:
    sources = [Path(__file__), *sorted((ROOT / "tda").rglob("*.py"))]
    parts = [*(path.read_bytes() for path in sources), str(_cache_bytes()).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cache_bytes() -> int | None:
    """By this tree's own code: the package that is installed is another commit's."""
    cores = runpy.run_path(str(CORES))
    found: int | None = cores["last_level_cache"](cores["allowed_cores"]())
    return found


def _keep(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def planned(preset: str) -> dict[str, Any]:
    """What `grid` tells, read from the registries."""
    from tda.bench.planning import plan_of
    from tda.config import BenchConfig

    try:
        config = BenchConfig.of({"preset": preset, "budget": "none"})  # as `tda.run_bench` measures it
    except ValueError as error:
        raise SystemExit(f"TDA_PRESET: {error}") from None
    plan = plan_of(config)
    methods = list(plan.build())
    timed = [method for method in methods if method.fast and method.name in ("dense", *plan.speed_methods)]
    return {
        "rounds": plan.rounds,
        "timed": [[s.model, m.name, m.sparsity] for s in plan.subjects if s.speed for m in timed],
        "scored": [
            [s.model, m.name, m.sparsity] for s in plan.subjects if s.quality and plan.documents for m in methods
        ],
    }


if __name__ == "__main__":
    print(json.dumps(planned(sys.argv[1])))
