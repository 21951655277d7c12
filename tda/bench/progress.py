"""How far a bench is: a bar in a terminal, else a line from time to time; both say how much time is left."""

import threading
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from tda.bench.budget import Deadline, duration

EVERY_S = 15.0
"""Seconds between two lines where there is no terminal."""


class Steps(Protocol):
    """Who is told of every step of a bench."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of so many steps; 0 where that is not known."""

    def go_on(self, name: str, steps: int) -> None:
        """Go on with the stage under another name; so many steps of it are left."""

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""


class Progress:
    """Steps of the stage in progress.

    Parameters
    ----------
    console : Console
        Where it is shown; nothing is where it is quiet.
    deadline : Deadline
        When the bench is to end.
    """

    def __init__(self, console: Console, deadline: Deadline) -> None:
        self._console = console
        self._deadline = deadline
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, left="")
        self._stage, self._total, self._done, self._started = "", 0, 0, time.monotonic()
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        self._bar.start()
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beat.join()
        self._bar.stop()

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of so many steps; 0 where that is not known."""
        self._stage, self._total, self._done, self._started = name, total, 0, time.monotonic()
        self._show()

    def go_on(self, name: str, steps: int) -> None:
        """Go on with the stage under another name; so many steps of it are left."""
        self._stage, self._total = name, self._done + steps
        self._show()

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self._done += steps
        self._show()

    @property
    def left(self) -> str:
        """The time left: of the budget, else of the stage, at the pace of its steps so far."""
        if self._deadline.is_set:
            return f"at most {duration(self._deadline.left)} left"
        if not self._done or not self._total:
            return "time left not known yet"
        pace = (time.monotonic() - self._started) / self._done
        return f"about {duration(pace * (self._total - self._done))} left of this stage"

    def _show(self) -> None:
        self._bar.update(
            self._task, description=escape(self._stage), completed=self._done, total=self._total or None, left=self.left
        )

    def _tick(self) -> None:
        """Show the time as it passes, also within a long step."""
        while not self._ended.wait(1.0 if self._console.is_terminal else EVERY_S):
            if self._console.is_terminal:
                self._show()
            else:
                steps = f", {self._done} of {self._total}" if self._total else ""
                self._console.print(escape(f"{self._stage}{steps}; {self.left}"))
