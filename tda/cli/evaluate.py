"""``tda eval``: the quality of methods."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from tda.cli import options as o
from tda.names import Protocol


def evaluate(
    model: o.OneModel,
    method: o.Methods = None,
    sparsity: o.Sparsities = None,
    prompt_tokens: o.PromptTokens = 256,
    new_tokens: o.NewTokens = 128,
    documents: o.Documents = 48,
    calibration_documents: o.CalibrationDocuments = 64,
    text: o.Text = None,
    calibration_text: o.CalibrationText = None,
    thresholds: o.ThresholdsFile = None,
    protocol: Annotated[Protocol, typer.Option(help="Which tokens are computed sparsely: see `tda.score`.")] = "decode",
    seed: o.Seed = None,
    dtype: o.DtypeName = "float32",
    device: o.Device = "cpu",
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Perplexity, KL to dense and agreement with dense, on documents cut into prompt and continuation."""
    from rich.console import Console

    from tda import kernels
    from tda.bench.plan import Plan, Subject, given
    from tda.bench.prepare import Texts, prepare
    from tda.models import needs_training
    from tda.quality import Evaluator
    from tda.thresholds import Thresholds

    needs_training(model, "quality")
    sizes = given(prompt_tokens=prompt_tokens, new_tokens=new_tokens, dtype=dtype)
    wanted = given(
        methods=method,
        sparsities=sparsity,
        documents=documents,
        calibration_documents=calibration_documents,
        device=device,
        seed=seed,
    )
    plan = replace(Plan((Subject(model, speed=False, **sizes),)), **wanted)
    artifact = None if thresholds is None else Thresholds.load(thresholds)
    o.warn(kernels.notice(device))
    console = Console(stderr=True)
    with console.status("calibrating and scoring"):
        prepared = prepare(
            plan,
            plan.subjects[0],
            Texts(text, calibration_text),
            artifact=artifact,
            say=console.print,
            trust_remote_code=trust_remote_code,
        )
        for sentence in prepared.left_out:
            console.print(f"[yellow]{sentence}; left out")
        evaluator = Evaluator(prepared.model, prepared.scored, protocol=protocol)
        results = [(built, evaluator.evaluate(built, made)) for built, made in prepared.methods]
    dense = results[0][1]
    rows: list[dict[str, Any]] = [
        {"method": built.name, "sparsity": built.sparsity, **result.summary(dense)} for built, result in results
    ]
    o.print_rows(rows, as_json=as_json, title=f"{model}: {plan.documents} documents, protocol {protocol}")
    for built, result in results:
        told = f"{built.name} {built.sparsity:.3g}" if built.sparsity else built.name
        for name, found in result.measurements().items():
            o.warn(found.missing and f"{told} has no {name}: {found.missing}")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("eval")(evaluate)
