"""Everything that needs a GPU, in one command and six minutes.

    python -m benchmarks.gpu_check --out results/gpu

runs its parts in order of worth, each in a process of its own: one that crashes, hangs or lacks a package is a line of
the table, and the others go on. It writes DIR/summary.md, DIR/summary.json and DIR/records.tar.gz. With ``--dry-run``
the parts that need no card take the same way on the CPU, with a small model.

It ends with 1 where a part did not end well or a goal is not reached, and with 2 where it cannot begin.
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_check.packages import imported_by_tda, lacking
from benchmarks.gpu_check.parts import PARTS, Part


def main() -> None:
    """Check what is asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--out", type=Path, default=Path("results/gpu"), metavar="DIR", help="a folder without an earlier check"
    )
    parser.add_argument("--dry-run", action="store_true", help="what needs no card, on the CPU")
    parser.add_argument("--part", choices=names, action="append", help="only these; repeatable")
    options = parser.parse_args()
    if missing := lacking(imported_by_tda()):
        parser.error(f"tda imports what is not installed: {', '.join(missing)}")
    from benchmarks.gpu_check.summary import JSON
    from tda.cli.signals import ending_as_ctrl_c

    if options.out.exists() and not options.out.is_dir():
        parser.error(f"{options.out} is a file; --out takes a folder")
    if (options.out / JSON).exists():
        parser.error(f"{options.out} holds an earlier check; give another folder (--out, or GPU_OUT of make)")
    parts = [part for part in PARTS if part.gate or part.name in (options.part or names)]
    with ending_as_ctrl_c():
        sys.exit(check(parts, options.out, dry=options.dry_run))


def check(parts: list[Part], out: Path, *, dry: bool) -> int:
    """Run parts, keep what they give in a folder, and return the exit code."""
    from benchmarks.gpu_check import archive
    from benchmarks.gpu_check.check import Outcome, run
    from benchmarks.gpu_check.summary import Summary, read_facts
    from tda.interrupts import held_back

    begin, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")

    def say(sentence: str) -> None:
        print(f"{time.monotonic() - begin:4.0f} s  {sentence}", file=sys.stderr, flush=True)

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        scratch = Path(folder)

        def summary(outcomes: list[Outcome], dropped: list[str]) -> Summary:
            return Summary(started, dry, outcomes, read_facts(scratch), dropped)

        outcomes = run(parts, scratch, dry=dry, say=say, after=lambda done: summary(done, []).write(out))
        with held_back():
            found = summary(outcomes, archive.pack(scratch, out))
            found.write(out)
    print(found.markdown())
    say(f"written to {out}")
    if any(outcome.status == "interrupted" for outcome in outcomes):
        return 130
    return int(bool(found.troubles or found.short))


if __name__ == "__main__":
    main()
