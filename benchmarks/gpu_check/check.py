"""The parent: one part after the other, each in a process of its own, within a budget. It imports no torch."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu_check import process
from benchmarks.gpu_check.child import FIGURES
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.packages import lacking
from benchmarks.gpu_check.parts import Part
from benchmarks.gpu_check.process import PartResult, PartStatus
from benchmarks.gpu_check.setting import CheckSetting
from tda.cases import Frozen
from tda.results import read_lines

ROOT = Path(__file__).resolve().parents[2]
BUDGET_S = 345.0
"""Of all parts, so that the table and the archive are written within six minutes."""
SLACK = 8
"""How many times as long a dry run may take: two cores beside other work are no card."""
LOG = "log.txt"


class Outcome(Frozen):
    """How a part went, and its figures: also those from before it failed."""

    part: str
    status: PartStatus
    reason: str | None = None
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it was begun and did not end well."""
        return self.status not in ("ok", "skipped")


# long: its parameters are explained
def run(
    parts: Sequence[Part],
    scratch: Path,
    *,
    dry: bool,
    say: Callable[[str], None],
    after: Callable[[list[Outcome]], None],
    budget_s: float = BUDGET_S,
) -> list[Outcome]:
    """Run the parts that can run and fit.

    Parameters
    ----------
    parts : sequence of Part
        In order of worth.
    scratch : Path
        Each part gets a folder of its own in it.
    dry : bool
        Whether they run without a card.
    say : callable
        Told in a sentence what goes on.
    after : callable
        Told after each part how all went so far.
    budget_s : float
        After this no part runs.

    Returns
    -------
    list of Outcome
        One a part. Where Ctrl-C came, the part that it ended says so, and the others that they were not begun.
    """
    outcomes: list[Outcome] = []
    slack = SLACK if dry else 1
    end, closed = time.monotonic() + slack * budget_s, ""
    for number, part in enumerate(parts, start=1):
        left = end - time.monotonic()
        limit_s = min(slack * part.limit_s, left)
        reason = closed or why_not(part, left, dry=dry)
        if reason is not None:
            outcome = Outcome(part=part.name, status="skipped", reason=reason)
        else:
            say(f"{number}/{len(parts)} {part.name}, at most {limit_s:.0f} s")
            outcome = _carry_out(part, scratch, limit_s, dry=dry)
        outcomes.append(outcome)
        if outcome.status != "ok":
            say(f"{part.name}: {outcome.status}: {outcome.reason}")
        after(outcomes)
        if outcome.status == "interrupted":
            closed = "the check was interrupted before"
        elif part.gate and outcome.status != "ok":
            closed = f"the part {part.name} failed"
    return outcomes


def why_not(part: Part, left_s: float, *, dry: bool) -> str | None:
    """Why a part is not begun; None where it is."""
    if dry and not part.dry:
        return "it needs a card"
    if missing := lacking(part.packages):
        return " and ".join(missing) + (" is" if len(missing) == 1 else " are") + " not installed"
    if left_s < part.limit_s / 2:
        return f"{max(left_s, 0):.0f} s are left, and it may take {part.limit_s:.0f} s"
    return None


def _carry_out(part: Part, scratch: Path, limit_s: float, *, dry: bool) -> Outcome:
    folder = scratch.resolve() / part.name
    folder.mkdir(parents=True)
    setting = CheckSetting(folder=folder, scratch=scratch.resolve(), dry=dry, limit_s=limit_s)
    command = [sys.executable, "-m", "benchmarks.gpu_check.child", part.call, setting.model_dump_json()]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    begin = time.monotonic()
    try:
        ended = process.finish(command, folder / LOG, environment, limit_s)
    except KeyboardInterrupt:
        ended = PartResult("interrupted", "Ctrl-C or SIGTERM", time.monotonic() - begin)
    path = folder / FIGURES
    figures = tuple(read_lines(path, Figure)[0]) if path.is_file() else ()
    return Outcome(part=part.name, figures=figures, **ended._asdict())
