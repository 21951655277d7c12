"""``tda bench``: measure a matrix of model × method × sparsity."""

from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o
from tda.cli.report import write_report
from tda.names import Execution, Preset


def bench(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results folder; a rerun completes it.")] = Path("results"),
    preset: Annotated[Preset, typer.Option(help="The matrix; other options change it.")] = "default",
    model: o.Models = None,
    method: o.Methods = None,
    sparsity: o.Sparsities = None,
    prompt_tokens: o.PromptTokens = None,
    new_tokens: o.NewTokens = None,
    batch: Annotated[int | None, typer.Option(help="Requests served together.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Timed rounds; under 5 there is no interval.")] = None,
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

    Trained models get a quality and a speed, shapes (random weights) a speed only. Ctrl-C and SIGTERM keep what is
    done; the same command goes on.
    """
    from tda.bench.plan import plan_of
    from tda.bench.prepare import Texts
    from tda.bench.run import Bench
    from tda.reporting import doubts, summary_rows

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
    )
    try:
        records = Bench(plan, out, Texts(text, calibration_text), trust_remote_code=trust_remote_code).run()
    except KeyboardInterrupt:
        typer.echo(f"tda: interrupted; {out / 'results.jsonl'} holds what is done. The same command goes on.", err=True)
        raise
    o.print_rows(summary_rows(records), as_json=as_json)
    write_report([out], out)
    for doubt in doubts(records):
        typer.echo(f"tda: {doubt}", err=True)
    failed = [record for record in records if record.status != "ok" or record.reason]
    for record in failed:
        typer.echo(f"tda: {record.case.method} on {record.case.model}: {record.status}: {record.reason}", err=True)
    if failed:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(bench)
