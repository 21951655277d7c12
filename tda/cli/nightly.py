"""``tda nightly``: measure the new commits of a repository, judge them, and raise alarms."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tda.cli import options as o

if TYPE_CHECKING:
    from tda.history.nights import History

DECISIONS = Path("benchmarks/decisions.toml")


def nightly(
    history: Annotated[
        str, typer.Option(metavar="DIR|branch:NAME", help="Folder of the history, or a branch of its own.")
    ] = "results/history",
    config: Annotated[Path, typer.Option(metavar="TOML", help="What is measured, and the time cap.")] = o.NIGHTLY,
    decisions: Annotated[Path, typer.Option(metavar="TOML", help="Accepted and acknowledged alarms.")] = DECISIONS,
    repo: o.Repo = Path("."),
    commit: Annotated[str, typer.Option(help="Measure up to this commit.")] = "HEAD",
    since: Annotated[str | None, typer.Option(help="First nightly run: the baseline commit to begin with.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where nightly.md goes.")] = Path("reports/out"),
    work: o.Work = o.WORK,
    init: Annotated[bool, typer.Option("--init", help="Only write settings to begin with into the checkout.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that a nightly run has finished recently.")
    ] = False,
    max_age_hours: Annotated[float, typer.Option(help="With --check: how old the last nightly run may be.")] = 36.0,
) -> None:
    """Measure new commits as installed builds in alternating processes; exit 1 if it raises an alarm.

    The same command continues a run that was interrupted or killed.
    """
    from tda.history.branch import open_history
    from tda.history.repository import Repository
    from tda.nightly.config import load_config
    from tda.nightly.night import NightRun
    from tda.nightly.publish import write_account

    repository = Repository(repo)
    if init:
        _begin(repository.folder)
        return
    place = open_history(repository, history)
    if check:
        _check(place.history, max_age_hours)
        return
    settings = load_config(config)
    run = NightRun(repository, place.history, settings, work, commit, since)
    try:
        night = run.run()
    except KeyboardInterrupt:
        typer.echo("tda: interrupted; what is measured is kept. The same command goes on.", err=True)
        raise
    told = write_account(place.history, decisions, out, settings.smallest_change)
    place.save(f"Night {night.id if night else 'without new commits'}")
    for problem in told.problems:
        typer.echo(f"tda: {problem}", err=True)
    typer.echo(str(told.path))
    if night is not None and told.raised:
        raise typer.Exit(1)


def _begin(checkout: Path) -> None:
    from tda.nightly.config import write_settings

    paths = checkout / o.NIGHTLY, checkout / o.CASES
    write_settings(*paths)
    typer.echo("\n".join(map(str, paths)))


def _check(history: "History", hours: float) -> None:
    nights, problems = history.nights()
    for problem in problems:
        o.warn(problem)
    ages = [_age(night.finished) for night in nights if night.finished]
    if not ages:
        typer.echo("tda: no night has ended on this history", err=True)
        raise typer.Exit(1)
    typer.echo(f"the last night ended {ages[-1]:.1f} hours ago")
    if min(ages) < 0:
        typer.echo("tda: a night ended in the future: a clock was wrong, so this tells nothing of it", err=True)
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
