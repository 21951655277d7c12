"""``tda profile``: where the time of a request goes."""

from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o


def profile(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Each case gets a folder in it, replaced if there.")] = Path(
        "results/profile"
    ),
    model: o.Models = None,
    method: o.Methods = None,
    sparsity: o.Sparsities = None,
    prompt_tokens: o.PromptTokens = None,
    new_tokens: o.NewTokens = None,
    batch: o.Batch = None,
    dtype: o.DtypeOrNone = None,
    device: o.DeviceOrNone = None,
    execution: o.ExecutionOrNone = None,
    seed: o.Seed = None,
    viewer: Annotated[bool, typer.Option("--viewer", help="Fetch the pages' trace viewer with npm, once.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Record where prefill, selection and decode spend their time: traces, kernel tables and DIR/index.html.

    Dense is always profiled too. Without options: griffin and tda at 0.5 on ref:swiglu.
    """
    from tda.bench.profile import run_profile
    from tda.reporting.profiles import build_profile_report
    from tda.reporting.profiles.groups import step_rows
    from tda.reporting.viewer import page_writer

    try:
        profiles = run_profile(
            out,
            model=model or (),
            method=method or (),
            sparsity=sparsity or (),
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batch=batch,
            dtype=dtype,
            device=device,
            execution=execution,
            seed=seed,
            trust_remote_code=trust_remote_code,
            say=o.say,
        )
    except KeyboardInterrupt:
        typer.echo(f"tda: interrupted; cases that are whole stay in {out}. The same command begins anew.", err=True)
        raise
    o.print_rows(step_rows(profiles), as_json=as_json)
    typer.echo(f"report: {build_profile_report(out, page_writer(o.say, fetch=viewer)).index}", err=True)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(profile)
