"""The command line's entry: commands, and how errors and interruptions end."""

import io
import os
import sys
import time
from importlib import import_module
from pathlib import Path

import typer

from tda import __version__
from tda.cli.logs import tell
from tda.cli.signals import ending_as_ctrl_c
from tda.cores import wait_briefly
from tda.logs import handled

COMMANDS = (
    "bench",
    "calibrate",
    "evaluate",
    "lm_eval",
    "sweep",
    "generate",
    "profile",
    "report",
    "compare",
    "bisect",
    "nightly",
    "dashboard",
    "history",
    "doctor",
    "tune",
    "catalogue",
)

app = typer.Typer(
    name="tda",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure what dynamic activation saves in a decoder, and what it costs.\n\n"
    "Exit codes: 0 done, 1 a regression, a failed case or numbers that are not finite, 2 wrong use, "
    "3 a comparison that cannot tell, 130 interrupted, 143 ended by SIGTERM.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tda {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    ctx.obj = time.monotonic()  # when the command began
    ctx.with_resource(handled("tda", tell))


for _name in COMMANDS:
    import_module(f"tda.cli.{_name}").add_to(app)


def _not_writable(error: Exception) -> str | None:
    """Name the folder in which this user may not make a file; None for another error."""
    if not isinstance(error, PermissionError) or error.filename is None or os.path.lexists(error.filename):
        return None
    folder = Path(error.filename).absolute().parent
    if os.access(folder, os.W_OK) or not os.access(folder, os.X_OK):
        return None
    return f"{folder} cannot be written by this user: {error.strerror}; give another folder, or run in another one"


def main() -> None:
    """Run a command; a wrong use is one sentence and exit code 2, and SIGTERM ends it as Ctrl-C does."""
    wait_briefly()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a letter shows "?", and the command goes on
            stream.reconfigure(errors="replace")
    with ending_as_ctrl_c():
        try:
            app()
        except (ValueError, OSError) as error:
            typer.echo(f"tda: {_not_writable(error) or error}", err=True)
            sys.exit(1 if isinstance(error, FloatingPointError) else 2)  # numbers that broke are no wrong use


if __name__ == "__main__":
    main()
