"""``tda eval``: the quality of methods."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from tda.cli import options as o
from tda.config import BenchConfig
from tda.names import Protocol


@o.configured(
    *("preset", "models", "batch", "rounds", "budget", "precision", "execution"),
    prompt_tokens=256,
    new_tokens=128,
    documents=48,
    calibration_documents=64,
)
def evaluate(
    model: o.OneModel,
    config: BenchConfig,
    thresholds: o.ThresholdsFile = None,
    protocol: Annotated[Protocol, typer.Option(help="Which tokens are computed sparsely: see `tda.score`.")] = "decode",
    as_json: o.AsJson = False,
) -> None:
    """Perplexity, KL to dense and agreement with dense, on documents cut into prompt and continuation."""
    from rich.console import Console

    from tda import kernels
    from tda.bench.plan import plan_of
    from tda.bench.prepare import prepare
    from tda.cases import describe
    from tda.models import needs_training
    from tda.quality import Evaluator
    from tda.quality.documents import built_in_uses
    from tda.thresholds import Thresholds

    needs_training(model, "quality")
    plan = plan_of(config.model_copy(update={"models": (model,)}))
    subject = replace(plan.subjects[0], speed=False)
    artifact = None if thresholds is None else Thresholds.load(thresholds)
    o.warn(kernels.notice(plan.device))
    console = Console(stderr=True)
    with console.status("calibrating and scoring"):
        prepared = prepare(plan, subject, artifact=artifact, say=console.print)
        for sentence in prepared.left_out:
            console.print(f"[yellow]{sentence}; left out")
        evaluator = Evaluator(prepared.model, prepared.scored, protocol=protocol)
        results = [(built, evaluator.evaluate(built)) for built, _ in prepared.methods]
    calibrated = plan.calibration_text is None and any(built.needs_fit for built, _ in results)
    o.warn(built_in_uses(model, scored=plan.text is None, calibrated=calibrated and artifact is None))
    dense = results[0][1]
    cases = [plan.case(subject, built) for built, _ in results]
    names = [describe(case, cases, sparsity=False, model=False) for case in cases]
    rows: list[dict[str, Any]] = [
        {"method": name, "sparsity": case.sparsity, **found.summary(dense)}
        for name, case, (_, found) in zip(names, cases, results, strict=True)
    ]
    o.print_rows(rows, as_json=as_json, title=f"{model}: {plan.documents} documents, protocol {protocol}")
    for case, (_, result) in zip(cases, results, strict=True):
        for name, found in result.measurements().items():
            o.warn(found.missing and f"{describe(case, cases, model=False)} has no {name}: {found.missing}")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("eval")(evaluate)
