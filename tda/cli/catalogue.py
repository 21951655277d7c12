"""``tda models`` and ``tda methods``: what is known by name."""

import typer

from tda.cli.options import AsJson, print_rows


def models(as_json: AsJson = False) -> None:
    """List the models that need no download, with sizes and sources."""
    from tda.models import describe_models

    print_rows(describe_models(), as_json=as_json)


def methods(as_json: AsJson = False) -> None:
    """List the methods, what they choose from and how they run."""
    from tda.methods import METHODS, option_names

    rows = []
    for name, kind in METHODS.items():
        method = kind()
        rows.append(
            {
                "name": name,
                "chosen": {"model": "once", "prompt": "per prompt", "token": "per token"}[method.scope],
                "needs_thresholds": "yes" if method.needs_fit else "no",
                "executions": "dense" if name == "dense" else ", ".join(method.executions),
                "options": ", ".join(option_names(kind)) or None,
                "what": (kind.__doc__ or "").splitlines()[0],
            }
        )
    print_rows(rows, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(models)
    app.command()(methods)
