"""Fail when measuring code changed without the suite's VERSION being raised: ``python -m tools.version_lint``.

asv keeps numbers of unlike versions apart, so a change of what measures must not pass for a change of what is measured.
versions.json holds, for each VERSION, a digest of the measuring code as the syntax tree has it: comments, docstrings
and layout do not count. Any other change either shifts numbers, and raises VERSION, or shifts none, and says why:

    python -m tools.version_lint --record                     # after VERSION was raised
    python -m tools.version_lint --record --reason "renamed"  # no number can shift
"""

import argparse
import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = Path("benchmarks/versions.json")
SUITE = Path("benchmarks/asv/suite.py")
MEASURING = (
    "benchmarks/asv/cells.py",  # what of the records becomes a sample
    "benchmarks/asv/run.py",
    "benchmarks/asv/suite.py",
    "tda/bench/measure.py",  # clocks around the phases, warm-up
    "tda/bench/outcome.py",
    "tda/bench/calibration.py",
    "tda/bench/model_size.py",
    "tda/bench/plan.py",
    "tda/bench/planning.py",
    "tda/bench/prepare.py",  # documents
    "tda/bench/presets.py",  # sizes of the requests
    "tda/bench/gpu_telemetry.py",
    "tda/bench/round_records.py",
    "tda/bench/rounds.py",  # order of the cases, how many rounds
    "tda/bench/scoring.py",
    "tda/bench/subject.py",
    "tda/bench/traffic.py",
    "tda/bench/window.py",  # how long the telemetry pass decodes
    "tda/device.py",
    "tda/engine/phases.py",
    "tda/engine/score.py",  # the protocols of quality
    "tda/limits.py",
    "tda/metrics/*.py",
    "tda/quality/*.py",
    "tda/reference/text.py",  # the text that quality is measured on
    "tda/telemetry/*.py",
)
"""What measures. Methods, kernels, engine and models are what is measured: a change there must show."""


def digest(root: Path) -> str:
    """Hash of the measuring code of a tree."""
    found = hashlib.sha256()
    for path in sorted({path for pattern in MEASURING for path in root.glob(pattern)}):
        found.update("\n".join(_canonical(ast.parse(path.read_text(encoding="utf-8")))).encode())
    return found.hexdigest()[:16]


def _canonical(part: object) -> Iterator[str]:
    """A syntax tree as text, without docstrings, and without empty fields: Python versions differ in those."""
    if isinstance(part, ast.AST):
        yield type(part).__name__
        for name, value in ast.iter_fields(part):
            if value not in (None, []):
                yield name
                yield from _canonical(value)
    elif isinstance(part, list):
        yield "["
        for item in part:
            if not _is_docstring(item):
                yield from _canonical(item)
        yield "]"
    else:
        yield repr(part)


def _is_docstring(part: object) -> bool:
    """Whether it is a string that stands as a statement: a docstring, of whatever."""
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)


def version(root: Path) -> str:
    """VERSION of the suite of a tree."""
    for statement in ast.parse((root / SUITE).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "VERSION":
            return str(ast.literal_eval(statement.value))
    raise ValueError(f"{SUITE} has no VERSION")


def _recorded(root: Path) -> dict[str, list[dict[str, str]]]:
    path = root / VERSIONS
    found: dict[str, list[dict[str, str]]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def problem(root: Path) -> str | None:
    """What is wrong with a tree, and what to do; None if nothing is."""
    now, recorded = version(root), _recorded(root)
    if now not in recorded:
        return f"VERSION {now!r} of {SUITE} is new: `python -m tools.version_lint --record` notes its measuring code"
    if any(entry["digest"] == digest(root) for entry in recorded[now]):
        return None
    return (
        f"measuring code changed, and VERSION is still {now!r}: if numbers may shift, raise it in {SUITE} and run "
        "`python -m tools.version_lint --record`; if none can, run it with `--record --reason TEXT`"
    )


def record(root: Path, reason: str | None) -> None:
    """Note the digest of a tree under its VERSION.

    Raises
    ------
    ValueError
        If the VERSION is known with other code and no reason is given.
    """
    now, recorded = version(root), _recorded(root)
    if problem(root) is None:
        return
    if now in recorded and not reason:
        raise ValueError(f"VERSION {now!r} is recorded with other code: raise it, or say with --reason why none shifts")
    recorded.setdefault(now, []).append({"digest": digest(root), "reason": reason or "first of its version"})
    (root / VERSIONS).write_text(json.dumps(recorded, indent=2) + "\n")


def main() -> None:
    """Check, or record and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="note the code as it is")
    parser.add_argument("--reason", help="why no number shifts")
    options = parser.parse_args()
    if options.reason and not options.record:
        parser.error("--reason goes with --record")
    try:
        if options.record:
            record(ROOT, options.reason)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    raise SystemExit(problem(ROOT))


if __name__ == "__main__":
    main()
