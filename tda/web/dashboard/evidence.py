"""What the pages read: blocks of numbers, nights, alarms, and the commits in the order of history."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from tda.cases import first_problem
from tda.history.findings import Alarm, Finding
from tda.history.nights import History, Night
from tda.history.profiles import PROFILES_FOLDER, Profiles, read_stores
from tda.history.repository import CommitFacts, Repository
from tda.history.table import HistoryTable, load_history
from tda.records import Machine
from tda.web.dashboard.blocks import SettingHistory
from tda.web.dashboard.filing import blocks_of

ALARMS = "alarms.json"


@dataclass(frozen=True)
class KnownCommit:
    """A commit of the history, and what became of it.

    Attributes
    ----------
    hash, short : str
        Full hash, and the part that pages and asv show.
    date : pandas.Timestamp
        When it was committed (UTC); NaT where nothing tells.
    subject : str
        First line of its message; hostile text.
    tags : tuple of str
        Names of releases.
    status, reason : str
        As the last night that tried it says; "measured" where other sources alone have numbers.
    parent : str or None
        The measured commit that a night compared it with.
    """

    hash: str
    short: str
    date: pd.Timestamp
    subject: str = ""
    tags: tuple[str, ...] = ()
    status: str = "measured"
    reason: str | None = None
    parent: str | None = None

    @property
    def day(self) -> str:
        """Date as text; empty where unknown."""
        return "" if pd.isna(self.date) else self.date.strftime("%Y-%m-%d")

    @property
    def page(self) -> str:
        """Path of its page below the pages' folder."""
        return f"commit/{self.short}/index.html"


