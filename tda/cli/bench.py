"""``tda bench``: measure a matrix of model × method × sparsity."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o
from tda.cli.report import write_report
from tda.config import BenchConfig


@o.configured()
def bench(
    ctx: typer.Context,
    config: BenchConfig,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results folder; a rerun completes it.")] = Path("results"),
    as_json: o.AsJson = False,
) -> None:
    """Measure latency, memory and quality of methods, interleaved; write DIR/results.jsonl and DIR/index.html.

    Trained models get a quality and a speed, shapes (random weights) a speed only. Where the budget is short, first
    rounds beyond 5 and documents beyond 16 are dropped, then controls, then sparsities away from the middle, then new
    tokens of shapes; the page lists what was. Ctrl-C and SIGTERM keep what is done; the same
    command goes on.
    """
    from tda.bench.budget import NO_END, REPORT_STARTS, Deadline
    from tda.bench.plan import plan_of
    from tda.bench.run import Bench
    from tda.reporting import doubts, summary_rows, verdicts
    from tda.results import load

    plan = plan_of(config)
    deadline = NO_END
    if plan.budget_s is not None:
        page_s = min((time.monotonic() - ctx.obj) * REPORT_STARTS, plan.budget_s / 4)
        deadline = Deadline(ctx.obj + plan.budget_s - page_s)
    command = f"tda bench --out {shlex.quote(str(out))} {config.model_copy(update={'budget': 'none'}).arguments()}"
    run = Bench(plan, out, deadline=deadline, command=command)
    try:
        records = run.run()
    except KeyboardInterrupt:
        typer.echo(f"tda: interrupted; {out / 'results.jsonl'} holds what is done. The same command goes on.", err=True)
        raise
    left_out = load(out).left_out
    if records:
        o.print_rows(summary_rows(records), as_json=as_json)
        write_report([out], out)
    for doubt in doubts(records):
        typer.echo(f"tda: {doubt}", err=True)
    for item in left_out:
        typer.echo(f"tda: left out: {item}", err=True)
    for command in dict.fromkeys(item.command for item in left_out):
        typer.echo(f"tda: this measures what was left out: {command}", err=True)
    if not records:
        typer.echo("tda: the budget left no time to measure anything here and now; give a longer one", err=True)
        raise typer.Exit(1)
    failed = [record for record in records if record.status != "ok" or record.reason]
    for record in failed:
        typer.echo(f"tda: {record.case}: {record.status}: {record.reason}", err=True)
    for sentence in verdicts(records):
        typer.echo(f"tda: {sentence}", err=True)
    if failed:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(bench)
