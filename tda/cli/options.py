"""What several commands share: options, how tables are printed, how measuring ends."""

import functools
import inspect
import json
import math
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
CASE_TIMEOUT = "30m"
CaseTimeout = Annotated[
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
"""Letters of a line where no terminal shows the table."""
WIDE = 10_000
Wide = Annotated[bool, typer.Option("--wide", help="Print all columns, however narrow the terminal is.")]
MaxLoss = Annotated[
    float, typer.Option("--max-loss", metavar="NATS", help="Worth it: a ΔNLL of at most so many nats per token.")
]
MinSpeedup = Annotated[
    float, typer.Option("--min-speedup", metavar="RATIO", help="Worth it: at least so fast, beyond the A/A noise.")
]


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


def limits(case_timeout: str, memory: str | None) -> "Limits":
    """What a worker process may take, as it is asked for.

    Raises
    ------
    ValueError
        If a time or a size cannot be read.
    """
    from tda.bench.budget import parse_bytes, parse_seconds
    from tda.bench.worker_limits import Limits

    return Limits(parse_seconds(case_timeout, "the time of a case"), None if memory is None else parse_bytes(memory))


def tell_interrupted(out: Path) -> None:
    """Say what Ctrl-C leaves of a measurement, and how to go on."""
    from tda.results import results_path

    kept = f"{results_path(out)} holds what is done" if results_path(out).is_file() else "nothing was measured yet"
    typer.echo(f"tda: interrupted; {kept}. The same command goes on.", err=True)


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


# long: its parameters are explained
def print_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    as_json: bool,
    title: str | None = None,
    err: bool = False,
    heads: Mapping[str, str] | None = None,
    spare: Sequence[str] = (),
    group: str | None = None,
    wide: bool = False,
) -> None:
    """Print rows as a table that fits the terminal, or as JSON.

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
    heads : mapping of str to str, optional
        Short heads of columns.
    spare : sequence of str
        Columns in the order in which they are left out where there is no space for all.
    group : str, optional
        A column that stands in lines of its own, above the rows that have it in common.
    wide : bool
        Whether all columns are printed, however long the lines become.
    """
    if as_json:
        print_json(rows)
        return
    from rich.console import Console

    from tda.cli.tables import table

    console = Console(stderr=err)
    width = WIDE if wide else max(console.width, 20)  # COLUMNS=0 is no width
    if not (wide or console.is_terminal or "COLUMNS" in os.environ):
        width = PIPE_WIDTH
    names = list(rows[0]) if rows else []
    shown = {name: (heads or {}).get(name, name.replace("_", " ")) for name in names}
    numbers = [name for name in names if all(isinstance(row[name], int | float | None) for row in rows)]
    texts = [{name: _cell(value) for name, value in row.items()} for row in rows]
    lines, left_out = table(texts, width, shown, spare=spare, numbers=numbers, group=group)
    if left_out:
        lines += textwrap.wrap(f"Not shown: {', '.join(shown[name] for name in left_out)}; --wide shows all.", width)
    for line in [*textwrap.wrap(title or "", min(width, PIPE_WIDTH)), *lines, ""]:
        typer.echo(line, err=err)


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
    if not isinstance(value, float):
        return str(value)
    from tda.digits import number

    short = f"{value:.4g}"
    return number(value, 4) if "e" in short else short
