"""Drive a sweep: hand groups to Ray in their order, append what comes back once, hand over again what was lost."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tda import device as facts
from tda.bench.messages import Message
from tda.bench.store import Folder, RecordPlace, too_often
from tda.bench.supervisor import failed_record
from tda.bench.worker import order_of
from tda.bench.worker_limits import Limits
from tda.bench.worker_process import TAIL
from tda.logs import log_again
from tda.process import alone
from tda.records import FAILURES, Commit, Failure, FailureKind, LeftOut, Machine, Record
from tda.sweep.cluster import Cluster, GroupEnd, Needs, Node
from tda.sweep.done import GROUPS, DoneGroups, failures
from tda.sweep.groups import SweepGroup
from tda.sweep.view import View

logger = logging.getLogger(__name__)

WAIT_S = 0.5
"""Seconds for which the cluster is listened to at a time."""


@dataclass
class _Attempt:
    """A group that Ray has, and what is known of it."""

    group: SweepGroup
    host: str | None = None
    began: float = 0.0
    since: float = 0.0
    place: RecordPlace | None = None
    machine: Machine | None = None
    commit: Commit = field(default_factory=Commit)
    stderr: bytes = b""
    is_whole: bool = True  # no error ended a model


# long: groups wait, run, end or are lost: one state that every message changes
@dataclass
class Sweep:
    """Groups being measured over a cluster, into one folder.

    Attributes
    ----------
    groups : sequence of SweepGroup
        In the order in which they are handed to Ray.
    out : Path
        Results folder, on storage that all machines share; an interrupted sweep's records there are kept and completed.
    cluster : Cluster
        What measures them.
    needs, limits : mapping
        What each group takes of a machine, and what its workers may take; by name.
    view : View
        Where progress is shown.
    command : str
        The command that goes on with this sweep.
    """

    groups: Sequence[SweepGroup]
    out: Path
    cluster: Cluster
    needs: Mapping[str, Needs]
    limits: Mapping[str, Limits]
    view: View
    command: str

    def __post_init__(self) -> None:
        self._done = DoneGroups(self.out / GROUPS)
        self._waiting = list(self.groups)
        self._attempts: dict[str, _Attempt] = {}
        self._lost: dict[str, list[FailureKind | None]] = {}
        self._left_out: list[LeftOut] = []
        self._has_begun = False
        self._stranded: set[str] = set()

    def run(self) -> list[Record]:
        """Measure what is not measured yet; return the folder's records, as they were appended.

        Raises
        ------
        ValueError
            If the folder holds results of another commit, or another measurement runs there.
        OSError
            If the folder cannot be written.
        """
        with alone(self.out):
            self._folder = Folder(self.out)
            self._folder.check_commit(facts.commit())
            self._folder.note_left_out([])
            self._skip_done()
            with self.view.shown():
                while self._waiting or self._attempts:
                    nodes = self.cluster.nodes()
                    self._hand_over(nodes)
                    self._notice_idleness(nodes)
                    for name, message in self.cluster.messages(WAIT_S):
                        self._take(self._attempts[name], message)
            return self._folder.records

    # What is done already.

    def _skip_done(self) -> None:
        done = self._done.names(self.groups, self._folder.records)
        self._waiting = [group for group in self._waiting if group.name not in done]
        for name in done & {group.name for group in self.groups}:
            self.view.ended(name, "measured earlier")

    # What is handed over.

    def _hand_over(self, nodes: Sequence[Node]) -> None:
        """Hand over the next groups, as long as Ray has few that still wait: the order stays ours."""
        while self._waiting and self._may_hand_over(self._waiting[0], len(nodes)):
            group = self._waiting.pop(0)
            count = len(group.plan.subjects)
            orders = [order_of(group.plan, number, self.out, self.command) for number in range(count)]
            held = self._records_of(group)
            self._attempts[group.name] = _Attempt(group)
            self.cluster.start(group.name, orders, held, self.limits[group.name], self.needs[group.name])
            self.view.waits(group.name)

    def _may_hand_over(self, group: SweepGroup, machines: int) -> bool:
        """The first group alone, so that Ray begins with it; then as many as there are machines to wait for.

        A group that is not timed comes after the timed ones: it would keep a machine from being free for them.
        """
        pending = [one for one in self._attempts.values() if one.host is None]
        if not self._has_begun:
            return not pending
        if not group.timed and any(one.group.timed for one in pending):
            return False
        return len(pending) < machines

    def _notice_idleness(self, nodes: Sequence[Node]) -> None:
        """Say once that a group waits for a machine that is not there."""
        for name, attempt in self._attempts.items():
            if attempt.host is None and not any(node.can(self.needs[name]) for node in nodes):
                if name not in self._stranded:
                    logger.warning(f"no machine of the cluster can take {name} now; it waits for one that joins")
                self._stranded.add(name)
            else:
                self._stranded.discard(name)

    # What comes back.

    def _take(self, attempt: _Attempt, message: Message | GroupEnd) -> None:
        name = attempt.group.name
        if isinstance(message, GroupEnd):
            self._end(attempt, message.error)
            return
        kind, value = message
        if kind == "started":
            attempt.host, attempt.began, self._has_begun = value[0], time.monotonic(), True
            self.view.began(name, attempt.host)
        elif kind == "hello":
            attempt.machine, attempt.commit, _ = value
            facts.check_same_code(attempt.commit)
            attempt.place, attempt.since, attempt.stderr = None, time.monotonic(), b""
        elif kind == "running":
            attempt.place, attempt.since = value, time.monotonic()
        elif kind == "records":
            self._folder.keep(value)
            self.view.recorded(name, sum(record.status == "ok" for record in value))
        elif kind == "left_out":
            self._leave_out(value)
        elif kind == "raised":
            attempt.is_whole = False
            self._fail(attempt, "error", f"{value}")
            if attempt.machine is None:  # no record can tell of it
                self._give_up(name, f"{value}")
        elif kind == "log":
            log_again(value)
        elif kind == "stage":
            self.view.stage(name, *value)
        elif kind == "go_on":
            self.view.go_on(name, *value)
        elif kind == "advance":
            self.view.advance(name, value)
        elif kind == "stderr":
            attempt.stderr = (attempt.stderr + value)[-TAIL:]

    def _end(self, attempt: _Attempt, error: Exception | None) -> None:
        """A group is done, or was lost and is handed over again."""
        group = attempt.group
        del self._attempts[group.name]
        if error is None:
            self._note_done(attempt)
            return
        kind, reason = _what_happened(error)
        self._fail(attempt, kind, reason)
        lost = self._lost.setdefault(group.name, [])
        lost.append(kind)
        if too_often(lost):
            self.view.ended(group.name, "given up")
            self._give_up(group.name, reason)
            return
        self.view.lost(group.name, reason)
        self._waiting.insert(0, group)

    def _records_of(self, group: SweepGroup) -> list[Record]:
        models = {subject.model for subject in group.plan.subjects}
        return [record for record in self._folder.records if record.case.model in models]

    def _note_done(self, attempt: _Attempt) -> None:
        group = attempt.group
        own = self._records_of(group)
        failed = failures(own)
        if attempt.is_whole and not failed:
            self._done.add(group, attempt.host or "", time.monotonic() - attempt.began, own)
        told = "done" if attempt.is_whole else "not measured to its end"
        if failed:
            told = f"{len(failed)} failure{'s' * (len(failed) != 1)}"
        self.view.ended(group.name, told)

    def _fail(self, attempt: _Attempt, kind: FailureKind, reason: str) -> None:
        """Keep a record of what a group was lost in, if its machine has told of itself by then."""
        name = attempt.group.name
        told = f"{name}: {FAILURES[kind].words}: {reason}"
        logger.warning(told)
        if attempt.machine is None:
            return
        place = attempt.place or order_of(attempt.group.plan, 0, self.out, self.command).dense
        failure = Failure(kind=kind, stderr=attempt.stderr.decode(errors="replace").strip() or None)
        seconds = time.monotonic() - attempt.since
        self._folder.keep([failed_record(place, attempt.machine, attempt.commit, failure, reason, seconds)])

    def _give_up(self, name: str, reason: str) -> None:
        missed = "what is not recorded"
        self._leave_out([LeftOut(model=name, what=missed, reason=reason, command=self.command)])

    def _leave_out(self, items: Sequence[LeftOut]) -> None:
        self._left_out += items
        self._folder.note_left_out(self._left_out)


def _what_happened(error: Exception) -> tuple[FailureKind, str]:
    """What an error of Ray says of a group."""
    import ray

    told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "host_memory", f"Ray ended it, as its machine ran out of memory: {told}"
    if isinstance(error, ray.exceptions.RayTaskError):
        return "error", str(error).strip().splitlines()[-1]
    return "lost", told
