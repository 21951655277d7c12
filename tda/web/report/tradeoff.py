"""Which quality belongs to which speed, and what the best of both is."""

from collections.abc import Sequence
from dataclasses import dataclass

from tda.records import MIN_GROUPS
from tda.statistics import MARGIN
from tda.web.report.comparison import Comparison, Setting, reasons
from tda.web.theme.formatting import interval, number, share

QUALITY_BAR_NATS = 0.05
"""A method counts as keeping quality where its ΔNLL stays under this."""


@dataclass(frozen=True)
class Tradeoff:
    """A timed setting, and the setting whose quality goes with it.

    Attributes
    ----------
    speed : Setting
        Where the times are from.
    quality : Setting or None
        The same setting where it was scored too; else the trained model whose sparsity per layer the timed one
        was run with; None where there is none.
    """

    speed: Setting
    quality: Setting | None

    @property
    def joint(self) -> bool:
        """Whether both axes come from one model and setting."""
        return self.quality is self.speed

    @property
    def pairs(self) -> list[tuple[Comparison, Comparison]]:
        """(timed case, scored case) of the same method, options and sparsity."""
        if self.quality is None:
            return []
        scored = {case.identity: case for case in self.quality.scored}
        timed = [case for case in self.speed.timed if not case.is_dense]
        return [(case, scored[case.identity]) for case in timed if case.identity in scored]


def tradeoffs(settings: Sequence[Setting]) -> list[Tradeoff]:
    """One trade-off for each timed setting."""
    return [Tradeoff(setting, _quality_of(setting, settings)) for setting in settings if setting.timed]


def _quality_of(speed: Setting, settings: Sequence[Setting]) -> Setting | None:
    if speed.scored:
        return speed
    trained = [setting for setting in settings if setting.scored]
    profiles = {case.record.case.layer_sparsity_from for case in speed.cases} - {None}
    named = [setting for setting in trained if setting.model in profiles]
    if named:
        return named[0]
    return trained[0] if len(trained) == 1 and not profiles else None


def findings(settings: Sequence[Setting]) -> list[str]:
    """State in a sentence per timed setting the best speed-up that keeps quality, or that there is none."""
    found = [_best(tradeoff, tradeoff.speed.name_among(settings)) for tradeoff in tradeoffs(settings)]
    return found or ["Nothing was timed here, so no speed is stated; the quality of each method is below."]


def _best(tradeoff: Tradeoff, name: str) -> str:
    speed, floor = tradeoff.speed, tradeoff.speed.noise_floor or 0.0
    if speed.baseline is None:
        return f"On {name} no dense run succeeded, so no speed-up is stated."
    if tradeoff.quality is None and not speed.tasks:
        return f"On {name} speed was measured without any quality to go with it, so no method is recommended."
    if not any(not timed.is_dense for timed in speed.timed):
        return f"On {name} no method was timed, so no speed-up is stated."
    if speed.rounds < MIN_GROUPS:
        rounds = f"{speed.rounds} round{'s' * (speed.rounds != 1)}"
        return f"On {name} too little was timed to tell whether a method is faster than dense: {rounds}."
    if tradeoff.quality is None:
        return _best_on_tasks(speed, name, floor)
    kept = [(timed, scored) for timed, scored in tradeoff.pairs if _keeps(scored)]
    faster = [(timed, scored) for timed, scored in kept if _lower(timed) > 1 + floor]
    trusted = [(timed, scored) for timed, scored in faster if not (timed.warnings or scored.warnings)]
    doubtful = faster or ([] if any(not timed.warnings for timed, _ in kept) else kept)
    if doubtful and not trusted:
        told = reasons(case for pair in doubtful for case in pair)
        return f"On {name} no speed-up can be trusted, because {told}."
    if not faster:
        return (
            f"On {name} no method decodes faster than dense beyond the noise with a ΔNLL under "
            f"{QUALITY_BAR_NATS} nats per token on {tradeoff.quality.model}."
        )
    timed, scored = max(trusted, key=lambda pair: pair[0].speedup.value if pair[0].speedup else 0.0)
    return _sentence(tradeoff, name, timed, scored)


def _best_on_tasks(speed: Setting, name: str, floor: float) -> str:
    """State the best speed-up that is as good as dense on every task, where tasks are all that was scored."""
    tasks = ", ".join(speed.tasks)
    kept = [case for case in speed.timed if not case.is_dense and _keeps_tasks(case, speed.tasks)]
    faster = [case for case in kept if _lower(case) > 1 + floor]
    trusted = [case for case in faster if not case.warnings]
    if faster and not trusted:
        return f"On {name} no speed-up can be trusted, because {reasons(faster)}."
    if not faster:
        return (
            f"On {name} no method decodes faster than dense beyond the noise and is as good as dense, within "
            f"±{MARGIN:g}, on {tasks}."
        )
    best = max(trusted, key=lambda case: case.speedup.value if case.speedup else 0.0)
    assert best.speedup is not None
    at = "" if best.sparsity is None else f" at sparsity {share(best.sparsity)}"
    return (
        f"{best.series}{at} decodes {interval(best.speedup, unit='×')} as fast as dense on {name}, and is as good as "
        f"dense, within ±{MARGIN:g}, on {tasks} (interval {speed.processes})."
    )


def _keeps_tasks(case: Comparison, tasks: Sequence[str]) -> bool:
    return all(case.task_verdict(task) in ("as good as dense", "better") for task in tasks)


def _sentence(tradeoff: Tradeoff, name: str, timed: Comparison, scored: Comparison) -> str:
    assert timed.speedup is not None
    assert scored.delta_nll is not None
    limit = timed.limit
    at = "" if timed.sparsity is None else f" at sparsity {share(timed.sparsity)}"
    words = f"{timed.series}{at} decodes {interval(timed.speedup, unit='×')} as "
    words += f"fast as dense on {name}" + (f" (roofline {number(limit)}×)" if limit else "")
    words += f", at a ΔNLL of {interval(scored.delta_nll, 2, signed=True)} nats per token"
    if not tradeoff.joint:
        words = f"Projection: {words} on {scored.record.case.model}, another model"
    return f"{words} (interval {tradeoff.speed.processes})."


def _keeps(scored: Comparison) -> bool:
    delta = scored.delta_nll
    return delta is not None and (delta.value if delta.high is None else delta.high) < QUALITY_BAR_NATS


def _lower(timed: Comparison) -> float:
    ratio = timed.speedup
    return 0.0 if ratio is None else ratio.value if ratio.low is None else ratio.low
