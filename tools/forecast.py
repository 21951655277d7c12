"""How long a suite will take on this machine as it is now: ``python -m tools.forecast micro`` or ``profiles``.

A pilot runs a part of the real work once, in a process of its own, and says of each piece how many seconds it took and
how often the whole runs it. No constant of another machine is in it. The suite of asv is foretold by
`tools.forecast_asv`, in the same way.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Piece = tuple[float, float]
"""Seconds that a piece took once, and how often the whole runs it."""


def whole(wall: float, pieces: Iterable[Piece]) -> float:
    """Seconds of the whole, from a pilot that took `wall` seconds and ran each piece once in them."""
    return wall + sum(seconds * (times - 1) for seconds, times in pieces)


def pilot(command: Sequence[str]) -> tuple[float, list[Piece]]:
    """Seconds of a command that is given the name of a file as its last word, and the pieces that it writes there.

    Raises
    ------
    SystemExit
        If it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pieces.json"
        begin = time.monotonic()
        done = subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True)
        wall = time.monotonic() - begin
        if done.returncode:
            raise SystemExit(f"the pilot failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return wall, [(seconds, times) for seconds, times in json.loads(path.read_text())]


def told(what: str, seconds: float) -> str:
    """What a forecast says."""
    return f"{what}: about {seconds / 60:.1f} min, with this machine as busy as it was in the pilot"


def micro() -> str:
    """Every benchmark once, its verb timed after a first call."""
    words = ["-m", "pytest", "benchmarks/micro", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "--pilot"]
    return told("make micro", whole(*pilot([sys.executable, *words])))


def profiles() -> str:
    """The commit installed, which the capture takes over; then dense alone, for all cases of its model."""
    from tda.changes.builds import Builds
    from tda.cli.history import OUT
    from tda.cli.options import CASES, WORK
    from tda.history.repository import Repository
    from tda.nightly.config import load_profiles

    repository = Repository(ROOT)
    commit = repository.resolve("HEAD")
    if (ROOT / OUT / commit).is_dir():
        return f"make profiles: {commit[:10]} is in {OUT}; what is whole there is not measured again"
    Builds(repository, ROOT / WORK / "builds").install(commit)
    options = load_profiles(ROOT / CASES).options
    command = [sys.executable, "-m", "tools.forecast", "pilot", json.dumps(options)]
    return told("make profiles", whole(*pilot(command)))


def profile_dense(options: Mapping[str, Any]) -> list[Piece]:
    """Profile dense: seconds of its case on each model, which stand for one of each method and sparsity."""
    import tda
    from tda.logs import handled

    stamps: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        told = {**options, "method": ["dense"]}
        with handled("tda", lambda record: stamps.append((record.getMessage(), time.monotonic()))):
            tda.run_profile(folder, **told)
    return cases(stamps, time.monotonic(), 1 + len(options["method"]) * len(options["sparsity"]))


def cases(stamps: Iterable[tuple[str, float]], end: float, times: int) -> list[Piece]:
    """A piece for each model: from its first timed round to the next model's loading, or the end."""
    begin: dict[str, float] = {}
    until: dict[str, float] = {}
    for sentence, moment in stamps:
        model = sentence.rpartition(": ")[0]
        if "timing" in sentence:
            begin.setdefault(model, moment)
        if sentence.endswith("loading"):
            until |= {earlier: moment for earlier in begin if earlier not in until}
    return [(until.get(model, end) - moment, times) for model, moment in begin.items()]


SUITES: dict[str, Callable[[], str]] = {"micro": micro, "profiles": profiles}


def main(words: Sequence[str]) -> None:
    """Print a forecast, or run the pilot of the profiles."""
    if words[0] == "pilot":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        Path(words[2]).write_text(json.dumps(profile_dense(json.loads(words[1]))))
        return
    print(f"make {words[0]}: a pilot tells how long it takes ...", flush=True)
    print(SUITES[words[0]](), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
