"""``tda report``: results to a page."""

from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o
from tda.worth import DEFAULT, WorthRule


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders that `tda bench` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where the page goes; else the first folder.")] = None,
    max_loss: o.MaxLoss = DEFAULT.max_loss_nats,
    min_speedup: o.MinSpeedup = DEFAULT.min_speedup,
) -> None:
    """Build index.html, figures (SVG and PNG) and table.csv from results; all of it works offline."""
    rule = WorthRule(max_loss, min_speedup)
    write_report(folders, out or (folders[0].parent if folders[0].is_file() else folders[0]), rule)


def write_report(folders: list[Path], out: Path, rule: WorthRule) -> None:
    """Build a report, name what could not be read, and print its place."""
    from tda.web.report import build_report

    built = build_report(folders, out, rule)
    for problem in built.problems:
        typer.echo(f"tda: {problem}", err=True)
    typer.echo(f"report: {built.index}", err=True)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(report)
