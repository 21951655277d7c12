"""``tda sweep``: measure a matrix over all machines of a Ray cluster."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tda.cli import options as o
from tda.cli.bench import tell_results
from tda.cli.logs import told_on
from tda.config import BenchConfig
from tda.worth import DEFAULT, WorthRule

if TYPE_CHECKING:
    from tda.bench.plan import Plan
    from tda.records import Record
    from tda.sweep.groups import SweepGroup


# long: every option of the command is a parameter
@o.configured("budget", budget="none")
def sweep(
    config: BenchConfig,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Results folder that all machines can reach; a rerun completes it."),
    ] = Path("results"),
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Your Ray cluster: auto or HOST:6379; else this machine."),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Cores, and threads, of a group that is not timed on the CPU; else 1.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Host memory of a group, which a machine must have; a worker ends above it."),
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=AMOUNT]", help="A resource of Ray that a group needs, as accelerator_type:H100."),
    ] = None,
    past: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Results whose times help to plan; repeatable.")
    ] = None,
    case_timeout: o.CaseTimeout = o.CASE_TIMEOUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print groups, bytes and hours only.")] = False,
    max_loss: o.MaxLoss = DEFAULT.max_loss_nats,
    min_speedup: o.MinSpeedup = DEFAULT.min_speedup,
    wide: o.Wide = False,
    as_json: o.AsJson = False,
) -> None:
    """Measure a matrix over many machines or GPUs, on Ray; write DIR/results.jsonl and DIR/index.html.

    A group is one model with all of its cases: it stays on one machine, so that its ratios hold. On the CPU, a timed
    group has its machine to itself; on GPUs, each has one. What a lost machine had recorded is kept, and another one
    goes on. Ctrl-C keeps what is done; the same command goes on. Needs the extra cluster.
    """
    from tda.bench.budget import parse_bytes, parse_seconds
    from tda.bench.planning import plan_of
    from tda.records import merge
    from tda.results import check_folder
    from tda.sweep.groups import groups_of
    from tda.sweep.order import handed_over

    if config.device is not None and config.device.partition(":")[2]:
        raise ValueError(f"Ray chooses the GPU of a group: give --device cuda; got {config.device!r}")
    rule = WorthRule(max_loss, min_speedup)
    resources = dict(map(_resource, resource or ()))
    memory_bytes = None if memory is None else parse_bytes(memory)
    silence_s = parse_seconds(case_timeout, "the time of a case")
    plan = plan_of(config)
    groups = handed_over(groups_of(plan, _past(out, past or ())))
    if dry_run:
        _tell(groups, as_json=as_json)
        return
    check_folder(out)
    asked = {"--ray-address": ray_address, "--cpus": cpus, "--memory": memory}
    words = ["tda", "sweep", "--out", str(out), "--case-timeout", case_timeout]
    words += [word for flag, value in asked.items() if value is not None for word in (flag, str(value))]
    words += [word for name in resource or () for word in ("--resource", name)]
    command = f"{shlex.join(words)} {config.model_copy(update={'budget': None}).arguments()}"
    try:
        records = _run(plan, groups, out, command, ray_address, cpus, memory_bytes, resources, silence_s)
    except KeyboardInterrupt:
        o.tell_interrupted(out)
        raise
    machines: dict[str, list[Record]] = {}
    for record in records:
        machines.setdefault(record.machine.fingerprint, []).append(record)
    merged = [merge(own) for own in machines.values()]
    tell_results(merged, out, cases=plan.documents > 0, as_json=as_json, wide=wide, rule=rule)


def _run(
    plan: "Plan",
    groups: Sequence["SweepGroup"],
    out: Path,
    command: str,
    address: str | None,
    cpus: int | None,
    memory_bytes: int | None,
    resources: dict[str, float],
    silence_s: float | None,
) -> list["Record"]:
    from rich.console import Console

    from tda import device as facts
    from tda.bench.worker_limits import Limits
    from tda.sweep.cluster import connected, fitting, needs_of
    from tda.sweep.driver import Sweep
    from tda.sweep.view import View

    own_threads = os.environ.get("OMP_NUM_THREADS")
    out.mkdir(parents=True, exist_ok=True)
    with connected(address) as cluster:
        needs, limits = {}, {}
        for group in groups:
            needed = group.memory_bytes if memory_bytes is None else memory_bytes
            asked = needs_of(group.timed, plan.device, needed, cpus, resources, cluster.nodes())
            needs[group.name] = asked if memory_bytes is not None else fitting(asked, cluster.nodes())
            threads = own_threads if group.timed or own_threads else str(int(asked.cpus))
            limits[group.name] = Limits(
                silence_s, memory_bytes, environment={"OMP_NUM_THREADS": threads}, folder=Path.cwd()
            )
        cluster.check(needs)
        cluster.check_shared(out, _needed(plan), facts.commit(), list(needs.values()))
        count = len(cluster.nodes())
        links = [] if cluster.is_local else [f"Ray at {cluster.address}: {count} machine{'s' * (count != 1)}"]
        links += [f"Ray's dashboard: {cluster.dashboard}"] if cluster.dashboard else []
        console = Console(stderr=True)
        with told_on(console):
            return Sweep(groups, out, cluster, needs, limits, View(console, groups, links), command).run()


def _needed(plan: "Plan") -> list[Path]:
    """Files and folders that every machine must see."""
    named = [plan.text, plan.calibration_text, *(ask.data for ask in plan.tasks)]
    models = [Path(subject.model) for subject in plan.subjects if Path(subject.model).is_dir()]
    return models + [path for path in named if path is not None]


def _past(out: Path, folders: Sequence[Path]) -> list["Record"]:
    """Records of earlier runs: of those that are named, and of the folder itself."""
    from tda.results import load, results_path

    own = [out] if results_path(out).is_file() else []
    return [record for folder in (*folders, *own) for record in load(folder).records]


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.rpartition("=") if "=" in text else (text, "", "0.001")
    try:
        value = float(amount)
    except ValueError:
        value = -1.0
    if not name or not 0 < value < 1e9:
        raise ValueError(f"a resource is NAME or NAME=AMOUNT, more than zero; got {text!r}")
    if name in ("CPU", "GPU", "memory", "object_store_memory", "tda_host"):
        raise ValueError(f"a group takes {name} as it needs it, see --cpus, --memory and --device; got {text!r}")
    return name, value


def _tell(groups: Sequence["SweepGroup"], *, as_json: bool) -> None:
    from tda.sweep.groups import bound, plan_rows

    o.print_rows(plan_rows(groups), as_json=as_json, title="groups, in the order in which they are handed to Ray")
    known = [group.hours for group in groups if group.hours is not None]
    if not as_json and known:
        told = [f"{workers} machine{'s' * (workers > 1)} {bound(groups, workers):.3g}" for workers in (1, 4, 16)]
        typer.echo(f"tda: hours of all groups {sum(known):.3g}; at best on {', '.join(told)}", err=True)
    if not as_json and (unknown := [group.name for group in groups if group.hours is None]):
        typer.echo(f"tda: how long these take is not known before: {', '.join(unknown)}", err=True)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(sweep)
