"""How a command shows what the package logs: on stderr, and nowhere else."""

import logging
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from tda.logs import handled

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {logging.WARNING: "[yellow]", logging.ERROR: "[red]"}


def tell(record: logging.LogRecord) -> None:
    """Print a line with the time of day."""
    typer.echo(f"{datetime.fromtimestamp(record.created, UTC):%H:%M:%S} {record.getMessage()}", err=True)


def told_on(console: "Console") -> AbstractContextManager[None]:
    """Inside, lines come in the colour of their level on a console where a bar or a table may be shown too."""
    from rich.markup import escape

    return handled("tda", lambda record: console.print(STYLES.get(record.levelno, "") + escape(record.getMessage())))
