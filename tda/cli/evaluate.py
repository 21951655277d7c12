"""``tda eval``: the quality of methods."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tda.cli import options as o
from tda.cli.logs import told_on
from tda.cli.slices import BASES, AskedOver, sliced_rows
from tda.config import BenchConfig
from tda.names import Over

if TYPE_CHECKING:
    from tda.thresholds import Thresholds

DOCUMENTS = 48
"""Documents scored where no number is asked."""
TASKS = Path("results/tasks")


@o.configured(
    *("preset", "models", "batch", "rounds", "budget", "precision", "execution"),
    prompt_tokens=256,
    new_tokens=128,
    calibration_documents=64,
)
def evaluate(
    ctx: typer.Context,
    model: o.OneModel,
    config: BenchConfig,
    thresholds: o.ThresholdsFile = None,
    over: AskedOver = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results of tasks; a rerun completes it.")] = TASKS,
    as_json: o.AsJson = False,
) -> None:
    """Perplexity, KL to dense and agreement with dense, on documents cut into prompt and continuation.

    With --over: the loss of each method over dense in slices, each with its interval over documents.

    With --task: scores of tasks of lm-eval instead, the decode latency of each method beside them, as `tda bench` keeps
    them in DIR/results.jsonl and DIR/index.html. Every answer is kept as it comes; the same command goes on.
    """
    from tda.models import needs_training
    from tda.thresholds import Thresholds

    needs_training(model, "quality")
    artifact = None if thresholds is None else Thresholds.load(thresholds)
    config = config.model_copy(update={"models": (model,)})
    if not config.tasks:
        evaluate_documents(config, artifact, over, as_json=as_json)
    elif over is not None:
        raise ValueError("--over is of documents, and --task scores tasks; ask for one of them")
    else:
        evaluate_tasks(config, artifact, out, since=ctx.obj, as_json=as_json)


def evaluate_documents(config: BenchConfig, artifact: "Thresholds | None", over: Over | None, *, as_json: bool) -> None:
    """Score one model's methods on documents, and print a table."""
    from rich.console import Console
    from rich.markup import escape

    from tda import kernels
    from tda.bench.planning import plan_of
    from tda.bench.prepare import prepare
    from tda.cases import describe
    from tda.quality import Evaluator
    from tda.quality.documents import built_in_uses

    plan = plan_of(config.model_copy(update={"documents": config.documents or DOCUMENTS}))
    plan, protocol = replace(plan, recall=over == "kind"), config.protocol or "decode"
    subject = replace(plan.subjects[0], speed=False)
    o.warn(kernels.notice(plan.device))
    console = Console(stderr=True)
    with console.status("calibrating and scoring"), told_on(console):
        prepared = prepare(plan, subject, artifact=artifact)
        for sentence in prepared.left_out:
            console.print(f"[yellow]{escape(sentence)}; left out")
        methods = [built for built, _ in prepared.methods]
        cases = [plan.case(subject, built) for built in methods]
        names = [describe(case, cases, sparsity=False, model=False) for case in cases]
        if over is None:
            evaluator = Evaluator(prepared.model, prepared.scored, protocol=protocol)
            results = [evaluator.evaluate(built) for built in methods]
            rows: list[dict[str, Any]] = [
                {"method": name, "sparsity": case.sparsity, **found.summary(results[0])}
                for name, case, found in zip(names, cases, results, strict=True)
            ]
        else:
            results = []
            rows = sliced_rows(over, prepared, names, protocol, as_json=as_json)
    calibrated = plan.calibration_text is None and any(built.needs_fit for built in methods)
    o.warn(built_in_uses(subject.model, scored=plan.text is None, calibrated=calibrated and artifact is None))
    conditions = [f"protocol {protocol}", BASES[over] if over else f"{plan.documents} documents"]
    o.print_rows(rows, as_json=as_json, title=f"{subject.model}: {', '.join(conditions)}")
    for case, result in zip(cases, results, strict=False):
        for name, measurement in result.measurements().items():
            o.warn(measurement.missing and f"{describe(case, cases, model=False)} has no {name}: {measurement.missing}")


def evaluate_tasks(
    config: BenchConfig, artifact: "Thresholds | None", out: Path, *, since: float, as_json: bool
) -> None:
    """Score one model's methods on tasks and time them, as a bench does."""
    from tda.bench.planning import plan_of
    from tda.bench.prepare import fitted_with
    from tda.cli.bench import measure, tell_plan, tell_results

    plan = plan_of(config)
    plan = replace(plan, precision=None, most_rounds=plan.rounds)
    if artifact is not None:
        plan = replace(plan, methods=tuple(fitted_with(artifact, list(plan.build()))))
    tell_plan(plan, out, config, as_json=False)
    command = f"tda eval --out {shlex.quote(str(out))} {config.arguments()}"
    records = measure(plan, out, command, limits=o.limits(o.CASE_TIMEOUT, None), since=since)
    tell_results([records], out, cases=plan.documents > 0, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("eval")(evaluate)
