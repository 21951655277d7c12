"""``tda compare``: two commits, or two folders of results, case by case."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tda.cases import describe
from tda.cli import options as o
from tda.config import BenchConfig

if TYPE_CHECKING:
    from tda.changes.compare import Comparison
    from tda.changes.workbench import CommitBench, Workbench


@o.configured("budget", "precision")
def compare(
    old: Annotated[str, typer.Argument(metavar="A", help="The old one: a commit, or a folder of results.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The new one, of the same kind.")],
    config: BenchConfig,
    blocks: o.BlockCount = 8,
    measure_floor: Annotated[
        bool,
        typer.Option(
            "--measure-floor", help="Folders: first learn in 2 minutes what processes of one build differ by."
        ),
    ] = False,
    repo: o.Repo = Path("."),
    out: o.Units = o.UNITS,
    work: o.Work = o.WORK,
    unit_timeout_s: o.UnitTimeout = 900.0,
    as_json: o.AsJson = False,
) -> None:
    """Say where B is slower, larger or worse than A; exit 1 on a regression beyond the between-process A/A floor.

    Commits are installed and run in alternating fresh processes, A twice, which gives this comparison its floor; a
    change must hold at 1% over all series together and be at least 1%. Folders are one process each: they are held
    against what single processes of one build differ by on their machine, as far as that was measured, else against
    the A/A controls that they hold; folders of several machines are compared machine by machine. A case that ran in A
    and fails in B is a regression, told by how it fails: what does not fit any more is not called slower. A case whose
    process was killed or whose worker was lost is none. "cannot tell" is a verdict, and where nothing is worse, exit
    code 3. An interrupted comparison goes on with the same command.
    """
    from tda.changes.folder import is_folder
    from tda.changes.workbench import CommitBench, Workbench
    from tda.history.repository import Repository

    folders = [name for name in (old, new) if is_folder(name)]
    if len(folders) == 1:
        other = new if folders == [old] else old
        raise ValueError(f"{folders[0]} is a folder of results and {other} is none: give two folders or two commits")
    if folders:
        if asked := config.options():
            raise ValueError(f"two folders are compared by what they hold; {', '.join(asked)} is for commits")
        bench = Workbench(out=out, work=work, timeout_s=unit_timeout_s)
        found = _folders(bench, Path(old), Path(new), blocks if measure_floor else None)
    else:
        if measure_floor:
            raise ValueError("--measure-floor is for folders: commits are compared beside a control of their own")
        commits = CommitBench(out=out, work=work, timeout_s=unit_timeout_s, repository=Repository(repo))
        found = _commits(commits, old, new, config, blocks)
    named = (old, new) if folders else (found.old, found.new)
    _tell(found, f"{named[0]} → {named[1]}; a ratio is the second over the first", as_json=as_json)


def _folders(bench: "Workbench", old: Path, new: Path, blocks: int | None) -> "Comparison":
    from tda.changes.folder import CommitResults
    from tda.changes.folder_floors import measure_floor
    from tda.changes.folders import compare_machines

    folders = CommitResults.read_machines(old), CommitResults.read_machines(new)
    if blocks is not None:
        with o.measuring(bench.work):
            measure_floor(bench, CommitResults.read(old), CommitResults.read(new), blocks)
    return compare_machines(*folders, bench.floors.known())


def _commits(bench: "CommitBench", old: str, new: str, config: BenchConfig, blocks: int) -> "Comparison":
    from tda.changes.compare import compare_commits

    try:
        before, after = (bench.repository.resolve(name) for name in (old, new))
    except ValueError as error:
        raise ValueError(f"{error}, and no results there") from None
    with o.measuring(bench.work):
        return compare_commits(bench, before, after, config, blocks)


def _tell(found: "Comparison", title: str, *, as_json: bool) -> None:
    cases = [row.case for row in found.rows]
    rows = [{**asdict(row), "case": describe(row.case, cases)} for row in found.rows]
    if as_json:
        rows = [{"old": found.old, "new": found.new, **row} for row in rows]
    else:
        told = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)] if rows else []
        rows = [{name: row[name] for name in told} for row in rows]
    o.print_rows(rows, as_json=as_json, title=title)
    for sentence in (*found.messages, *found.unjudged):
        typer.echo(f"tda: {sentence}", err=True)
    if found.worse:
        raise typer.Exit(1)
    if found.unjudged:
        raise typer.Exit(3)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(compare)
