"""Profile commits as installed builds: `python -m profiles.capture [COMMIT ...]`, else HEAD.

Results go to ``DIR/COMMIT/PROCESS/CASE``; what lies there whole is not measured again. Several commits run in
alternating processes, so that what changed between them can be told from what the machine did meanwhile.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from profiles.retention import CASES, OUT, thin
from tda.device import machine
from tda.process import alone
from tda.regression.builds import Build, BuildFailedError, Builds
from tda.regression.config import load_profiles
from tda.regression.profiles import Question, Shelf, capture
from tda.regression.repository import Repository
from tda.regression.units import Unit

WORK = Path(".cache/nightly")
"""Where nights keep their builds, and a lock that says that something is being measured."""
NAME = "cases"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m profiles.capture", description=__doc__)
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="commits, branches or tags; else HEAD")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where profiles are kept")
    parser.add_argument("--cases", type=Path, default=CASES, metavar="TOML", help="what is profiled")
    parser.add_argument("--processes", type=int, metavar="N", help="of each commit; else as the cases say, or 1 of one")
    parser.add_argument("--repo", type=Path, default=Path("."), metavar="DIR", help="checkout whose commits are meant")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="builds; safe to delete")
    parser.add_argument("--no-lock", action="store_true", help="the caller sees to it that nothing else measures here")
    return parser.parse_args(words)


def run(options: argparse.Namespace) -> int:
    """Capture what is asked; 1 if a commit does not build or a process failed.

    Raises
    ------
    ValueError, OSError
        If an option is wrong.
    """
    settings = load_profiles(options.cases)
    repository = Repository(options.repo)
    commits = list(dict.fromkeys(repository.resolve(name) for name in options.commits or ["HEAD"]))
    processes = options.processes or (settings.processes if len(commits) > 1 else 1)
    question = Question(NAME, settings.options, processes, settings.timeout_s)
    shelf = Shelf(options.out)
    with nullcontext() if options.no_lock else alone(options.work):
        builds = list(install(Builds(repository, options.work / "builds"), commits))
        here = machine(settings.options.device or "cpu").fingerprint
        units: list[Unit] = capture(shelf, question, builds, here, say) if builds else []
    for commit in thin(shelf, settings.keep_traces):
        say(f"{commit[:10]} is old: its traces are deleted, its tables stay")
    print(shelf.folder)
    return int(len(builds) < len(commits) or any(unit.status != "ok" for unit in units))


def install(builds: Builds, commits: Iterable[str]) -> Iterator[Build]:
    """Install commits; one that does not build is told of and left out."""
    for commit in commits:
        try:
            yield builds.install(commit)
        except BuildFailedError as error:
            say(f"{commit[:10]} does not build: {error}")


def say(sentence: str) -> None:
    """Tell what is going on."""
    print(f"profiles: {sentence}", file=sys.stderr, flush=True)


def main() -> int:
    """Run, and tell of a wrong use in one sentence."""
    try:
        return run(parse())
    except (ValueError, OSError) as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted; what is whole is kept. The same command goes on.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
