"""Which commits' profiles have a page, which of them are compared, and where the pages are."""

from collections.abc import Iterator
from dataclasses import dataclass

from tda.history.findings import Finding
from tda.history.profiles import StoredProfile
from tda.nightly.explain import SPLIT_PHASES, explanation, headline
from tda.web.dashboard.evidence import Evidence, KnownCommit

NEWEST = 30
"""Profiled commits that have a page: the newest, and both ends of every alarm. Tables of others stay on the store."""


@dataclass(frozen=True)
class CommitPair:
    """Two commits whose profiles are compared.

    Attributes
    ----------
    old, new : KnownCommit
        In the order of history.
    findings : tuple of Finding
        Alarms that it explains.
    """

    old: KnownCommit
    new: KnownCommit
    findings: tuple[Finding, ...] = ()

    @property
    def page(self) -> str:
        """Path of its page below the pages' folder."""
        return f"profile/{self.new.short}/since-{self.old.short}.html"


def page_of(commit: KnownCommit) -> str:
    """Path of the page of a commit's profile below the pages' folder."""
    return f"profile/{commit.short}/index.html"


def profiled(evidence: Evidence) -> list[KnownCommit]:
    """Commits with a profile, in the order of history."""
    return [commit for commit in evidence.commits if commit.hash in evidence.profiles.by_commit]


def shown(evidence: Evidence) -> list[KnownCommit]:
    """Commits whose profile has a page, in the order of history."""
    found = profiled(evidence)
    ends = {commit for finding in _explained(evidence) for commit in (finding.good, finding.commit)}
    newest = {commit.hash for commit in found[-NEWEST:]}
    return [commit for commit in found if commit.hash in newest | ends]


def before(evidence: Evidence, commit: KnownCommit) -> KnownCommit | None:
    """The commit that one is compared with: the nearest older one that ran in turn with it, else that shares a case."""
    found = profiled(evidence)
    older = list(reversed(found[: found.index(commit)]))
    own = _sessions(evidence, commit)
    in_turn = (other for other in older if own & _sessions(evidence, other))
    alike = (other for other in older if evidence.profiles.compare(other.hash, commit.hash))
    return next(in_turn, None) or next(alike, None)


def pairs(evidence: Evidence) -> list[CommitPair]:
    """Every shown commit with the one before it, and the two commits of every alarm that was profiled."""
    held: dict[tuple[str, str], list[Finding]] = {}
    listed = shown(evidence)
    for commit in listed:
        old = before(evidence, commit)
        if old in listed:
            held[old.hash, commit.hash] = []
    for finding in _explained(evidence):
        held.setdefault((finding.good, finding.commit), []).append(finding)
    known = evidence.by_hash
    return [CommitPair(known[old], known[new], tuple(findings)) for (old, new), findings in held.items()]


def pair_of(evidence: Evidence, finding: Finding) -> CommitPair | None:
    """The comparison that explains an alarm; None where its commits were not both profiled."""
    if explanation(finding, evidence.profiles) is None:
        return None
    return CommitPair(evidence.by_hash[finding.good], evidence.by_hash[finding.commit])


def kernels_of(evidence: Evidence, finding: Finding) -> list[str]:
    """What profiles say of an alarm: a sentence for each phase that it is about."""
    compared = explanation(finding, evidence.profiles)
    if compared is None:
        return []
    phases = [one.phase for one in compared.phases if one.phase in SPLIT_PHASES[finding.split]]
    return [headline(compared, phase) for phase in phases]


def standing_for(evidence: Evidence, commit: KnownCommit) -> Iterator[list[StoredProfile]]:
    """The profiles that a commit's page shows: for each machine, model and sizes those of one process.

    Of the processes with most cases, the first one of the session that began last.
    """
    settings: dict[tuple[str, str], dict[tuple[str, int], list[StoredProfile]]] = {}
    begun: dict[str, str] = {}
    for kept in evidence.profiles.by_commit[commit.hash]:
        begun.setdefault(kept.unit.night, kept.unit.started)
        setting = (kept.profile.machine.fingerprint, kept.profile.case.setting)
        settings.setdefault(setting, {}).setdefault((kept.unit.night, kept.unit.block), []).append(kept)
    for held in settings.values():
        yield max(held.values(), key=lambda found: (len(found), begun[found[0].unit.night], -found[0].unit.block))


def alike(evidence: Evidence, commit: KnownCommit, kept: StoredProfile) -> StoredProfile:
    """The profile of the same case that a commit's page shows, so that each trace is published once; else the given."""
    listed = (one for found in standing_for(evidence, commit) for one in found)
    same = (
        one for one in listed if (one.profile.case, one.profile.machine) == (kept.profile.case, kept.profile.machine)
    )
    return next(same, kept)


def _sessions(evidence: Evidence, commit: KnownCommit) -> set[str]:
    return {kept.unit.night for kept in evidence.profiles.by_commit[commit.hash]}


def _explained(evidence: Evidence) -> Iterator[Finding]:
    return (finding for finding in evidence.findings if explanation(finding, evidence.profiles) is not None)
