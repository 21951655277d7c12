"""Records, units and nights with chosen values, and a fake package that serves them as real commits."""

import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tda.cases import Case, Inputs
from tda.changes.builds import BuildFailedError, Builds
from tda.history.nights import History, Night, NightCommit, Unit
from tda.records import Commit, Machine, Measurement, Record

MACHINE = Machine(
    cpu="Test CPU",
    cores=2,
    threads=2,
    memory_bytes=1 << 30,
    python="3.11",
    torch="2.13.0",
    transformers="5.24.0",
    tda="0.1.0",
    system="Linux",
)
LEVELS: Mapping[str, float] = {"prefill_ms": 20.0, "selection_ms": 6.0, "decode_ms": 8.0, "peak_memory_bytes": 5e8}
DOCUMENTS = 6


def case(method: str = "dense", model: str = "shape:25m", **fields: Any) -> Case:
    """A case at a sparsity of 0.5, 64 + 16 tokens."""
    told = {"sparsity": 0.0 if method == "dense" else 0.5, "prompt_tokens": 64, "new_tokens": 16, **fields}
    return Case(model=model, method=method, **told)


def record(
    of: str | Case = "dense",
    *,
    model: str = "shape:25m",
    machine: Machine = MACHINE,
    inputs: Inputs | None = None,
    **values: Any,
) -> Record:
    """A merged record of two rounds of a case, or of a method's; `nll` and `digest` make it one of quality too."""
    own = case(of, model) if isinstance(of, str) else of
    levels = {**LEVELS, **values}
    nll, digest = levels.pop("nll", None), levels.pop("digest", None)
    if own.method not in ("griffin", "tda"):  # others choose within decode, or nothing
        del levels["selection_ms"]
    measurements = {name: Measurement.of(name, [value, value]) for name, value in levels.items()}
    if nll is not None:
        measurements["nll_nats"] = Measurement.of("nll_nats", [nll + i for i in range(DOCUMENTS)], range(DOCUMENTS))
    if digest is not None or own.method in ("griffin", "tda"):
        digests = [float(digest or 1)] * DOCUMENTS
        measurements["selection_digest"] = Measurement.of("selection_digest", digests, range(DOCUMENTS))
    return Record(
        case=own,
        inputs=inputs or Inputs(),
        round=2,
        commit=Commit(hash="0" * 40, dirty=False),
        machine=machine,
        status="ok",
        measurements=measurements,
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )


def unit(commit: str, records: Sequence[Record], **fields: Any) -> Unit:
    """A good unit of the speed grid."""
    told = {"night": "n1", "grid": "speed", "block": 1, "order": 0, "status": "ok", **fields}
    return Unit(commit=commit, records=tuple(records), started="2026-01-01T00:00:00+00:00", seconds=1.0, **told)


def night(commits: Sequence[str], **fields: Any) -> Night:
    """The record of a finished night over commits that were all measured."""
    listed = tuple(
        NightCommit(hash=c, date=f"2026-01-{n + 1:02d}T00:00:00+00:00", subject=f"Commit {n}", status="measured")
        for n, c in enumerate(commits)
    )
    told = {
        "id": "n1",
        "started": "s",
        "finished": "f",
        "machine": MACHINE,
        "baseline_commit": commits[0],
        "commits": listed,
    }
    return Night(**{**told, **fields})


FAKE = """
import json
from pathlib import Path
__version__ = "0.1.0"


def run_bench(out, **options):
    folder = Path(__file__).parent
    with open(folder.parent.parent / "ran.log", "a") as log:
        log.write(folder.parent.name + " " + options["preset"] + "\\n")
    text = (folder / "records.jsonl").read_text()
    (Path(out) / "results.jsonl").write_text(text)
"""
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "tda"
version = "0.1.0"
[tool.setuptools.packages.find]
include = ["tda*"]
[tool.setuptools.package-data]
tda = ["records.jsonl"]
"""


class FakeRepository:
    """A git repository whose commits are packages that serve given records in no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tda").mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "tda" / "__init__.py").write_text(FAKE)
        self._git("init", "--quiet", "--initial-branch", "main")

    def commit(
        self, subject: str, records: Sequence[Record] | None = None, files: Mapping[str, str] | None = None
    ) -> str:
        """Commit records and files by path; the hash."""
        lines = None if records is None else "".join(one.model_dump_json() + "\n" for one in records)
        changed = dict(files or {}) if lines is None else {"tda/records.jsonl": lines, **(files or {})}
        for path, text in changed.items():
            (self.folder / path).write_text(text)
        self._git("add", "--all")
        self._git(
            *("-c", "user.name=t", "-c", "user.email=t@localhost"),
            *("commit", "--quiet", "--allow-empty", "--message", subject),
        )
        return self._git("rev-parse", "HEAD")

    def _git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", str(self.folder), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()


def copy_build(builds: Builds, commit: str, folder: Path) -> None:
    """Install a commit of a fake repository by copying: what `Builds` does with an installer, fifty times as fast."""
    builds.repository.export(commit, folder / "source")
    try:
        tomllib.loads((folder / "source" / "pyproject.toml").read_text())
    except tomllib.TOMLDecodeError as error:
        raise BuildFailedError(str(error)) from None
    (folder / "source" / "tda").rename((folder / "site").mkdir() or folder / "site" / "tda")


def history(folder: Path, told: Night, units: Sequence[Unit]) -> History:
    """A history of one night on disk."""
    made = History(folder)
    made.write(told)
    for one in units:
        made.keep(one)
    return made
