"""What changed in the kernels of an alarm's two commits, as profiles of both tell it."""

from collections.abc import Mapping

from tda.bench.planning import only
from tda.config import BenchConfig
from tda.history.findings import Finding, Split
from tda.history.profiles import ProfileComparison, Profiles
from tda.profiler.difference import ProfileChange, telling
from tda.spans import PHASES

SPLIT_PHASES: Mapping[Split, tuple[str, ...]] = {
    "prefill": ("prefill", "statistic"),
    "select": ("statistic", "selection", "gather"),
    "decode": ("decode",),
    "memory": PHASES,
}
"""Phases in which a finding of a split shows; one of quality shows in none."""


def explainable(finding: Finding) -> bool:
    """Whether profiles can explain it: an alarm about time or memory."""
    return finding.verdict == "alarm" and finding.split in SPLIT_PHASES


def options_of(finding: Finding) -> BenchConfig:
    """What profiles the first of a finding's cases."""
    return only(BenchConfig(), finding.cases[:1])


def explanation(finding: Finding, profiles: Profiles) -> ProfileComparison | None:
    """The comparison that explains a finding: of one of its cases, on its machine; None where there is none."""
    if not explainable(finding):
        return None
    found = [
        compared
        for compared in profiles.compare(finding.good, finding.commit)
        if compared.case in finding.cases and compared.machine == finding.machine
    ]
    return min(found, key=lambda one: (not one.paired, finding.cases.index(one.case)), default=None)


def main_changes(finding: Finding, compared: ProfileComparison, most: int) -> list[ProfileChange]:
    """The rows to be named first: what changed in the phases that a finding is about, most beyond the noise first."""
    found = [change for phase in SPLIT_PHASES[finding.split] for change in telling(compared.changes, phase)]
    return sorted(found, key=lambda change: -change.sure_ms)[:most]


def headline(compared: ProfileComparison, phase: str) -> str:
    """What became of a phase, in a sentence: how much it changed, and what the greatest change in it explains."""
    whole = next((one for one in compared.phases if one.phase == phase), None)
    if whole is None:
        return f"{phase}: not in these profiles."
    size = f"{phase} {whole.before_ms:.3g} → {whole.after_ms:.3g} ms"
    changes = telling(compared.changes, phase)
    if not whole.certain:
        row = f", but {name_of(changes[0])} {changes[0].kind}: {changes[0].delta_ms:+.3g} ms" if changes else ""
        return f"{size}: the whole did not change beyond the noise{row}."
    size += f" ({whole.delta_ms / whole.before_ms:+.1%})" if whole.before_ms else ""
    if not changes:
        return f"{size}: no single row changed beyond the noise."
    return f"{size}: {name_of(changes[0])} {changes[0].kind}, which is {changes[0].share:.0%} of it."


def name_of(change: ProfileChange) -> str:
    """A row in a few words."""
    inside = f" of {change.op}" if change.op not in ("", change.kernel) else ""
    return f"{change.kernel}{inside} in {change.part}"
