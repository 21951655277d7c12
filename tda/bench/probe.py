"""Whether a case, alone in a process, ends it: what else killed an earlier run is not the case's fault."""

import tempfile
from pathlib import Path

from tda.bench.plan import Plan, only
from tda.cases import Case
from tda.config import BenchConfig
from tda.process import call

SITE = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800.0


def dies_alone(plan: Plan, case: Case) -> str | None:
    """How a process ended that measured one case (and dense beside it) in one round; None where it was not killed.

    A model in memory cannot be handed to another process: it is not tried.
    """
    if case.model in plan.loaded:
        return None
    config = BenchConfig(
        rounds=1,
        documents=1,
        text=plan.text,
        calibration_text=plan.calibration_text,
        revision=plan.revision,
        trust_remote_code=plan.trust_remote_code,
    )
    with tempfile.TemporaryDirectory(prefix="tda-probe-") as folder:
        ended = call(SITE, "run_bench", Path(folder), only(config, [case]), TIMEOUT_S)
    return ended.reason if ended.status == "crash" else None
