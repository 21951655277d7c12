"""``tda bisect``: the commit of a range at which something changed."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o
from tda.config import BenchConfig


@o.configured("budget", "precision")
def bisect(
    good: Annotated[str, typer.Argument(metavar="GOOD", help="A commit before the change.")],
    bad: Annotated[str, typer.Argument(metavar="BAD", help="A commit after it.")],
    config: BenchConfig,
    split: Annotated[str, typer.Option(help="What changed: prefill, select, decode, memory or quality.")] = "decode",
    blocks: o.BlockCount = 8,
    max_blocks: Annotated[int, typer.Option(min=4, help="Processes of a commit between the ends, at most.")] = 24,
    repo: o.Repo = Path("."),
    out: o.Units = o.UNITS,
    work: o.Work = o.WORK,
    unit_timeout_s: o.UnitTimeout = 900.0,
    as_json: o.AsJson = False,
) -> None:
    """Narrow a range of commits by measuring only what decides; exit 0 if the commit is found, 1 if it is not.

    Where methods are named, the plainest change of these is followed, else of any case. The ends are compared as
    `tda compare` does. A commit between them runs in the same blocks as both, until it is plain whose side it is on;
    one that does not build or run is skipped. The commit that is found is confirmed in fresh blocks, which give its
    size. An interrupted search goes on with the same command.
    """
    from tda.changes.bisect import BisectTarget
    from tda.changes.bisect import bisect as search
    from tda.changes.workbench import CommitBench
    from tda.history.repository import Repository

    repository = Repository(repo)
    bench = CommitBench(out=out, work=work, timeout_s=unit_timeout_s, repository=repository)
    target = BisectTarget(split, blocks, max_blocks)
    with o.measuring(work):
        found = search(bench, repository.resolve(good), repository.resolve(bad), config, target)
    rows = [
        {"commit": commit[:10], "subject": repository.facts(commit).subject, **asdict(row), "case": str(row.case)}
        for commit, row in found.tried
    ]
    o.print_rows(rows, as_json=as_json, title=f"{good} .. {bad}")
    typer.echo(f"tda: {found.message}", err=True)
    if found.found is None:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(bisect)
