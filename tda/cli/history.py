"""``tda history``: profiles of commits, and what stays of old ones."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o

ProfilesDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where profiles are kept.")]
Cases = Annotated[Path, typer.Option("--cases", metavar="TOML", help="What is profiled, and how long traces stay.")]
OUT = Path("profiles/out")

app = typer.Typer(no_args_is_help=True, help="Profile commits as installed builds; delete traces of old ones.")


@app.command()
def profile(
    commits: Annotated[list[str] | None, typer.Argument(metavar="COMMIT", help="Commits, branches, tags.")] = None,
    out: ProfilesDir = OUT,
    cases: Cases = o.CASES,
    processes: Annotated[int | None, typer.Option(min=1, help="Of each commit; else as the cases say.")] = None,
    repo: o.Repo = Path("."),
    work: o.Work = o.WORK,
    lock: Annotated[bool, typer.Option("--lock/--no-lock", help="Refuse to run beside another measurement.")] = True,
) -> None:
    """Profile commits (else HEAD) as installed builds in alternating processes; exit 1 if one of them fails.

    Results go to DIR/COMMIT/PROCESS/CASE; what is whole there is not measured again.
    """
    from tda.history.profiles import ProfileStore
    from tda.history.repository import Repository
    from tda.nightly.config import load_profiles
    from tda.nightly.profiling import profile_commits
    from tda.process import alone

    settings, repository, store = load_profiles(cases), Repository(repo), ProfileStore(out)
    try:
        with alone(work) if lock else nullcontext():
            whole = profile_commits(repository, commits or ["HEAD"], settings, store, work / "builds", processes)
    except KeyboardInterrupt:
        typer.echo("tda: interrupted; what is whole is kept. The same command goes on.", err=True)
        raise
    typer.echo(str(store.folder))
    if not whole:
        raise typer.Exit(1)


@app.command()
def prune(out: ProfilesDir = OUT, cases: Cases = o.CASES) -> None:
    """Delete traces of old profiles; records and tables stay, and so do the traces of alarms of the history."""
    from tda.history.profiles import ProfileStore
    from tda.nightly.config import load_profiles

    pruned = ProfileStore(out).prune(load_profiles(cases).keep_traces)
    typer.echo(f"traces of {len(pruned)} commits deleted; their tables stay")


def add_to(main: typer.Typer) -> None:
    """Register the commands."""
    main.add_typer(app, name="history")
