"""``tda profile``: where the time of a request goes."""

from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o
from tda.config import BenchConfig


@o.configured("preset", "rounds", "budget", "precision", "documents", "text")
def profile(
    config: BenchConfig,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Each case gets a folder in it, replaced if there.")] = Path(
        "results/profile"
    ),
    viewer: Annotated[bool, typer.Option("--viewer", help="Fetch the pages' trace viewer with npm, once.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Record where prefill, selection and decode spend their time: traces, kernel tables and DIR/index.html.

    Dense is always profiled too. Without options: griffin and tda at 0.5 on shape:0.3b.
    """
    from tda.bench.profile import run_profile
    from tda.web.profile import build_profile_report
    from tda.web.profile.groups import gather_profiles, step_rows, verdicts
    from tda.web.profile.viewer import page_writer

    try:
        profiles = run_profile(out, **config.options())
    except KeyboardInterrupt:
        typer.echo(f"tda: interrupted; cases that are whole stay in {out}. The same command begins anew.", err=True)
        raise
    o.print_rows(step_rows(profiles), as_json=as_json)
    typer.echo(f"report: {build_profile_report(out, page_writer(fetch=viewer)).index}", err=True)
    for sentence in verdicts(gather_profiles(out)):
        typer.echo(f"tda: {sentence}", err=True)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(profile)