@dataclass(frozen=True)
class Evidence:
    """Everything that the pages show.

    Attributes
    ----------
    blocks : tuple of SettingHistory
        By source; what was measured last comes first.
    commits : tuple of KnownCommit
        In the order of history, oldest first.
    nights : tuple of Night
        Oldest first.
    alarms : tuple of Alarm
        As the history keeps them.
    failures : Mapping
        By commit: a sentence for each process that ended without a record.
    problems : tuple of str
        What was left out while reading.
    profiles : Profiles
        Of nights, and captured by hand.
    speedscope : Path or None
        Archive of the viewer of traces; None where it could not be had.
    """

    blocks: tuple[SettingHistory, ...]
    commits: tuple[KnownCommit, ...]
    nights: tuple[Night, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    failures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    profiles: Profiles = field(default_factory=Profiles)
    speedscope: Path | None = None

    @classmethod
    def load(
        cls,
        history: Path,
        *,
        repo: Path | None = None,
        order: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        letters: int = 8,
        stores: Sequence[Path] = (),
    ) -> "Evidence":
        """Read a history folder; what is missing or damaged is named in `problems`.

        Parameters
        ----------
        history : Path
            As nights write it.
        repo : Path, optional
            A git checkout that tells dates and subjects.
        order : sequence of str
            Hashes of the branch, oldest first.
        tags : mapping, optional
            Name of a tag to the full hash of its commit.
        letters : int
            Length of shortened hashes.
        stores : sequence of Path
            Where profiles lie beside those of the history.
        """
        table = load_history(history, repo)
        nights, unread = History(history).nights()
        alarms, damaged = _read_alarms(history / ALARMS, nights)
        profiles = read_stores([history / PROFILES_FOLDER, *stores])
        problems = tuple(dict.fromkeys((*table.problems, *unread, *damaged, *profiles.problems)))
        return cls.of(
            HistoryTable(table.frame, problems), nights, alarms, order=order, tags=tags or {}, letters=letters,
            profiles=profiles, subjects=_looked_up(profiles, repo),
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        table: HistoryTable,
        nights: Sequence[Night] = (),
        alarms: Sequence[Alarm] = (),
        *,
        order: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        letters: int = 8,
        profiles: Profiles | None = None,
        subjects: Mapping[str, CommitFacts] | None = None,
    ) -> "Evidence":
        """Build from what was read; parameters as for `load`, and facts about commits that were profiled."""
        known = table.frame.astype("object").where(table.frame.notna(), None)
        rows = list(known.itertuples(index=False))
        held = profiles or Profiles()
        commits = _commits(rows, nights, order, tags or {}, letters, _profiled(held, subjects or {}))
        blocks = blocks_of(rows, [commit.hash for commit in commits])
        return cls(blocks, commits, tuple(nights), tuple(alarms), _failures(rows), table.problems, held)

    @cached_property
    def by_hash(self) -> dict[str, KnownCommit]:
        """Commits by full hash."""
        return {commit.hash: commit for commit in self.commits}

    @cached_property
    def places(self) -> dict[str, int]:
        """Place of each commit in the order of history."""
        return {commit.hash: place for place, commit in enumerate(self.commits)}

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What nights found, and alarms of which no night is left; each once, newest night first."""
        held = {finding.key: finding for night in self.nights for finding in night.findings}
        held = {alarm.id: alarm.finding for alarm in self.alarms} | held
        return tuple(sorted(held.values(), key=lambda finding: finding.night, reverse=True))

    @cached_property
    def labels(self) -> dict[str, str]:
        """What people call a case, by its key."""
        return {facts.key: facts.label for block in self.blocks for facts in block.cases.values()}

    @cached_property
    def states(self) -> dict[str, Alarm]:
        """Alarms by the key of their finding."""
        return {alarm.finding.key: alarm for alarm in self.alarms}

    @cached_property
    def machines(self) -> dict[str, Machine]:
        """Facts about machines by fingerprint, as far as nights tell them."""
        return {night.machine.fingerprint: night.machine for night in self.nights if night.machine is not None}

    def label_of(self, machine: str) -> str:
        """A machine in words; its fingerprint where nothing tells more."""
        return next((block.machine_label for block in self.blocks if block.machine == machine), machine)

    def hardware(self, machine: str) -> tuple[object, ...]:
        """Equal for machines that differ in their software alone."""
        facts = self.machines.get(machine)
        return (facts.cpu, facts.cores_told, facts.gpu) if facts is not None else (machine,)


def _read_alarms(path: Path, nights: Iterable[Night]) -> tuple[tuple[Alarm, ...], list[str]]:
    """Alarms, their findings as nights tell them: before findings held cases, this file had labels in their place."""
    if not path.is_file():
        return (), []
    held = {finding.key: finding for night in nights for finding in night.findings}
    found, problems = [], []
    try:
        for stored in json.loads(path.read_bytes())["alarms"]:
            try:
                found.append(Alarm.model_validate(stored | {"finding": held.get(stored["id"], stored["finding"])}))
            except ValidationError as error:
                problems.append(f"{path}: alarm {stored['id']} skipped: {first_problem(error)}")
    except (OSError, ValueError, TypeError, LookupError) as error:
        problems.append(f"{path} skipped: {str(error).splitlines()[0]}")
    return tuple(found), problems


# Commits.


def _looked_up(profiles: Profiles, repo: Path | None) -> dict[str, CommitFacts]:
    """What a checkout tells of commits that were profiled, as far as it has them."""
    found: dict[str, CommitFacts] = {}
    if repo is not None:
        repository = Repository(repo)
        for commit in profiles.by_commit:
            with contextlib.suppress(ValueError):
                found[commit] = repository.facts(commit)
    return found


def _profiled(profiles: Profiles, subjects: Mapping[str, CommitFacts]) -> dict[str, dict[str, Any]]:
    """Commits that were profiled, as far as anything tells of them."""
    found: dict[str, dict[str, Any]] = {}
    for commit in profiles.by_commit:
        facts = subjects.get(commit)
        date = pd.NaT if facts is None else pd.to_datetime(facts.date, utc=True, errors="coerce")
        found[commit] = {"date": date, "subject": facts.subject if facts else "", "status": "profiled"}
    return found


def _commits(
    rows: Iterable[Any],
    nights: Sequence[Night],
    order: Sequence[str],
    tags: Mapping[str, str],
    letters: int,
    profiled: Mapping[str, dict[str, Any]],
) -> tuple[KnownCommit, ...]:
    facts: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.commit:
            date = pd.NaT if row.date is None else row.date
            facts.setdefault(row.commit, {"date": date, "subject": row.subject or ""})
    for night in nights:
        for tried in night.commits:
            held = facts.setdefault(tried.hash, {})
            if "status" in held and tried.status == "skipped":
                continue
            date = pd.to_datetime(tried.date, utc=True, errors="coerce")
            held |= {"date": date, "subject": tried.subject, "status": tried.status, "reason": tried.reason}
            held["parent"] = tried.parent or held.get("parent")
    for commit, known in profiled.items():
        facts.setdefault(commit, known)
    listed = list(dict.fromkeys(tried.hash for night in nights for tried in night.commits))
    ordered = _in_order({commit: known["date"] for commit, known in facts.items()}, order or listed, listed)
    names = {commit: tuple(sorted(tag for tag, at in tags.items() if at == commit)) for commit in ordered}
    shorts = _shortened(ordered, letters)
    return tuple(
        KnownCommit(commit, short, tags=names[commit], **facts[commit])
        for commit, short in zip(ordered, shorts, strict=True)
    )


def _in_order(known: Mapping[str, pd.Timestamp], branch: Sequence[str], listed: Sequence[str]) -> list[str]:
    """Along the branch, whatever its dates say; commits beside it by their dates, then as nights listed them."""
    epoch = pd.Timestamp(0, tz="UTC")
    dates = {commit: epoch if pd.isna(date) else date for commit, date in known.items()}
    beside = {commit: place - len(listed) for place, commit in enumerate(listed)}
    keys = {commit: (date, beside.get(commit, 0)) for commit, date in dates.items()}
    latest = epoch
    for place, commit in enumerate(branch):
        if commit in dates:
            latest = max(latest, dates[commit])
            keys[commit] = (latest, place)
    return sorted(keys, key=lambda commit: (*keys[commit], commit))


def _shortened(commits: Iterable[str], letters: int) -> Iterator[str]:
    """Short hashes; one that is taken already stays long."""
    taken: set[str] = set()
    for commit in commits:
        short = commit[:letters] if commit[:letters] not in taken else commit
        taken.add(short)
        yield short


def _failures(rows: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """Processes that ended without any record."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.commit and row.metric is None and row.case is None:
            where = f"night {row.night}, {row.grid}, {row.stage} block {row.block}"
            found.setdefault(row.commit, []).append(f"{where}: {row.missing}")
    return {commit: tuple(texts) for commit, texts in found.items()}
