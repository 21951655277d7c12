"""All commits, and a page for each: what became of it, what it changed, and every number."""

from collections.abc import Iterator

from tda.web.dashboard.blocks import SETS, SettingHistory, Stop, is_quality
from tda.web.dashboard.evidence import Evidence, KnownCommit
from tda.web.dashboard.formatting import change_text, headed, level_text, standing
from tda.web.dashboard.pages import HtmlPage, page
from tda.web.dashboard.pages.alarms import finding_status
from tda.web.dashboard.profiled import page_of, shown
from tda.web.theme.formatting import MISSING


@page("commits", 50, "Commits", "What became of each commit?")
def commits_page(evidence: Evidence) -> Iterator[HtmlPage]:
    """The list, then a page for each commit."""
    rows = [_listed(evidence, commit) for commit in reversed(evidence.commits)]
    yield HtmlPage("commits.html", "Commits", "commits.html", {"rows": rows})
    for place, commit in enumerate(evidence.commits):
        yield HtmlPage(commit.page, f"Commit {commit.short}", "commit.html", _values(evidence, commit, place))


def _listed(evidence: Evidence, commit: KnownCommit) -> dict[str, object]:
    found = [finding for finding in evidence.findings if finding.commit == commit.hash]
    return {
        "commit": commit,
        "states": [standing(finding, evidence.states.get(finding.key)) for finding in found],
        "sources": list(dict.fromkeys(block.source for block in evidence.blocks if _stops(block, commit))),
        "dirty": any(stop.dirty for block in evidence.blocks for stop in _stops(block, commit)),
    }


def _stops(block: SettingHistory, commit: KnownCommit) -> list[Stop]:
    return [stop for stop in block.stops if stop.commit == commit.hash]


def _values(evidence: Evidence, commit: KnownCommit, place: int) -> dict[str, object]:
    own = [finding for finding in evidence.findings if finding.commit == commit.hash]
    after = place + 1
    return {
        "commit": commit,
        "older": evidence.commits[place - 1] if place else None,
        "newer": evidence.commits[after] if after < len(evidence.commits) else None,
        "changes": [finding_status(evidence, finding) for finding in own],
        "around": [finding_status(evidence, finding) for finding in evidence.findings
                   if finding.commit != commit.hash and _inside(evidence, finding.good, place, finding.commit)],
        "failures": evidence.failures.get(commit.hash, ()),
        "profile": page_of(commit) if commit in shown(evidence) else None,
        "tables": [_table(evidence, commit, block, stop)
                   for block in evidence.blocks for stop in _stops(block, commit)],
    }  # fmt: skip


def _inside(evidence: Evidence, good: str, place: int, bad: str) -> bool:
    """Whether a commit is within the range that a finding leaves open."""
    places = evidence.places
    return good in places and bad in places and places[good] < place < places[bad]


def _table(evidence: Evidence, commit: KnownCommit, block: SettingHistory, stop: Stop) -> dict[str, object]:
    old = Stop(commit.parent, False) if commit.parent is not None else None
    old = old if old in block.stops else block.before(stop)
    cases = block.present(stop)
    metrics = [name for name in block.metrics if any(block.runs(case, name, stop) for case in cases)]
    return {
        "machine": block.machine_label,
        "title": block.title,
        "dirty": stop.dirty,
        "parent": None if old is None else evidence.by_hash[old.commit],
        "headings": [headed(name, block.unit(name)) for name in metrics],
        "rows": [
            {
                "facts": block.cases[case],
                "failure": block.failures.get((case, stop)),
                "cells": [_cell(block, case, name, stop, old) for name in metrics],
            }
            for case in cases
        ],
    }


def _cell(block: SettingHistory, case: str, metric: str, stop: Stop, old: Stop | None) -> dict[str, str | None]:
    """Level, change against the parent, and why the level is missing."""
    if metric == SETS:
        return _sets(block, case, stop, old)
    level = block.level(case, metric, stop)
    change = None if old is None else block.change(case, metric, stop, old)
    text = None if change is None else change_text(change, relative=not is_quality(metric))
    return {"text": level_text(level), "change": text, "missing": level.missing}


def _sets(block: SettingHistory, case: str, stop: Stop, old: Stop | None) -> dict[str, str | None]:
    """Whether the kept sets are those of the parent, document by document."""
    new, before = (None if at is None else block.last(case, SETS, at) for at in (stop, old))
    if new is None or before is None:
        missing = block.level(case, SETS, stop).missing or "nothing to compare with"
        return {"text": MISSING, "change": None, "missing": missing}
    shared = new.groups.keys() & before.groups.keys()
    differing = sum(new.groups[document] != before.groups[document] for document in shared)
    text = f"{differing} of {len(shared)} differ" if differing else "as before"
    return {"text": text, "change": None, "missing": ""}
