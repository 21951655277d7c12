"""How a command shows what the package logs: on stderr, and nowhere else."""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {logging.WARNING: "[yellow]", logging.ERROR: "[red]"}


def tell(record: logging.LogRecord) -> None:
    """Print a line with the time of day."""
    typer.echo(f"{datetime.fromtimestamp(record.created, UTC):%H:%M:%S} {record.getMessage()}", err=True)


def tell_on(console: "Console", record: logging.LogRecord) -> None:
    """Print a line in the colour of its level, where a bar or a table may be shown too."""
    from rich.markup import escape

    console.print(f"{STYLES.get(record.levelno, '')}{escape(record.getMessage())}")
