"""What is to be seen of a sweep in a terminal: a line for each group, kept up to date; else a line for each change."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tda.bench.budget import duration
from tda.sweep.groups import SweepGroup

EVERY_S = 60.0
"""Seconds between two lines of all groups where there is no terminal."""
LATELY = 12
"""Groups that wait, and that have ended, which are shown one by one; of others the number is."""


@dataclass
class _ProgressLine:
    """What is known of one group."""

    cells: int
    state: str = ""
    host: str = ""
    stage: str = ""
    total: int = 0
    steps: int = 0
    recorded: int = 0
    began: float | None = None
    ended: float | None = None


class View:
    """The state of every group.

    Parameters
    ----------
    console : Console
        Where it is shown.
    groups : sequence of SweepGroup
        In the order in which they are handed over.
    links : sequence of str
        Sentences above the groups, such as where Ray's dashboard is.
    """

    def __init__(self, console: Console, groups: Sequence[SweepGroup], links: Sequence[str] = ()) -> None:
        self._console, self._links = console, links
        self._lines = {group.name: _ProgressLine(group.cells) for group in groups}
        self._live: Live | None = None
        self._shown_at = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the groups inside."""
        for link in self._links:
            self._console.print(escape(link))
        if not self._console.is_terminal:
            yield
            return
        live = Live(get_renderable=self.table, console=self._console, refresh_per_second=2, transient=True)
        with live as self._live:
            yield

    # What happens.

    def waits(self, name: str) -> None:
        """A group waits for a machine."""
        self._lines[name].state = "waiting"

    def began(self, name: str, host: str) -> None:
        """A machine has begun with a group."""
        line = self._lines[name]
        line.state, line.host, line.began, line.ended = "running", host, time.monotonic(), None
        self._change(name, f"runs on {host}")

    def stage(self, name: str, stage: str, total: int) -> None:
        """A group begins a stage of so many steps."""
        line = self._lines[name]
        line.stage, line.total, line.steps = stage.removeprefix(f"{name}: "), total, 0
        self._beat()

    def go_on(self, name: str, stage: str, steps: int) -> None:
        """A stage goes on under another name, with so many steps left."""
        line = self._lines[name]
        line.stage, line.total = stage.removeprefix(f"{name}: "), line.steps + steps
        self._beat()

    def advance(self, name: str, steps: int) -> None:
        """So many more steps are done."""
        self._lines[name].steps += steps
        self._beat()

    def recorded(self, name: str, count: int) -> None:
        """So many more records of a group are kept."""
        self._lines[name].recorded += count

    def lost(self, name: str, reason: str) -> None:
        """A group was lost, and waits again."""
        line = self._lines[name]
        line.state, line.host, line.stage = "waiting again", "", reason

    def ended(self, name: str, how: str) -> None:
        """A group has ended."""
        line = self._lines[name]
        line.state, line.stage, line.ended = how, "", time.monotonic()
        took = "" if line.began is None else f", {duration(line.ended - line.began)} on {line.host}"
        self._change(name, f"{how}{took}")

    # How it is shown.

    def _change(self, name: str, told: str) -> None:
        if self._live is None:
            self._console.print(escape(f"{name} {told}; {self._counted()}"))

    def _beat(self) -> None:
        """Without a terminal, say from time to time where the running groups are."""
        if self._live is not None or time.monotonic() - self._shown_at < EVERY_S:
            return
        self._shown_at = time.monotonic()
        for name, line in self._lines.items():
            if line.state == "running":
                self._console.print(escape(f"{name} on {line.host}: {line.stage}{_steps(line)}"))

    def _counted(self) -> str:
        ended = sum(line.ended is not None for line in self._lines.values())
        return f"{ended} of {len(self._lines)} groups have ended"

    def table(self) -> Table:
        """How each group gets on."""
        table = Table(title=self._counted(), title_justify="left", box=None, pad_edge=False)
        for heading in ("group", "state", "machine", "stage", "records", "time"):
            table.add_column(heading, justify="right" if heading in ("records", "time") else "left")
        running = {name: line for name, line in self._lines.items() if line.state == "running"}
        others = {name: line for name, line in self._lines.items() if name not in running}
        shown = {**running, **dict(list(others.items())[: max(LATELY - len(running), 3)])}
        for name, line in shown.items():
            until = line.ended or time.monotonic()
            took = "" if line.began is None else duration(until - line.began)
            stage = f"{line.stage}{_steps(line)}"
            cells = (name, line.state or "not yet", line.host, stage, str(line.recorded), took)
            table.add_row(*map(escape, cells))
        if len(shown) < len(self._lines):
            table.add_row(f"… and {len(self._lines) - len(shown)} more")
        return table


def _steps(line: _ProgressLine) -> str:
    return f", {line.steps} of {line.total}" if line.total else ""
