"""``tda doctor``: what this machine is fit to measure."""

import typer

from tda.cli import options as o


def doctor(device: o.DeviceName = "cpu", as_json: o.AsJson = False) -> None:
    """Say what this machine is fit to measure: its limits, other processes, clocks, threads, noise between processes.

    Ends within two minutes: the noise is learnt from eight fresh processes that measure the same, fewer where they
    are slow.
    """
    from tda.doctor import check_up, rows, verdict

    found = check_up(device)
    if as_json:
        o.print_json({**found.model_dump(mode="json"), "verdict": verdict(found)})
        return
    o.print_rows(rows(found), as_json=False)
    for sentence in verdict(found):
        typer.echo(sentence)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(doctor)
