"""``tda dashboard``: the pages of a history, published and served to this machine alone."""

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o


def dashboard(
    repo: o.Repo = Path("."),
    history: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The history; else results/history in the checkout.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where pages go; else reports/out/html in the checkout.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    publish: Annotated[bool, typer.Option("--publish/--no-publish", help="Or serve what was published last.")] = True,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Or write the pages only.")] = True,
) -> None:
    """Publish a history as pages and serve them on loopback.

    A checkout with an `asv.conf.json` gets asv's own pages too (extra `nightly`), in the folders that it names.
    """
    from tda.history.branch import HISTORY
    from tda.web.publish import ASV, HTML, html_of_asv, publish_with_asv
    from tda.web.publish import publish as publish_alone
    from tda.web.serve import server

    asv = repo / ASV
    try:
        if asv.is_file() and history is None and out is None:
            html = publish_with_asv(asv) if publish else html_of_asv(asv)
        else:
            html = out or repo / HTML
            if publish:
                publish_alone(repo, history or repo / HISTORY, html, o.warn)
    except subprocess.CalledProcessError as error:
        raise typer.Exit(error.returncode) from None
    if not serve:
        typer.echo(str(html / "index.html"))
        return
    with server(html, port) as served:
        typer.echo(f"Dashboard: http://127.0.0.1:{served.server_port}/ (Ctrl-C stops)")
        served.serve_forever()


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(dashboard)
