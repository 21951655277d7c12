"""What several commands share: options, how tables are printed, how measuring ends."""

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer

from tda.cases import MethodSpec
from tda.config import BenchConfig, flag_of
from tda.names import Dtype, Execution

if TYPE_CHECKING:
    from tda.bench.worker_limits import Limits
    from tda.contracts import Method

OneModel = Annotated[str, typer.Option("--model", "-m", metavar="NAME_OR_PATH", help="ref:NAME, a folder or a hub id.")]
OneMethod = Annotated[
    str, typer.Option("--method", metavar="NAME[:OPTION=VALUE,…]", help="A method (see `tda methods`).")
]
OneSparsity = Annotated[
    float | None, typer.Option("--sparsity", "-s", help="Fraction of neurons left out, 0 <= s < 1; else 0.5.")
]
DtypeName = Annotated[Dtype, typer.Option("--dtype", help="Type of weights and activations.")]
DeviceName = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
ExecutionName = Annotated[Execution, typer.Option("--execution", help="How it runs; auto takes the fastest right way.")]
Seed = Annotated[int | None, typer.Option(help="Seed of what is drawn.")]
CalibrationText = Annotated[
    Path | None, typer.Option(metavar="FILE", help="JSONL file to calibrate on; else the built-in stream.")
]
ThresholdsFile = Annotated[
    Path | None, typer.Option("--thresholds", metavar="FILE", help="Artifact of `tda calibrate`.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let a hub repository bring code that runs on this machine.")
]
Repo = Annotated[Path, typer.Option("--repo", metavar="DIR", help="Checkout whose commits are measured.")]
Units = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Units; the same command goes on with what is there.")
]
Work = Annotated[Path, typer.Option("--work", metavar="DIR", help="Builds and children's files; safe to delete.")]
BlockCount = Annotated[int, typer.Option(min=4, help="Fresh processes of each build.")]
UnitTimeout = Annotated[float, typer.Option("--unit-timeout-s", help="A process that takes longer is ended.")]
CELL_TIMEOUT = "30m"
CellTimeout = Annotated[
    str, typer.Option(metavar="TIME", help="A worker that makes no progress for so long is ended: 90s, 30m, none.")
]
MemoryLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Host memory of a worker, above which it is ended: 16GB.")
]
UNITS = Path("results/compare")
WORK = Path(".cache/nightly")
NIGHTLY, CASES = Path("benchmarks/nightly.toml"), Path("profiles/cases.toml")
"""Where a checkout keeps what nights measure, and what is profiled."""
PIPE_WIDTH = 200
"""Columns of a table that no terminal shows."""


def configured(*left_out: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `BenchConfig` in place of its parameter `config`, which gets what was asked.

    Parameters
    ----------
    *left_out : str
        Fields that the command does not take.
    **defaults
        Values of fields where nothing is asked.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [name for name in BenchConfig.model_fields if name not in left_out]

        @functools.wraps(command)
        def call(**given: Any) -> None:
            asked = {name: given.pop(name) for name in names}
            asked = {name: value for name, value in asked.items() if value is not None and value is not False}
            command(**given, config=BenchConfig.of({**defaults, **asked}))

        own = inspect.signature(command, eval_str=True).parameters
        place = list(own).index("config")
        shown = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own.values()]
        shown[place : place + 1] = [_parameter(name) for name in names]
        call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        return call

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    """A field of `BenchConfig` as typer takes it: what is not given is None."""
    field = BenchConfig.model_fields[name]
    extra: Any = field.json_schema_extra
    option = typer.Option(*extra["flags"] or [flag_of(name)], help=field.description, metavar=extra["metavar"])
    kind, default = (bool, False) if field.annotation is bool else (_kind(field.annotation), None)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _kind(annotation: Any) -> Any:
    """What is typed for a field: lists for tuples, text for specs; without limits, which the schema checks."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return list[_kind(get_args(annotation)[0])] | None  # type: ignore[misc]
    return str if annotation is MethodSpec else annotation


def one_method(text: str, sparsity: float | None) -> "Method":
    """The method of a spec, at a sparsity where one is given beside it."""
    from tda.methods import build

    spec = MethodSpec.parse(text)
    if sparsity is not None and {"sparsity", "cett"} & spec.options.keys():
        raise ValueError(f"how much is left out is said twice: by {text!r} and by --sparsity {sparsity:g}")
    return build(spec, [] if sparsity is None else [sparsity])[0]


def limits(cell_timeout: str, memory: str | None) -> "Limits":
    """What a worker process may take, as it is asked for.

    Raises
    ------
    ValueError
        If a time or a size cannot be read.
    """
    from tda.bench.budget import parse_bytes, parse_seconds
    from tda.bench.worker_limits import Limits

    return Limits(parse_seconds(cell_timeout, "a cell's time"), None if memory is None else parse_bytes(memory))


def tell_interrupted(out: Path) -> None:
    """Say what Ctrl-C leaves of a measurement, and how to go on."""
    from tda.results import results_path

    kept = f"{results_path(out)} holds what is done" if results_path(out).is_file() else "nothing was measured yet"
    typer.echo(f"tda: interrupted; {kept}. The same command goes on.", err=True)


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
    from tda.changes.workbench import NotMeasuredError
    from tda.process import alone

    try:
        with alone(work):
            yield
    except KeyboardInterrupt:
        typer.echo("tda: interrupted; what is measured is kept. The same command goes on.", err=True)
        raise
    except NotMeasuredError as error:
        typer.echo(f"tda: {error}", err=True)
        raise typer.Exit(1) from None


def print_rows(
    rows: Sequence[Mapping[str, Any]], *, as_json: bool, title: str | None = None, err: bool = False
) -> None:
    """Print rows as a table, or as JSON.

    Parameters
    ----------
    rows : sequence of dict
        Equal keys in each; None shows as "–".
    as_json : bool
        Whether to print a JSON list instead, with null for what is not finite.
    title : str, optional
        Above the table.
    err : bool
        Whether the table goes to where progress is told.
    """
    if as_json:
        print_json(rows)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(stderr=err)
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
