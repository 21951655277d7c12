"""Groups that were measured to their end, kept beside the results: the next sweep does not hand them over again."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tda import device as facts
from tda.cases import Frozen, digest_of
from tda.records import NOT_ITS_FAULT, Record
from tda.results import append_lines, read_lines
from tda.sweep.groups import SweepGroup

logger = logging.getLogger(__name__)

GROUPS = "groups.jsonl"
"""File beside the results: a `Done` for each group that was measured to its end."""


class Done(Frozen):
    """A group that was measured to its end.

    Attributes
    ----------
    group : str
        Its name.
    asked : str
        Digest of what was asked of it: plan and state of the code.
    host : str
        Machine that measured it last.
    started : str
        When that began.
    seconds : float
        How long that took.
    places : tuple of str
        Digests of its records' places, so that a record that is lost later is missed.
    """

    group: str
    asked: str
    host: str
    started: str
    seconds: float
    places: tuple[str, ...]


class DoneGroups:
    """The file of groups that were measured to their end.

    Parameters
    ----------
    path : Path
        The file, a line a group.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, groups: Sequence[SweepGroup], records: Sequence[Record]) -> set[str]:
        """Names of groups that are asked as they were when they were measured, and whose records are all there."""
        lines, problems = read_lines(self._path, Done) if self._path.is_file() else ([], [])
        for problem in problems:
            logger.warning(f"{problem}; its group is looked at again")
        there, asked = _good(records), {(group.name, _request_digest(group)) for group in groups}
        whole = [line for line in lines if line.places and there >= set(line.places)]
        return {line.group for line in whole if (line.group, line.asked) in asked}

    def add(self, group: SweepGroup, host: str, seconds: float, records: Sequence[Record]) -> None:
        """Note that a group was measured to its end, which took so long until now."""
        done = Done(
            group=group.name,
            asked=_request_digest(group),
            host=host,
            started=datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="milliseconds"),
            seconds=round(seconds, 3),
            places=tuple(sorted(_good(records))),
        )
        append_lines(self._path, [done.model_dump_json()])


def failures(records: Sequence[Record]) -> list[Record]:
    """Failures of cases that have no good record."""
    good = _good(records)
    return [one for one in records
            if one.status != "ok" and _place_digest(one) not in good and not _said_nothing(one)]  # fmt: skip


def _good(records: Sequence[Record]) -> set[str]:
    return {_place_digest(record) for record in records if record.status == "ok"}


def _said_nothing(failure: Record) -> bool:
    """Whether a failure is none of any case: its machine was lost before one began."""
    innocent = failure.failure is not None and failure.failure.kind in NOT_ITS_FAULT
    return innocent and not failure.inputs.data


def _request_digest(group: SweepGroup) -> str:
    return digest_of([repr(group.plan), facts.commit().hash, facts.commit().change])


def _place_digest(record: Record) -> str:
    """What tells a record from all others of a folder."""
    told: list[Any] = [record.machine.fingerprint, *record.series, record.round, sorted(record.tasks)]
    return digest_of(told)
