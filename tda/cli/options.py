"""What several commands share: options, how tables are printed, how measuring ends."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tda.names import Dtype, Execution, Preset

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "-m", metavar="NAME_OR_PATH", help="ref:NAME, shape:NAME, a folder or a hub id; repeatable."
    ),
]
OneModel = Annotated[str, typer.Option("--model", "-m", metavar="NAME_OR_PATH", help="ref:NAME, a folder or a hub id.")]
Methods = Annotated[
    list[str] | None, typer.Option("--method", metavar="NAME", help="A method (see `tda methods`); repeatable.")
]
OneMethod = Annotated[str, typer.Option("--method", metavar="NAME", help="A method (see `tda methods`).")]
Sparsities = Annotated[
    list[float] | None,
    typer.Option("--sparsity", "-s", help="Share of neurons left out, 0 <= s < 1; repeatable."),
]
OneSparsity = Annotated[float, typer.Option("--sparsity", "-s", help="Share of neurons left out, 0 <= s < 1.")]
PromptTokens = Annotated[int | None, typer.Option(help="Tokens of a prompt.")]
NewTokens = Annotated[int | None, typer.Option(help="Tokens decoded after it.")]
Documents = Annotated[int | None, typer.Option(help="Documents scored.")]
CalibrationDocuments = Annotated[int | None, typer.Option(help="Documents that thresholds are made from.")]
DtypeName = Annotated[Dtype, typer.Option("--dtype", help="Type of weights and activations.")]
DtypeOrNone = Annotated[Dtype | None, typer.Option("--dtype", help="Type of weights and activations.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
DeviceOrNone = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ...")]
ExecutionName = Annotated[Execution, typer.Option("--execution", help="How it runs; auto takes the fastest right way.")]
Seed = Annotated[int | None, typer.Option(help="Seed of random methods, documents and the order of cases.")]
Text = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='JSONL file with {"text": ...} lines to evaluate on; else the built-in stream.'),
]
CalibrationText = Annotated[
    Path | None, typer.Option(metavar="FILE", help="JSONL file to calibrate on; else the built-in stream.")
]
ThresholdsFile = Annotated[
    Path | None, typer.Option("--thresholds", metavar="FILE", help="Artifact of `tda calibrate`.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let a hub repository bring code that runs on this machine.")
]
PresetOrNone = Annotated[
    Preset | None, typer.Option("--preset", help="The matrix; other options change it. Else default.")
]
Batch = Annotated[int | None, typer.Option(help="Requests served together.")]
Rounds = Annotated[int | None, typer.Option(help="Timed rounds of a process.")]
ExecutionOrNone = Annotated[Execution | None, typer.Option("--execution", help="Execution; else auto.")]
Repo = Annotated[Path, typer.Option("--repo", metavar="DIR", help="Checkout whose commits are measured.")]
Units = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Units; the same command goes on with what is there.")
]
Work = Annotated[Path, typer.Option("--work", metavar="DIR", help="Builds and children's files; safe to delete.")]
Blocks = Annotated[int, typer.Option(min=4, help="Fresh processes of each build.")]
UnitTimeout = Annotated[float, typer.Option("--unit-timeout-s", help="A process that takes longer is ended.")]
UNITS = Path("results/compare")
WORK = Path(".cache/nightly")
PIPE_WIDTH = 200
"""Columns of a table that no terminal shows."""


def say(sentence: str) -> None:
    """Tell what is going on, with the time of day."""
    typer.echo(f"{datetime.now(UTC):%H:%M:%S} {sentence}", err=True)


def warn(notice: str | None) -> None:
    """Tell what the user must know, if there is something."""
    if notice is not None:
        typer.secho(f"tda: {notice}", fg=typer.colors.YELLOW, err=True)


@contextmanager
def measuring(work: Path) -> Iterator[None]:
    """Measure commits alone in a working folder; one that cannot be measured is a sentence and exit code 1."""
    from tda.regression.alternate import alone
    from tda.regression.workbench import NotMeasuredError

    try:
        with alone(work):
            yield
    except KeyboardInterrupt:
        typer.echo("tda: interrupted; what is measured is kept. The same command goes on.", err=True)
        raise
    except NotMeasuredError as error:
        typer.echo(f"tda: {error}", err=True)
        raise typer.Exit(1) from None


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool, title: str | None = None) -> None:
    """Print rows as a table, or as JSON.

    Parameters
    ----------
    rows : sequence of dict
        Equal keys in each; None shows as "–".
    as_json : bool
        Whether to print a JSON list instead, with null for what is not finite.
    title : str, optional
        Above the table.
    """
    if as_json:
        print_json(rows)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in rows[0] if rows else ():
        number = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(escape(name.replace("_", " ")), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    console.print(table)


def print_json(value: Any) -> None:
    """Print as JSON, with null for what is not finite: JSON has no word for it."""
    typer.echo(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
