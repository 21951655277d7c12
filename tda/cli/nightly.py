"""``tda nightly``: measure the new commits of a repository, judge them, and raise alarms."""

import math
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tda.cli import options as o
from tda.names import needs_extra

if TYPE_CHECKING:
    from tda.history.nights import History

DECISIONS, OUT = Path("benchmarks/decisions.toml"), Path("reports/out")
"""Where a checkout has them."""


# long: its parameters are explained
def nightly(
    history: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|branch:NAME",
            help="Folder of the history, or a branch of its own; else results/history in the checkout.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help=f"What is measured, and the time cap; else {o.NIGHTLY} in the checkout."),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help=f"Accepted and acknowledged alarms; else {DECISIONS} in the checkout."),
    ] = None,
    repo: o.Repo = Path("."),
    commit: Annotated[str, typer.Option(help="Measure up to this commit.")] = "HEAD",
    since: Annotated[str | None, typer.Option(help="First nightly run: the baseline commit to begin with.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where nightly.md goes; else reports/out in the checkout.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help=f"Where builds are kept; else {o.WORK} in the checkout.")
    ] = None,
    init: Annotated[bool, typer.Option("--init", help="Only write settings to begin with into the checkout.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that a nightly run has finished recently.")
    ] = False,
    max_age_hours: Annotated[float, typer.Option(help="With --check: how old the last nightly run may be.")] = 36.0,
) -> None:
    """Measure new commits as installed builds in alternating processes; exit 1 if it raises an alarm or measures none.

    The same command continues a run that was interrupted or killed.
    """
    from tda.history.branch import open_history
    from tda.history.repository import Repository

    repository = Repository(repo)
    if init:
        _begin(repository.folder)
        return
    if find_spec("ruptures") is None:
        raise ValueError(needs_extra("tda nightly needs", "nightly"))
    from tda.nightly.config import load_config
    from tda.nightly.night import NightRun
    from tda.nightly.publish import write_account

    checkout = repository.folder
    place = open_history(repository, history)
    if check:
        _check(place.history, max_age_hours)
        return
    settings = load_config(config or checkout / o.NIGHTLY)
    run = NightRun(repository, place.history, settings, work or checkout / o.WORK, commit, since)
    try:
        night = run.run()
    except KeyboardInterrupt:
        typer.echo("tda: interrupted; what is measured is kept. The same command goes on.", err=True)
        raise
    told = write_account(
        place.history, decisions or checkout / DECISIONS, out or checkout / OUT, settings.smallest_change
    )
    place.save(f"Night {night.id if night else 'without new commits'}")
    for problem in told.problems:
        typer.echo(f"tda: {problem}", err=True)
    typer.echo(str(told.path))
    if night is not None and not night.measured:
        typer.echo(f"tda: this run measured none of its {len(night.commits)} commits; the report says why", err=True)
    if night is not None and (told.raised or not night.measured):
        raise typer.Exit(1)


def _begin(checkout: Path) -> None:
    from tda.nightly.config import write_settings

    paths = checkout / o.NIGHTLY, checkout / o.CASES
    write_settings(*paths)
    typer.echo("\n".join(map(str, paths)))
    typer.echo("tda: results/, reports/out/, profiles/out/ and .cache/ are for .gitignore", err=True)


def _check(history: "History", hours: float) -> None:
    nights, problems = history.nights()
    for problem in problems:
        o.warn(problem)
    ended = [night for night in nights if night.finished]
    if not ended:
        typer.echo("tda: no night has ended on this history", err=True)
        raise typer.Exit(1)
    ages = [_age(night.finished or "") for night in ended]
    typer.echo(f"the last night ended {ages[-1]:.1f} hours ago")
    if min(ages) < 0:
        typer.echo("tda: a night ended in the future: a clock was wrong, so this tells nothing of it", err=True)
        raise typer.Exit(1)
    if not ended[-1].measured:
        typer.echo("tda: it measured none of its commits", err=True)
        raise typer.Exit(1)
    if not ages[-1] <= hours:
        typer.echo(f"tda: no night ended within {hours:g} hours", err=True)
        raise typer.Exit(1)


def _age(moment: str) -> float:
    """Hours since a moment, in UTC where it tells no zone; infinite where it is no moment."""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return math.inf
    return (datetime.now(UTC) - (then if then.tzinfo else then.replace(tzinfo=UTC))) / timedelta(hours=1)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(nightly)
