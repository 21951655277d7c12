"""``tda lm-eval``: lm-evaluation-harness with the model ``tda``."""

import sys
from typing import Any

import typer


def lm_eval(ctx: typer.Context) -> None:
    """Run lm-evaluation-harness, with the model "tda": any task under a method. What follows is for lm-eval."""
    from tda.tasks import check_extra

    check_extra()
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from lm_eval.__main__ import cli_evaluate
    from yaml import YAMLError

    from tda.logs import handled
    from tda.tasks.model import TDALM

    sys.argv = ["lm-eval", *ctx.args]
    try:
        with handled("tda", lambda record: typer.echo(record.getMessage(), err=True)):
            cli_evaluate()
    except (AssertionError, KeyError, TypeError, DatasetsError, TemplateError, YAMLError) as error:
        raise ValueError(f"lm-eval: {type(error).__name__}: {error}") from error
    if TDALM.latest is not None:
        for line in shares(TDALM.latest):
            typer.echo(line)


def shares(lm: Any) -> list[str]:
    """For each task, in words, the share of tokens that were computed sparsely."""
    spec, dial = lm.method.spec, lm.method.sparsity
    method = f"{spec.name} {dial:g}" if "sparsity" in spec.options else spec.name
    lines = []
    for task, (tokens, sparse) in lm.tokens.items():
        what = "generated" if task in lm.tally.generated else "scored"
        protocol = "" if task in lm.tally.generated else f", protocol {lm.protocol}"
        share = f"{100 * sparse / max(tokens, 1):.4g}% of {tokens:,} {what} tokens"
        lines.append(f"{task}: {share} were computed sparsely under {method}{protocol}")
    return lines


def add_to(app: typer.Typer) -> None:
    """Register the command; its words, ``--help`` too, are lm-eval's own."""
    app.command(
        "lm-eval",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    )(lm_eval)
