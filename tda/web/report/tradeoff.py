"""Which quality belongs to which speed."""

from collections.abc import Sequence
from dataclasses import dataclass

from tda.web.report.comparison import ComparedCase
from tda.web.report.setting import Setting


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
    def pairs(self) -> list[tuple[ComparedCase, ComparedCase]]:
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
