"""Run the contestants in alternating processes: one fresh process each in every block, rows kept as they come."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError

from experiments.peers.child import ChildOrder
from experiments.peers.contestants import PeerSystem
from experiments.peers.job import Device, PeerPlan, PeerReport, PeerRow
from tda.changes.alternate import GIVE_UP
from tda.limits import stream_gb_per_s
from tda.process import ProcessResult, alone, finish
from tda.results import append_lines, read_lines, write_whole
from tda.schedule import mirrored

ROOT = Path(__file__).resolve().parents[2]
PLAN, ROWS, REPORT = "plan.json", "rows.jsonl", "report.json"
TIMEOUT_S = 900.0


def bandwidth(device: Device) -> float:
    """Stream bandwidth of the device at this moment, GB/s; none of its memory stays with us."""
    found = stream_gb_per_s(torch.device(device))
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


# long: its parameters are explained
def run(
    out: Path,
    plan: PeerPlan,
    contestants: Mapping[str, PeerSystem],
    blocks: int,
    *,
    say: Callable[[str], None] = print,
    stream: Callable[[Device], float] = bandwidth,
    timeout_s: float = TIMEOUT_S,
) -> list[PeerRow]:
    """Measure until there are so many whole blocks, and return the rows of all blocks.

    A contestant that failed `GIVE_UP` times is not tried again. A block that a kill cut short stays as it is, since
    what is measured later is no pair of what was measured before; the next run begins a block of its own.

    Parameters
    ----------
    out : Path
        Folder of the run; it goes on from what lies there.
    plan : PeerPlan
        What is measured.
    contestants : mapping
        The plan's contestants by name.
    blocks : int
        Whole blocks asked for.
    say : callable
        Told in a sentence what goes on.
    stream : callable
        Bandwidth of a device, asked before each process.
    timeout_s : float
        After this a process is ended, and its row says so.

    Raises
    ------
    ValueError
        If the folder holds another run, or another process works in it.
    """
    with alone(out):
        _keep(plan, out / PLAN)
        rows = held(out)
        while (number := next_block(rows, plan.contestants, blocks)) is not None:
            for order, name in enumerate(sequence(plan.contestants, number)):
                if failures(rows)[name] >= GIVE_UP:
                    continue
                say(f"block {number}, {order + 1}/{len(plan.contestants)}: {name}")
                before = stream(plan.job.device)
                ended, report = _measure(out, plan, contestants[name], timeout_s)
                row = PeerRow(
                    contestant=name,
                    block=number,
                    order=order,
                    stream_gb_per_s=before,
                    report=report,
                    **ended._asdict(),
                )
                append_lines(out / ROWS, [row.model_dump_json()])
                rows.append(row)
                if row.status != "ok":
                    say(f"{name}: {row.status}: {row.reason}")
    return rows


def held(out: Path) -> list[PeerRow]:
    """Rows that a folder holds; a line that a kill left unfinished is none."""
    path = out / ROWS
    return read_lines(path, PeerRow)[0] if path.is_file() else []


def sequence(contestants: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The order of a block: odd ones go forward, even ones backward, so that a linear drift of the machine cancels."""
    return tuple(mirrored(contestants, number))


def failures(rows: list[PeerRow]) -> Counter[str]:
    """How often each contestant failed."""
    return Counter(row.contestant for row in rows if row.status != "ok")


def next_block(rows: list[PeerRow], contestants: tuple[str, ...], blocks: int) -> int | None:
    """Number of the block to begin; None where enough are whole."""
    given_up = {name for name, count in failures(rows).items() if count >= GIVE_UP}
    ran: dict[int, set[str]] = {}
    for row in rows:
        ran.setdefault(row.block, set()).add(row.contestant)
    whole = sum(names | given_up >= set(contestants) for names in ran.values())
    return None if whole >= blocks or given_up >= set(contestants) else max(ran, default=0) + 1


def _keep(plan: PeerPlan, path: Path) -> None:
    """Write the plan, or see that it is the one that the folder's rows belong to."""
    if not path.is_file():
        write_whole(path, plan.model_dump_json(indent=1))
        return
    there = PeerPlan.model_validate_json(path.read_bytes())
    if there != plan:
        differing = [name for name in PeerPlan.model_fields if getattr(there, name) != getattr(plan, name)]
        raise ValueError(f"{path.parent} holds a run of another {', '.join(differing)}; give another folder")


def _measure(
    out: Path, plan: PeerPlan, contestant: PeerSystem, timeout_s: float
) -> tuple[ProcessResult, PeerReport | None]:
    """Make the file that a contestant needs, if it is not there, and measure it in a process of its own."""
    file = None if contestant.file is None else out.resolve() / contestant.file.name
    threads = str(plan.job.threads)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": threads,
        "TORCHINDUCTOR_CACHE_DIR": str(out.resolve() / "inductor"),
        **contestant.environment,
    }

    def child(order: ChildOrder) -> ProcessResult:
        command = [sys.executable, "-m", "experiments.peers.child", order.model_dump_json()]
        return finish(command, out, environment, timeout_s)

    if contestant.file is not None and file is not None and not file.exists():
        for left in out.glob(f".{file.name}.*"):  # of a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        made = child(
            ChildOrder(call=contestant.file.call, job=plan.job, options=dict(contestant.file.options), file=file)
        )
        if made.status != "ok":
            return made._replace(reason=f"{file.name} could not be made: {made.reason}"), None
    place = out.resolve() / REPORT
    place.unlink(missing_ok=True)
    order = ChildOrder(call=contestant.call, job=plan.job, options=dict(contestant.options), file=file, report=place)
    ended = child(order)
    if ended.status != "ok":
        return ended, None
    try:
        return ended, PeerReport.model_validate_json(place.read_bytes())
    except (OSError, ValidationError) as error:
        return ended._replace(status="error", reason=f"it reported nothing sensible: {type(error).__name__}"), None
