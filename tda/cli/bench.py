"""``tda bench``: measure a matrix of model × method × sparsity."""

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o
from tda.cli.report import write_report
from tda.names import Execution, Preset


def bench(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results folder; a rerun completes it.")] = Path("results"),
    preset: Annotated[Preset, typer.Option(help="The matrix; other options change it.")] = "default",
    model: o.Models = None,
    method: o.Methods = None,
    sparsity: o.Sparsities = None,
    prompt_tokens: o.PromptTokens = None,
    new_tokens: o.NewTokens = None,
    batch: Annotated[int | None, typer.Option(help="Requests served together.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Timed rounds; under 5 there is no interval.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="All of it ends by then: 50s, 5m, none. Else the preset's (default: 5m)."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION", help="A case gets no more rounds when its speed-up is known within this: 2%, none."
        ),
    ] = None,
    documents: o.Documents = None,
    calibration_documents: o.CalibrationDocuments = None,
    text: o.Text = None,
    calibration_text: o.CalibrationText = None,
    dtype: o.DtypeOrNone = None,
    device: o.DeviceOrNone = None,
    execution: Annotated[Execution | None, typer.Option(help="Execution; else auto.")] = None,
    seed: o.Seed = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Measure latency, memory and quality of methods, interleaved; write DIR/results.jsonl and DIR/index.html.

    Trained models get a quality and a speed, shapes (random weights) a speed only. Where the budget is short, first
    rounds beyond 5 and documents beyond 16 are dropped, then controls, then sparsities away from the middle, then new
    tokens of shapes; the page lists what was. Ctrl-C and SIGTERM keep what is done; the same
    command goes on.
    """
    from tda.bench.budget import NO_END, REPORT_STARTS, Deadline, parse_fraction, parse_seconds
    from tda.bench.plan import plan_of
    from tda.bench.prepare import Texts
    from tda.bench.run import Bench
    from tda.reporting import doubts, summary_rows
    from tda.results import load_left_out

    plan = plan_of(
        preset,
        model,
        method=method,
        sparsity=sparsity,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        rounds=rounds,
        documents=documents,
        calibration_documents=calibration_documents,
        dtype=dtype,
        device=device,
        execution=execution,
        seed=seed,
        **({} if budget is None else {"budget_s": parse_seconds(budget)}),
        **({} if precision is None else {"precision": parse_fraction(precision)}),
    )
    deadline = NO_END
    if plan.budget_s is not None:
        page_s = min((time.monotonic() - ctx.obj) * REPORT_STARTS, plan.budget_s / 4)
        deadline = Deadline(ctx.obj + plan.budget_s - page_s)
    run = Bench(
        plan,
        out,
        Texts(text, calibration_text),
        trust_remote_code=trust_remote_code,
        deadline=deadline,
        command=_without_budget(sys.argv[1:]),
    )
    try:
        records = run.run()
    except KeyboardInterrupt:
        typer.echo(f"tda: interrupted; {out / 'results.jsonl'} holds what is done. The same command goes on.", err=True)
        raise
    left_out = load_left_out(out)
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
        typer.echo(f"tda: {record.case.method} on {record.case.model}: {record.status}: {record.reason}", err=True)
    if failed:
        raise typer.Exit(1)


def _without_budget(arguments: list[str]) -> str:
    """The command of these arguments, without an end."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--budget" and not argument.startswith("--budget="):
            kept.append(argument)
        skip = argument == "--budget"
    return shlex.join(["tda", *kept, "--budget", "none"])


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(bench)
