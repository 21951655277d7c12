"""``tda bench``: measure a matrix of model × method × sparsity."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tda.cli import options as o
from tda.cli.logs import told_on
from tda.cli.report import write_report
from tda.config import BenchConfig
from tda.worth import DEFAULT, WorthRule

if TYPE_CHECKING:
    from tda.bench.plan import Plan
    from tda.bench.worker_limits import Limits
    from tda.records import Record


@o.configured()
def bench(
    ctx: typer.Context,
    config: BenchConfig,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results folder; a rerun completes it.")] = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print models, bytes and hours only.")] = False,
    case_timeout: o.CaseTimeout = o.CASE_TIMEOUT,
    memory: o.MemoryLimit = None,
    max_loss: o.MaxLoss = DEFAULT.max_loss_nats,
    min_speedup: o.MinSpeedup = DEFAULT.min_speedup,
    wide: o.Wide = False,
    as_json: o.AsJson = False,
) -> None:
    """Measure latency, memory and quality of methods, interleaved; write DIR/results.jsonl and DIR/index.html.

    Trained models get a quality and a speed, shapes (random weights) a speed only. Where the budget is short, first
    rounds beyond 5 and documents beyond 16 are dropped, then controls, then sparsities away from the middle, then new
    tokens of shapes; the page lists what was. Tasks have no budget unless one is given. Ctrl-C and SIGTERM keep what is
    done; the same command goes on. Each model is measured in a worker process: one that crashes, hangs or needs more
    memory than there is ends as a record, and the others go on.
    """
    from tda.bench.model_size import size_notice
    from tda.bench.planning import plan_of, without_budget

    rule = WorthRule(max_loss, min_speedup)
    plan = plan_of(config)
    o.warn(size_notice(config, plan))
    if plan.tasks or dry_run:
        tell_plan(plan, out, config, as_json=as_json and dry_run)
    if not dry_run:
        command = f"tda bench --out {shlex.quote(str(out))} {without_budget(config, plan).arguments()}"
        records = measure(plan, out, command, limits=o.limits(case_timeout, memory), since=ctx.obj)
        tell_results([records], out, cases=plan.documents > 0, as_json=as_json, wide=wide, rule=rule)


def tell_plan(plan: "Plan", out: Path, config: BenchConfig, *, as_json: bool) -> None:
    """Print what a plan takes, a row a model, and how it is spread over several machines."""
    from tda.bench.budget import duration
    from tda.bench.outlook import describe_rates, outlook, outlook_rows, rounded

    found = outlook(plan)
    rows = outlook_rows(found)
    count = f"{len(plan.tasks)} task{'s' * (len(plan.tasks) != 1)}"
    title = f"plan: {count}, {plan.rounds} timed rounds; about how long on {describe_rates(plan)}"
    o.print_rows(rows, as_json=as_json, title=title, err=not as_json)
    if as_json:
        return
    for name in dict.fromkeys(name for one in found for name in one.unknown):
        typer.echo(f"tda: how long the task {name} takes is not known before", err=True)
    hours = sum(one.hours or 0.0 for one in found)
    typer.echo(f"tda: about {rounded(hours)} hours in all, downloads aside", err=True)
    if plan.budget_s is not None and hours * 3600 > plan.budget_s:
        typer.echo(f"tda: it ends within {duration(plan.budget_s)}, and leaves out what does not fit", err=True)
    if len(plan.subjects) > 1:
        words = config.model_copy(update={"budget": None}).arguments()
        typer.echo(f"tda: over several machines: tda sweep {words} --ray-address ADDRESS --out {out}", err=True)


def measure(plan: "Plan", out: Path, command: str, *, limits: "Limits", since: float) -> "list[Record]":
    """Run a plan; return what its folder holds then, rounds joined.

    Parameters
    ----------
    plan : Plan
        What is measured.
    out : Path
        Results folder.
    command : str
        What measures that which the budget left out.
    limits : Limits
        What the worker process of each model may take.
    since : float
        When the command began, by the monotonic clock.
    """
    from rich.console import Console

    from tda.bench.budget import NO_END, REPORT_STARTS, Deadline
    from tda.bench.run import Bench
    from tda.results import check_folder

    check_folder(out)
    deadline = NO_END
    if plan.budget_s is not None:
        page_s = min((time.monotonic() - since) * REPORT_STARTS, plan.budget_s / 4)
        deadline = Deadline(since + plan.budget_s - page_s)
    console = Console(stderr=True)
    try:
        with told_on(console):
            return Bench(plan, out, console, deadline, command, limits).run()
    except KeyboardInterrupt:
        o.tell_interrupted(out)
        raise


# long: its parameters are explained
def tell_results(
    machines: "Sequence[Sequence[Record]]",
    out: Path,
    *,
    cases: bool,
    as_json: bool,
    wide: bool = False,
    rule: WorthRule = DEFAULT,
) -> None:
    """Print the tables of a folder's results and the verdicts, write its page, and name what failed or was left out.

    Parameters
    ----------
    machines : sequence of (sequence of Record)
        Records of each machine, the rounds of each case joined.
    out : Path
        The results folder.
    cases : bool
        Whether cases are shown where there are scores of tasks, too.
    as_json : bool
        Whether the tables are printed as JSON.
    wide : bool
        Whether tables have all of their columns, however narrow the terminal is.
    rule : WorthRule
        What counts as worth it.

    Raises
    ------
    typer.Exit
        With exit code 1 if something failed, or there is nothing to tell.
    """
    from tda.results import load
    from tda.web.report import warning_lines

    left_out = load(out).left_out
    records = [record for own in machines for record in own]
    if as_json and records:
        _print_json(machines, rule)
    elif records:
        _print(machines, rule, cases=cases, wide=wide)
    if records:
        write_report([out], out, rule)
    for warning in warning_lines(*machines):
        typer.echo(f"tda: {warning}", err=True)
    for item in left_out:
        typer.echo(f"tda: skipped: {item}", err=True)
    for command in dict.fromkeys(item.command for item in left_out):
        typer.echo(f"tda: to measure what was skipped: {command}", err=True)
    if not records:
        why = (
            "the budget left no time: give a longer one"
            if any("time" in item.reason for item in left_out)
            else "see above"
        )
        typer.echo(f"tda: nothing was measured here and now: {why}", err=True)
        raise typer.Exit(1)
    failed = [record for record in records if record.status != "ok" or record.reason]
    for record in failed:
        typer.echo(f"tda: {record.case}: {record.outcome}: {record.reason}", err=True)
    lost = [(record, name, facts) for record in records for name, facts in record.tasks.items() if facts.failure]
    for record, name, facts in lost:
        typer.echo(f"tda: {record.case}: task {name}: {facts.failure}", err=True)
    if failed or lost:
        raise typer.Exit(1)


def _of_all(
    machines: "Sequence[Sequence[Record]]", rows_of: "Callable[[Sequence[Record]], Sequence[Mapping[str, str | None]]]"
) -> list[Mapping[str, str | None]]:
    """Rows of each machine, numbered where there are several."""
    return [
        {"machine": str(number), **row} if len(machines) > 1 else row
        for number, own in enumerate(machines, start=1)
        for row in rows_of(own)
    ]


def _print_json(machines: "Sequence[Sequence[Record]]", rule: WorthRule) -> None:
    """Print the cases with the verdicts on them, and scores of tasks where there are some."""
    from tda.web.report import judged_rows, task_rows

    rows, scores = _of_all(machines, lambda own: judged_rows(own, rule)), _of_all(machines, task_rows)
    o.print_json({"cases": rows, "tasks": scores} if scores else rows)


def _print(machines: "Sequence[Sequence[Record]]", rule: WorthRule, *, cases: bool, wide: bool) -> None:
    """Print the cases, the scores of tasks (these alone where no documents were scored), and the verdicts."""
    from tda.web.report import explained, summary_rows, task_levels, task_rows, verdict_rows

    scores = _of_all(machines, task_rows)
    if cases or not scores:
        _print_table(_of_all(machines, summary_rows), "Cases", wide=wide)
    if scores:
        levels = " ".join(dict.fromkeys(task_levels(own) for own in machines if task_rows(own)))
        _print_table(scores, f"Tasks. {levels}", wide=wide)
    judged = _of_all(machines, lambda own: verdict_rows(own, rule))
    if judged:
        _print_table(judged, f"Verdicts. {explained(rule)}", wide=wide)


def _print_table(rows: Sequence[Mapping[str, str | None]], title: str, *, wide: bool) -> None:
    from tda.web.report import SHORT_HEADS, SPARE

    o.print_rows(rows, as_json=False, title=title, heads=SHORT_HEADS, spare=SPARE, group="model", wide=wide)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(bench)
